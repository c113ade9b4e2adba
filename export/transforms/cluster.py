"""Weight clustering by tensorflow-model-optimization: each kernel holds a few distinct values, which compress well.

Centroids begin as k-means++ has them and are trained on. Behind pruning, zeros stay zeros (the tool's
sparsity-preserving way): one of the centroids is held at zero. The first convolution is left alone, as the tool's guide
advises, and so is a kernel with too few weights to be worth it. Depthwise kernels the tool cannot cluster at all.
"""

from __future__ import annotations

from typing import Any

from catalog import KilnError
from export.transforms import MODEL, Tuning, Work

ORDER = 2
PACKAGES = ("tensorflow-model-optimization", "tf-keras", "keras", "tensorflow", "numpy")
LEVELS: dict[str, dict[str, Any]] = {"cluster16": {"clusters": 16}, "cluster32": {"clusters": 32}}
TUNING = Tuning(epochs=0.05, learning_rate=0.05, at_least=2, distill=0.7, families={"lenet": {"distill": 0.0}})
WORTH = 16  # weights a centroid at least


def apply(work: Work) -> dict[str, Any]:
    """Clusters the kernels while it fine-tunes; no kernel that was chosen has more values than clusters.

    Raises:
        KilnError: No kernel is large enough; and as `twin.cross` and `finetune.tune`.
    """
    import tensorflow_model_optimization as tfmot
    import tf_keras
    from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster as experimental

    from export.transforms import _kernels
    from export.tuning import finetune, twin

    tf_keras.utils.set_random_seed(work.seed)
    crossed = twin.cross(work.keras_path)
    count = work.parameters["clusters"]
    chosen = [
        layer.name
        for layer in _kernels.kernels(crossed.model)[1:]
        if layer.kernel.shape.num_elements() >= WORTH * count
    ]
    if not chosen:
        raise KilnError(f"{work.level} finds no kernel of {WORTH * count} weights behind the first convolution")
    sparse = [name for name, share in _kernels.sparsity(twin.weights_of(crossed.model), chosen).items() if share > 0.1]

    def wrap(layer: Any) -> Any:
        if layer.name not in chosen:
            return layer
        return experimental.cluster_weights(
            layer,
            number_of_clusters=count,
            cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
            preserve_sparsity=layer.name in sparse,
        )

    model = tf_keras.models.clone_model(_kernels.copy_of(tf_keras, crossed.model), clone_function=wrap)
    tuned = finetune.tune(tf_keras, model, work, teacher=twin.teacher(crossed, work))
    weights = twin.weights_of(tfmot.clustering.keras.strip_clustering(model))
    difference = twin.cross_back(crossed, weights, work.folder / MODEL)
    return {
        **work.parameters,
        "teacher_sha256": work.taught_by,
        "distinct": _kernels.distinct(weights, chosen),
        "zeros_kept": _kernels.sparsity(weights, sparse),
        "left_alone": _kernels.others(crossed.model, chosen),
        "crossing_differences": [crossed.largest_difference, difference],
        "history": tuned.history,
    }
