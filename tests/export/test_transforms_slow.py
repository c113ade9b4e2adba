"""Transforms with their tools, for minutes: every network crosses, chains keep their promises, kills and resumes."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

import catalog
from catalog import Store, plugin_names, read_card, sha256_of
from export.transforms import MODEL, TransformCard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def patiently(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs `python -m MODULE …` as `run` does, for as long as several fine-tunings take."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=catalog.ROOT,
        env={**os.environ, "COLUMNS": "120", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=900,
    )


CROSS = """
import json, sys
from pathlib import Path
import keras, numpy
from catalog import Recipe
from export.tuning import twin
from training import network
name, folder, flip = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "flip"
keras.utils.set_random_seed(0)
logits = network.build(keras, name, (32, 32, 3), 10, Recipe(stem="half" if "resnet" in name else "default"))
rng = numpy.random.default_rng(0)
for layer in logits.layers:
    if type(layer).__name__ == "BatchNormalization":  # as trained ones are: not the identity
        layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
network.with_probabilities(keras, logits, flip=flip).save(folder / "there.keras")
crossed = twin.cross(folder / "there.keras")
changed = {name: [0.9 * array for array in arrays] for name, arrays in twin.weights_of(crossed.model).items()}
back = twin.cross_back(crossed, changed, folder / "back.keras")
again = twin.weights_of(twin.network_in(keras.saving.load_model(folder / "back.keras", compile=False)))
same = all(numpy.array_equal(a, b) for name in changed for a, b in zip(changed[name], again[name], strict=True))
print(json.dumps([crossed.largest_difference, back, same, sorted(again) == sorted(changed)]))
"""


@pytest.mark.parametrize("architecture", [*plugin_names("training.models"), "lenet-flip"])
def test_every_network_crosses_and_comes_back(architecture: str, tmp_path: Path) -> None:
    name, _, flip = architecture.partition("-")
    done = subprocess.run(
        [sys.executable, "-c", CROSS, name, str(tmp_path), flip],
        cwd=catalog.ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    there, back, same, named = json.loads(done.stdout.splitlines()[-1])
    assert there <= 1e-5 and back <= 1e-5 and same and named


def kernels(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Kernels by layer name; the file is read without Keras."""

    h5py: Any = importlib.import_module("h5py")  # it has no types
    with ZipFile(path) as archive, archive.open("model.weights.h5") as inner, h5py.File(inner) as file:
        layers = file["layers"]
        return {name: layers[name]["vars"]["0"][:] for name in layers if "0" in layers[name].get("vars", {})}


@pytest.mark.parametrize("text", ["prune80+cluster16+quantize_aware", "prune2of4"])
def test_a_stopped_chain_ends_in_the_same_weights_and_keeps_its_promises(
    trained: Store, tmp_path: Path, text: str
) -> None:
    for name, stop in (("straight", ()), ("stopped", ("STOP",))):
        done = patiently("tests.export.transform_tiny", trained.root, tmp_path / name, text, *stop)
        assert done.returncode == 0, done.stderr
    folders = sorted(path.name for path in (tmp_path / "straight").glob("[!.]*"))
    assert len(folders) == text.count("+") + 1
    for folder in folders:
        straight, stopped = (kernels(tmp_path / name / folder / MODEL) for name in ("straight", "stopped"))
        assert straight and all(np.array_equal(straight[name], stopped[name]) for name in straight)
        inner = {name: straight[name] for name in ("conv2d_1", "dense", "dense_1")}
        told = json.loads((tmp_path / "straight" / folder / "told.json").read_text())
        assert told["teacher_sha256"] == sha256_of(trained.model_dir("tiny") / MODEL)
        if text == "prune2of4":
            assert not np.any(inner.pop("conv2d_1") == 0)  # its 6 input channels come in no whole groups of 4
            groups = [(kernel == 0).T.reshape(-1, 4).sum(1) for kernel in inner.values()]
            assert all(group.min() >= 2 and group.mean() < 2.1 for group in groups)
        else:
            flat = np.concatenate([kernel.ravel() for kernel in inner.values()])
            assert np.mean(flat == 0) == pytest.approx(0.8, abs=0.01)
            assert "cluster16" not in folder or all(len(np.unique(kernel)) <= 16 for kernel in inner.values())
            assert not np.any(inner["conv2d_1"] == 0) or "cluster16" in folder
    ranges = [tmp_path / name / folders[-1] / "ranges.json" for name in ("straight", "stopped")]
    assert "quantize_aware" not in text or sha256_of(ranges[0]) == sha256_of(ranges[1])


