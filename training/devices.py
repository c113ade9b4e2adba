"""Data parallel training on one machine: every device holds the network and takes its share of a batch.

On JAX it is Keras' own `DataParallel`, on TensorFlow `MirroredStrategy`. Without GPUs, more than one device means
virtual ones made of the processor: no faster, but the same program, which is how it is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

import catalog
from catalog import KilnError


@contextmanager
def spread(keras: Any, asked: int) -> Iterator[int]:
    """Inside, networks are built on `asked` devices, or for 0 on every GPU there is; gives how many those are.

    Raises:
        KilnError: There are GPUs, but fewer than asked for; or the process has used its devices otherwise before.
    """
    jax = keras.backend.backend() == "jax"
    if asked > 1:
        _split_processor(jax, asked)
    names = gpus(keras)
    devices = asked or max(len(names), 1)
    if devices > len(names) > 0:
        raise KilnError(f"--devices {asked}: this machine has {len(names)} GPU{'s' if len(names) > 1 else ''}")
    names = names or keras.distribution.list_devices()
    if len(names) < devices:
        raise KilnError(f"--devices {asked}: a process can train on several devices only if it begins with that")
    if devices == 1:
        yield 1
    elif jax:
        parallel = keras.distribution.DataParallel(devices=names[:devices], auto_shard_dataset=False)
        with parallel.scope():
            yield devices
    else:
        import tensorflow as tf

        with tf.distribute.MirroredStrategy(names[:devices]).scope():
            yield devices


def gpus(keras: Any) -> list[str]:
    """Names of the GPUs Keras sees, `gpu:0` and on; TensorFlow's devices are not started by asking."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return [f"gpu:{number}" for number in range(len(tf.config.list_physical_devices("GPU")))]
    return [name for name in keras.distribution.list_devices() if "gpu" in name.lower() or "cuda" in name.lower()]


def gains_from_bfloat16(keras: Any) -> bool:
    """Whether a step with matrix products in bfloat16 is faster: on a GPU, or a processor made for it with TensorFlow.

    On a processor that only emulates them they are slower, and JAX has no such kernels for any processor.
    """
    made_for_it = {"avx512_bf16", "amx_bf16"} & catalog.processor()[1]
    return bool(gpus(keras)) or (keras.backend.backend() == "tensorflow" and bool(made_for_it))


def compiles(keras: Any, devices: int) -> bool:
    """Whether XLA makes steps faster: always on JAX; with TensorFlow on one GPU, since Keras refuses it to several."""
    return keras.backend.backend() == "jax" or (devices == 1 and bool(gpus(keras)))


def _split_processor(jax: bool, devices: int) -> None:
    """Makes virtual devices of the processor; does nothing where the backend has started or there are GPUs."""
    try:
        if jax:
            import jax as library

            library.config.update("jax_num_cpu_devices", devices)  # type: ignore[no-untyped-call]
            return
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    except RuntimeError:
        pass  # the backend has started; `spread` sees whether its devices are enough


def padded(x: NDArray[Any], devices: int) -> NDArray[Any]:
    """`x` with its last example repeated until every device has the same number."""
    missing = -len(x) % devices
    return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x
