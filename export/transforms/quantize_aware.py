"""Quantization-aware training by tensorflow-model-optimization: int8 in the forward pass while it fine-tunes.

The network learns to live with rounded weights and activations. Written are its plain weights and, in `ranges.json`,
the range it learned for every activation, which int8 ONNX and OpenVINO take in place of measured ones; LiteRT measures.
Behind pruning and clustering, zeros stay zeros and the distinct values few (the tool's prune- and cluster-preserving
schemes, per layer).

Kernels are rounded by output channel, depthwise ones too, and by tensor in dense layers: as they are exported.

The pixels are not rounded in training, because in an int8 graph the byte is the quantized value. The ranges begin where
the float network's activations lie on training images: the tool's own start at -6 and 6 would take thousands of steps
of a moving average to get there. The epoch that does best on the validation split is kept, be it none: where rounding
costs little to begin with, a fine-tuning may cost more.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import KilnError
from export import compression
from export.transforms import MODEL, RANGES, Tuning, Work

ORDER = 3
PACKAGES = ("tensorflow-model-optimization", "tf-keras", "keras", "tensorflow", "numpy")
LEVELS: dict[str, dict[str, Any]] = {"quantize_aware": {"bits": 8}}
TUNING = Tuning(epochs=0.05, learning_rate=0.05, at_least=2, distill=0.7, families={"lenet": {"distill": 0.0}})
CALIBRATION_BATCHES = 8
DEPTHWISE = "DepthwiseConv2D"
UNTOUCHED = ("InputLayer", "Rescaling")


def apply(work: Work) -> dict[str, Any]:
    """Fine-tunes under fake quantization; writes plain weights and the learned ranges.

    Raises:
        KilnError: The tool cannot quantize a layer; and as `twin.cross` and `finetune.tune`.
    """
    import tf_keras

    from export.onnx import learned
    from export.transforms import _kernels
    from export.tuning import finetune, twin

    tf_keras.utils.set_random_seed(work.seed)
    crossed = twin.cross(work.keras_path)
    before = twin.weights_of(crossed.model)
    plan = _plan(crossed.model, before)
    model = _quantized(tf_keras, crossed.model, plan)
    _begin_ranges(tf_keras, crossed.model, model, work)
    _begin_scales(model)
    tuned = finetune.tune(tf_keras, model, work, teacher=twin.teacher(crossed, work), keep_best=True)
    weights = {name: _plain(model, crossed.model.get_layer(name), before[name], plan.get(name, "")) for name in before}
    difference = twin.cross_back(crossed, weights, work.folder / MODEL)
    ranges = learned.Learned(
        {name: (float(low.numpy()), float(high.numpy())) for name, (low, high) in _activations(model).items()},
        {layer.name: _limits(layer, weights[layer.name][0]) for layer in crossed.model.layers if _has_kernel(layer)},
    )
    learned.write(ranges, work.folder / RANGES)
    preserved = [name for name, kind in plan.items() if kind]
    return {
        **work.parameters,
        "teacher_sha256": work.taught_by,
        "zeros_kept": _kernels.sparsity(weights, [name for name in preserved if np.any(before[name][0] == 0)]),
        "distinct_kept": _kernels.distinct(weights, [name for name in preserved if plan[name] == "clusters"]),
        "fake_quantized_val_accuracy": tuned.kept.get("val_accuracy"),
        "kept_epoch": tuned.kept["epoch"],
        "crossing_differences": [crossed.largest_difference, difference],
        "history": tuned.history,
    }


def _has_kernel(layer: Any) -> bool:
    return type(layer).__name__ in ("Conv2D", DEPTHWISE, "Dense")


def _plan(model: Any, weights: dict[str, list[NDArray[Any]]]) -> dict[str, str]:
    """What must be kept of each kernel: `clusters` (and zeros among them), `zeros`, or nothing."""
    from export.transforms import _kernels

    plan = {}
    for layer in _kernels.kernels(model):
        kernel = weights[layer.name][0]
        few, many_zeros = compression.clustered(kernel), compression.pruned(kernel)
        plan[layer.name] = "clusters" if few else "zeros" if many_zeros else ""
    return plan


def _quantized(tf_keras: Any, network: Any, plan: dict[str, str]) -> Any:
    """The network with the tool's wrappers, each layer by the scheme that keeps what `plan` says of it.

    Raises:
        KilnError: A layer or an order of layers that the tool does not know.
    """
    from tensorflow_model_optimization.python.core.quantization.keras import quantize
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.cluster_preserve import (
        cluster_preserve_quantize_registry as clusters,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
        prune_preserve_quantize_registry as zeros,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_registry as default,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_scheme as scheme,
    )

    class PerLayer(default.Default8BitQuantizeRegistry):  # type: ignore[misc]  # untyped
        def get_quantize_config(self, layer: Any) -> Any:
            kind = plan.get(layer.name, "")
            if kind == "clusters":
                sparse = bool(np.any(layer.get_weights()[0] == 0))
                return clusters.Default8bitClusterPreserveQuantizeRegistry(sparse).get_quantize_config(layer)
            if kind == "zeros":
                return zeros.Default8bitPrunePreserveQuantizeRegistry().get_quantize_config(layer)
            config = super().get_quantize_config(layer)
            if type(layer).__name__ == DEPTHWISE:
                config = default.Default8BitQuantizeConfig(config.weight_attrs, config.activation_attrs, False)
                config.weight_quantizer = _by_filter(tf_keras)
            return config

    class Scheme(scheme.Default8BitQuantizeScheme):  # type: ignore[misc]
        def get_quantize_registry(self) -> Any:
            return PerLayer()

    def centroids_of(layer: Any, kernel: Any, data_format: Any) -> tuple[Any, Any, Any, bool]:
        found, places = clusters.get_unique(kernel)
        return found, len(found), places, False

    # The tool takes a convolution in which every channel holds all centroids for one that was clustered by channel,
    # and lets those of each channel go their own way: 16 values become 16 a channel.
    clusters.get_centroids = centroids_of

    def annotate(layer: Any) -> Any:
        return layer if type(layer).__name__ in UNTOUCHED else quantize.quantize_annotate_layer(layer)

    try:
        annotated = tf_keras.models.clone_model(network, clone_function=annotate)
        annotated.set_weights(network.get_weights())
        return quantize.quantize_apply(annotated, Scheme())
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise KilnError(f"{network.name} cannot be trained quantization-aware: {first}") from error


def _by_filter(tf_keras: Any) -> Any:
    """A quantizer of depthwise kernels that has a range for every filter, as integer runtimes have.

    The tool's own takes the last axis for the channels, which in a depthwise kernel is the multiplier: one range for
    all filters, whose magnitudes BatchNorm lets differ by orders.
    """
    import tensorflow as tf
    from tensorflow_model_optimization.python.core.quantization.keras import quantizers

    class ByFilter(quantizers.LastValueQuantizer):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            super().__init__(num_bits=8, per_axis=True, symmetric=True, narrow_range=True)

        def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
            def limit(end: str, value: float) -> Any:
                start = tf_keras.initializers.Constant(value)
                shape = (tensor_shape[-2] * tensor_shape[-1],)
                return layer.add_weight(f"{name}_{end}", shape=shape, initializer=start, trainable=False)

            return {"min_var": limit("min", -6.0), "max_var": limit("max", 6.0)}

        def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
            tall, wide, channels, multiplier = inputs.shape
            flat = tf.reshape(inputs, (tall * wide, channels * multiplier))
            return tf.reshape(super().__call__(flat, training, weights, **kwargs), inputs.shape)

    return ByFilter()


def _activations(model: Any) -> dict[str, tuple[Any, Any]]:
    """The variables of each learned activation range, by the name of the plain layer whose output it is."""
    found = {}
    for wrapper in model.layers:
        named = {weight.name.split(":")[0].rpartition("/")[2]: weight for weight in wrapper.weights}
        for prefix in ("post_activation", "output"):
            if f"{prefix}_min" in named:
                found[wrapper.layer.name] = named[f"{prefix}_min"], named[f"{prefix}_max"]
    return found


def _begin_ranges(tf_keras: Any, network: Any, model: Any, work: Work) -> None:
    """Sets every activation range to the mean over batches of the float network's smallest and largest value."""
    variables = _activations(model)
    names = list(variables)
    watch = tf_keras.Model(network.inputs, [network.get_layer(name).output for name in names])
    size = work.recipe.batch_size
    picked = np.random.default_rng(work.seed).permutation(len(work.dataset.x_train))[: CALIBRATION_BATCHES * size]
    lows, highs = [], []
    for start in range(0, len(picked), size):
        outputs = watch(work.dataset.x_train[np.sort(picked[start : start + size])], training=False)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        lows.append([min(float(np.min(output)), 0.0) for output in outputs])
        highs.append([max(float(np.max(output)), 0.0) for output in outputs])
    for name, low, high in zip(names, np.mean(lows, axis=0), np.mean(highs, axis=0), strict=True):
        variables[name][0].assign(low)
        variables[name][1].assign(high)


