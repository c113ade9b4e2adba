"""Magnitude pruning by tensorflow-model-optimization: weights set to zero, a polynomial share of them step by step.

The files stay as large as they were and compress better; a dense runtime is not faster for it. The pattern 2:4 (two
zeros in every four weights along a kernel's input channels) is what sparse tensor cores take. Its masks are fixed at
the first step, as the tool has it.

The share holds for all pruned kernels together; how it is spread over them is decided by LAMP scores, because a wide
dense layer can lose far more than a narrow convolution (LeNet at 80%: the same share everywhere costs 3.5 points).

The first convolution and the last dense layer are left alone, as the tool's guide advises: they hold few weights, and
every image passes each of them. So are the smallest kernels between them, up to a twentieth of the weights together:
LeNet's second convolution has 4% of the weights and does 37% of the work. The others make up for them, the share holds
for all. Depthwise kernels cannot be pruned by the tool at all.
"""

from __future__ import annotations

from typing import Any

from catalog import KilnError
from export.transforms import MODEL, Tuning, Work

ORDER = 1
PACKAGES = ("tensorflow-model-optimization", "tf-keras", "keras", "tensorflow", "numpy")
LEVELS: dict[str, dict[str, Any]] = {
    "prune50": {"sparsity": 0.5},
    "prune80": {"sparsity": 0.8},
    "prune90": {"sparsity": 0.9},
    "prune2of4": {"zeros_of": [2, 4]},
}
# A network that hardly fits its training images has no weights to spare for a teacher's answers, and needs its own
# learning rate again, and longer (Renda et al., 2020): without four of five weights LeNet gains three quarters of a
# point by that, and SimCNN 0.6.
SMALL: dict[str, Any] = {"epochs": 0.6, "learning_rate": 1.0, "distill": 0.0}
TUNING = Tuning(epochs=0.3, learning_rate=0.5, at_least=3, distill=0.7, families={"lenet": SMALL, "simcnn": SMALL})
# Share of the steps over which the sparsity grows; the rest mends the masks that stay. The learning rate falls along a
# cosine over the whole run: at the ramp's end it is at 79% of its peak, with a ramp of half the run it would be at 50%.
RAMP = 0.3
UPDATES = 40  # how often the masks are chosen anew on the way


def apply(work: Work) -> dict[str, Any]:
    """Prunes the kernels while it fine-tunes; the zeros are in the weights that are written.

    Raises:
        KilnError: No kernel can be pruned so; and as `twin.cross` and `finetune.tune`.
    """
    import tensorflow_model_optimization as tfmot
    import tf_keras

    from export.transforms import _kernels
    from export.tuning import finetune, twin

    tf_keras.utils.set_random_seed(work.seed)
    crossed = twin.cross(work.keras_path)
    inner = _kernels.prunable(crossed.model, work.parameters)
    before = twin.weights_of(crossed.model)
    chosen = inner if "zeros_of" in work.parameters else _kernels.heavy(before, inner)
    if not chosen:
        raise KilnError(f"{work.level} finds nothing to prune between the first convolution and the last dense layer")
    steps = work.recipe.epochs * -(-len(work.dataset.x_train) // work.recipe.batch_size)
    sparse = tfmot.sparsity.keras
    if "zeros_of" in work.parameters:
        zeros = work.parameters["zeros_of"]
        shares = dict.fromkeys(chosen, zeros[0] / zeros[1])
    else:
        share = work.parameters["sparsity"] * _kernels.size(before, inner) / _kernels.size(before, chosen)
        zeros, shares = None, _kernels.lamp(before, chosen, share)

    def wrap(layer: Any) -> Any:
        if layer.name not in chosen:
            return layer
        schedule = _schedule(sparse, shares[layer.name], steps, gradual=zeros is None)
        return sparse.prune_low_magnitude(layer, schedule, sparsity_m_by_n=zeros)

    model = tf_keras.models.clone_model(_kernels.copy_of(tf_keras, crossed.model), clone_function=wrap)
    teacher, callbacks = twin.teacher(crossed, work), [sparse.UpdatePruningStep()]
    tuned = finetune.tune(tf_keras, model, work, callbacks=callbacks, teacher=teacher)
    weights = twin.weights_of(sparse.strip_pruning(model))
    difference = twin.cross_back(crossed, weights, work.folder / MODEL)
    return {
        **work.parameters,
        "teacher_sha256": work.taught_by,
        "ramp_share": 0.0 if zeros else RAMP,
        "pruned": _kernels.sparsity(weights, chosen),
        "sparsity_reached": _kernels.together(weights, inner),
        "left_dense": _kernels.others(crossed.model, chosen),
        "crossing_differences": [crossed.largest_difference, difference],
        "history": tuned.history,
    }


def _schedule(sparse: Any, share: float, steps: int, gradual: bool) -> Any:
    """When a kernel gets how sparse: at once, or from half of it up to it along a cubic (Zhu and Gupta, 2017)."""
    if not gradual:
        return sparse.ConstantSparsity(share, 0, frequency=1)
    end = max(round(RAMP * steps), 2)
    every = max(end // UPDATES, 1)
    return sparse.PolynomialDecay(share / 2, share, begin_step=0, end_step=end, power=3, frequency=every)
