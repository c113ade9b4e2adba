"""Faster kernels for training on a CPU with TensorFlow: the same layers and weights, computed by better operations.

Keras 3 spells BatchNorm out as a dozen elementwise operations, half of a MobileNetV2 step; TensorFlow has one fused
operation forward and one backward for it. And a 1x1 convolution is a matrix product, which on the small maps of
the late blocks is up to four times as fast as the convolution's kernel. `python -m benchmarks.training_speed` measures
what both give. The layers stay what they are: what is saved, exported or loaded never sees this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def use(keras: Any, model: Any) -> None:
    """Swaps the `call` of every BatchNorm and 1x1 convolution of `model` that gains from it, for this process only."""
    for layer in model._flatten_layers(include_self=False):
        if type(layer) is keras.layers.BatchNormalization and layer.axis in (-1, 3):
            layer.call = _fused_batch_norm(layer)
        elif type(layer) is keras.layers.Conv2D and _is_matrix_product(layer):
            layer.call = _as_matrix_product(layer)


def _fused_batch_norm(layer: Any) -> Callable[..., Any]:
    """`FusedBatchNormV3`, which normalizes, and in training gives the batch's mean and variance, in one operation."""
    import tensorflow as tf

    plain = layer.call

    def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if (
            mask is not None
            or inputs.shape.rank != 4
            or inputs.dtype not in (tf.float32, tf.bfloat16)
            or not (layer.scale and layer.center)
        ):
            return plain(inputs, training=training, mask=mask)
        updating = bool(training) and layer.trainable
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=layer.gamma.value,
            offset=layer.beta.value,
            mean=[] if updating else layer.moving_mean.value,
            variance=[] if updating else layer.moving_variance.value,
            epsilon=layer.epsilon,
            is_training=updating,
        )
        if updating:
            count = tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32)
            variance *= (count - 1) / count  # the operation gives the unbiased one, Keras averages the other
            keep = layer.momentum
            layer.moving_mean.assign(layer.moving_mean.value * keep + mean * (1 - keep))
            layer.moving_variance.assign(layer.moving_variance.value * keep + variance * (1 - keep))
        return outputs

    return call


def _is_matrix_product(layer: Any) -> bool:
    plain = not layer.use_bias and layer.groups == 1 and layer.dilation_rate == (1, 1)
    return plain and layer.kernel_size == (1, 1) and layer.data_format == "channels_last"


def _as_matrix_product(layer: Any) -> Callable[..., Any]:
    """A 1x1 convolution as `[N * H * W, in] @ [in, out]`, after taking every `stride`-th pixel."""
    import tensorflow as tf

    down, across = layer.strides

    def call(inputs: Any) -> Any:
        x = inputs[:, ::down, ::across] if (down, across) != (1, 1) else inputs
        kernel = layer.kernel.value[0, 0]  # [in, out]
        product = tf.matmul(tf.reshape(x, (-1, kernel.shape[0])), kernel)
        y = tf.reshape(product, tf.concat([tf.shape(x)[:-1], kernel.shape[1:]], 0))
        y.set_shape([*x.shape[:-1], kernel.shape[1]])
        return layer.activation(y)

    return call