def _begin_scales(model: Any) -> None:
    """Sets every kernel's range to its largest magnitude, so that the network can be measured before its first step."""
    for wrapper in model.layers:
        for kernel, _, kept in getattr(wrapper, "_weight_vars", []):
            size = np.abs(kernel.numpy())
            largest = (
                size.reshape(-1, kept["max_var"].shape[0]).max(axis=0) if kept["max_var"].shape.rank else size.max()
            )
            kept["min_var"].assign(-largest)
            kept["max_var"].assign(largest)


def _plain(model: Any, layer: Any, before: list[NDArray[Any]], kind: str) -> list[NDArray[Any]]:
    """A layer's trained weights in Keras' order, out of its wrapper, with the zeros and clusters it had to keep."""
    wrapper = next(found for found in model.layers if getattr(getattr(found, "layer", None), "name", "") == layer.name)
    named = {weight.name.split(":")[0].rpartition("/")[2]: weight for weight in wrapper.weights}
    values = [named[weight.name.split(":")[0].rpartition("/")[2]].numpy() for weight in layer.weights]
    if kind == "clusters":
        values[0] = _clustered(wrapper)
    elif kind == "zeros":
        values[0] = values[0] * (before[0] != 0)
    return values


def _clustered(wrapper: Any) -> NDArray[Any]:
    """The kernel as its centroids have it now: the tool leaves the one before the last step in the layer."""
    _, _, kept = wrapper._weight_vars[0]
    centroids, original = kept["cluster_centroids_tf"], kept["ori_weights_vars_tf"]
    if "sparsity_mask" in kept:
        centroids.assign(centroids * kept["centroids_mask"])
        original.assign(original * kept["sparsity_mask"])
    implementation = kept["clst_impl"]
    kernel: NDArray[Any] = implementation.get_clustered_weight(
        implementation.get_pulling_indices(original), original
    ).numpy()
    return kernel


def _limits(layer: Any, kernel: NDArray[Any]) -> list[float]:
    """The largest magnitude the weight quantizer sees: by output channel, or one for a dense layer."""
    size = np.abs(kernel)
    if type(layer).__name__ == "Dense":
        return [float(size.max())]
    channels = math.prod(size.shape[-2:]) if type(layer).__name__ == DEPTHWISE else size.shape[-1]
    return [float(value) for value in size.reshape(-1, channels).max(axis=0)]
