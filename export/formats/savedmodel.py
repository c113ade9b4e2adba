"""TensorFlow's SavedModel, one file of it: the frozen graph, its weights constants, under the serving signature."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import KilnError
from export.formats import Conversion, Converted, Inside, Predict

SUFFIX = ".pb"
NAME = "saved_model.pb"  # TensorFlow looks for this name
SIGNATURE = "serving_default"
PRECISIONS = ("fp32",)
PACKAGES = ("tensorflow", "keras", "numpy")
SERVABLE = False
SETTINGS: dict[str, dict[str, Any]] = {"fp32": {"frozen": True, "signature": SIGNATURE, "tags": ["serve"]}}


def convert(request: Conversion) -> Converted:
    """Writes `saved_model.pb`: `images` to `probabilities`, without variables, so it needs no second file.

    Raises:
        KilnError: The parent is no model of this project's tensor contract.
    """
    import tensorflow as tf

    from export.frozen import frozen_of
    from export.graph_inside import ASIDE

    frozen, v1 = frozen_of(request.keras_path, request.scratch), tf.compat.v1
    written = request.folder / "written"
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.uint8, (None, frozen.height, frozen.width, 3), name="images")
        found = tf.graph_util.import_graph_def(
            frozen.graph, input_map={frozen.input: images}, return_elements=[frozen.output], name=""
        )
        answers = tf.identity(found[0], name="probabilities")
        tools = v1.saved_model.signature_def_utils
        signature = tools.predict_signature_def({"images": images}, {"probabilities": answers})
        builder = v1.saved_model.Builder(str(written))
        builder.add_meta_graph_and_variables(
            session, [v1.saved_model.tag_constants.SERVING], {SIGNATURE: signature}, clear_devices=True
        )
        builder.save()
    shutil.move(written / NAME, request.folder / NAME)
    shutil.rmtree(written)
    counts = Counter(node.op for node in frozen.graph.node if node.op not in ASIDE)
    return Converted(NAME, SETTINGS[request.precision], dict(counts))


def inside(path: Path) -> Inside:
    """Constants of the graph in the file that feed convolutions and dense layers."""
    from tensorflow.core.protobuf import saved_model_pb2

    from export import graph_inside

    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    graph = saved.meta_graphs[0].graph_def
    return Inside(list(graph_inside.weights(graph)), graph_inside.macs(graph))


def load(path: Path, threads: int, *, spinning: bool = True) -> Predict:
    """The serving signature; one call at a time. It knows `threads` as `keras` does, and no `spinning`.

    Raises:
        KilnError: The file cannot be loaded or breaks the tensor contract.
    """
    import tensorflow as tf

    from export.formats.keras import limit_threads

    limit_threads(threads)
    try:
        model = tf.saved_model.load(path.parent)
        answer = model.signatures[SIGNATURE]
    except Exception as error:  # TensorFlow's are of many types
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise KilnError(f"{path} cannot be loaded by TensorFlow: {first}. Export it again with --force") from error
    _check_contract(path, answer)
    lock = threading.Lock()

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with lock:
            return np.asarray(answer(images=tf.constant(images))["probabilities"].numpy(), np.float32)

    return predict


def _check_contract(path: Path, answer: Any) -> None:
    given = {
        name: (spec.shape.as_list(), spec.dtype.name) for name, spec in answer.structured_input_signature[1].items()
    }
    made = {name: (spec.shape.as_list(), spec.dtype.name) for name, spec in answer.structured_outputs.items()}
    fits = set(given) == {"images"} and set(made) == {"probabilities"}
    if fits:
        (shape, kind), (result, answered) = given["images"], made["probabilities"]
        fits = len(shape) == 4 and len(result) == 2 and shape[0] is None and shape[3] == 3 and result[1] is not None
        fits = fits and (kind, answered) == ("uint8", "float32")
    if not fits:
        raise KilnError(
            f"{path} takes {given} and gives {made}; a model here takes one uint8 [N, H, W, 3] "
            "and gives one float32 [N, classes]. Export it again"
        )