COMMAND = ("--transforms", "prune80+quantize_aware", "--formats", "onnx", "--precisions", "int8")


@pytest.fixture(scope="module")
def copied(trained: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with `tiny` alone, to export transforms into."""
    store = Store(tmp_path_factory.mktemp("transforms"))
    shutil.copytree(
        trained.model_dir("tiny"), store.model_dir("tiny"), ignore=shutil.ignore_patterns("variants", "transforms")
    )
    return store


HEARS_INTERRUPTS = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
runpy.run_module("export", run_name="__main__")
"""


@contextmanager
def begun(store: Store) -> Iterator[subprocess.Popen[bytes]]:
    """An export whose first fine-tuning has taken its first steps; it is gone when the block ends."""
    command = [sys.executable, "-c", HEARS_INTERRUPTS, "tiny", *COMMAND, "--finetune-epochs", "500"]
    with subprocess.Popen(
        [*command, "--store", str(store.root)],
        cwd=catalog.ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            progress = store.transform_dir("tiny", ".prune80.checkpoints") / "progress.json"
            deadline = time.monotonic() + 400
            while not progress.is_file():
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_export_ended_while_it_fine_tunes_is_saved_and_leaves_no_half(copied: Store, number: int) -> None:
    with begun(copied) as process:
        process.send_signal(number)
        assert process.wait(100) == (130 if number == signal.SIGINT else -number)
    saved = copied.transform_dir("tiny", ".prune80.checkpoints") / "state"
    deadline = time.monotonic() + 60  # an orphaned worker saves and ends by itself
    while not list(saved.glob("e*-s*/state.json")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert not copied.transform_dir("tiny", "prune80").exists() and not copied.variants("tiny")
    shutil.rmtree(saved.parent)


def test_the_command_makes_a_chain_once_and_proves_what_comes_of_it(copied: Store) -> None:
    arguments = ("export", "tiny", *COMMAND, "--finetune-epochs", 2, "--store", copied.root)
    first = patiently(*arguments)
    assert first.returncode == 0, first.stderr
    folders = [copied.transform_dir("tiny", name) for name in ("prune80", "prune80-quantize_aware")]
    pruned, aware = (read_card(TransformCard, folder / catalog.CARD) for folder in folders)
    for folder, card in zip(folders, (pruned, aware), strict=True):
        copied.verify(folder, card.files)
    assert aware.source_sha256 == pruned.weights_sha256 != pruned.source_sha256 == pruned.parent_sha256
    assert set(aware.files) == {MODEL, "ranges.json"} and pruned.recipe["epochs"] == 2
    (made,) = copied.variants("tiny")
    assert made.variant.version == "prune80-quantize_aware-onnx-int8" and made.status == "ok"
    assert made.settings["transform_sha256"] == aware.weights_sha256
    assert made.settings["transform_told"]["zeros_kept"].keys() == {"dense", "dense_1"}  # conv2d_1 is spared
    assert pruned.settings["sparsity_reached"] == pytest.approx(0.8, abs=0.005)
    assert pruned.settings["teacher_sha256"] == aware.settings["teacher_sha256"] == ""  # a LeNet is better without
    assert made.weights and made.weights.zeros >= 0.79 * (2400 + 48000 + 10080)  # counted in the file
    assert made.settings["dense_by_tensor"]
    assert made.operators["QLinearConv"] == 2 and "--finetune-epochs 2" in made.command
    assert not list((copied.model_dir("tiny") / "transforms").glob(".*"))
    before = {path: path.stat().st_mtime_ns for path in copied.root.rglob("*") if path.is_file()}
    assert patiently(*arguments).returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in copied.root.rglob("*") if path.is_file()}
    page = patiently("export", "inspect", "tiny/prune80+quantize_aware-onnx-int8", "--store", copied.root)
    assert page.returncode == 0 and "prune80-quantize_aware" in page.stdout
