"""Faster kernels for training on a CPU with TensorFlow: the same layers and weights, computed by better operations.

Keras 3 spells BatchNorm out as a dozen elementwise operations, half of a MobileNetV2 step; TensorFlow has one fused
operation forward and one backward for it. And a 1x1 convolution is a matrix product, which on the small maps of
the late blocks is up to four times as fast as the convolution's kernel. An optimizer's update of one variable is sixty
operations of Keras and one of TensorFlow: a ResNet50 spent a sixth of its step on them, and nine seconds of its start.
`python -m benchmarks.training_speed` measures what all of them give. Layers and optimizer stay what they are: what is
saved, exported or loaded never sees this module.
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


def update(keras: Any, optimizer: Any) -> None:
    """Swaps how an SGD, Adam or AdamW updates weights, decay and average, for this process only, on one device.

    The rules are those of Keras, to the rounding; other optimizers keep Keras' own.
    """
    kind, optimizers = type(optimizer), keras.optimizers
    if kind is optimizers.SGD and optimizer.momentum:
        optimizer._backend_update_step = _sgd(optimizer)
    elif kind in (optimizers.Adam, optimizers.AdamW) and not optimizer.amsgrad:
        optimizer._backend_update_step = _adam(optimizer)
    else:
        return
    optimizer._apply_weight_decay = _weight_decay(optimizer)
    optimizer._update_model_variables_moving_average = _moving_average(optimizer)


def _sgd(optimizer: Any) -> Callable[..., None]:
    import tensorflow as tf

    def step(grads: Any, variables: Any, learning_rate: Any) -> None:
        for gradient, variable in zip(grads, variables, strict=True):
            momentum = optimizer.momentums[optimizer._get_variable_index(variable)]
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=variable.value.handle,
                accum=momentum.value.handle,
                lr=learning_rate,
                grad=gradient,
                momentum=optimizer.momentum,
                use_nesterov=optimizer.nesterov,
                use_locking=True,
            )

    return step


def _adam(optimizer: Any) -> Callable[..., None]:
    import tensorflow as tf

    def step(grads: Any, variables: Any, learning_rate: Any) -> None:
        count = tf.cast(optimizer.iterations.value + 1, tf.float32)
        powers = {"beta1_power": tf.pow(optimizer.beta_1, count), "beta2_power": tf.pow(optimizer.beta_2, count)}
        for gradient, variable in zip(grads, variables, strict=True):
            index = optimizer._get_variable_index(variable)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.value.handle,
                m=optimizer._momentums[index].value.handle,
                v=optimizer._velocities[index].value.handle,
                **powers,
                lr=learning_rate,
                beta1=optimizer.beta_1,
                beta2=optimizer.beta_2,
                epsilon=optimizer.epsilon,
                grad=gradient,
                use_locking=True,
            )

    return step


def _weight_decay(optimizer: Any) -> Callable[..., None]:
    """Decoupled: a share of each weight, by the learning rate, apart from the gradient."""

    def decay(variables: Any) -> None:
        decayed = [v for v in variables if optimizer.weight_decay and optimizer._use_weight_decay(v)]
        if decayed:
            _towards([(v, v.value) for v in decayed], optimizer.learning_rate * optimizer.weight_decay)

    return decay


def _moving_average(optimizer: Any) -> Callable[..., None]:
    import tensorflow as tf

    def average(variables: Any) -> None:
        begun = tf.cast(tf.not_equal(optimizer.iterations.value, 0), tf.float32)  # the first step's are copied
        averages = zip(optimizer._model_variables_moving_average, variables, strict=True)
        _towards([(a, a.value - v.value) for a, v in averages], 1 - begun * optimizer.ema_momentum)

    return average


def _towards(changes: list[tuple[Any, Any]], share: Any) -> None:
    """Takes `share` of each change off its variable, one operation each."""
    import tensorflow as tf

    for variable, change in changes:
        tf.raw_ops.ResourceApplyGradientDescent(var=variable.value.handle, alpha=share, delta=change, use_locking=True)
