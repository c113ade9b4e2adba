"""ResNet-18 (He et al., 2015): basic blocks (2, 2, 2, 2) behind a 3x3 stem at stride 1, no max-pooling.

The stem `half` has stride 2: a quarter of the work, for a CPU.
"""

from typing import Any

from catalog import Recipe
from training.models import Shape

PARAMETERS = 11_183_562
STEMS = ("default", "half")

_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, stride of the first of two blocks


def build(keras: Any, shape: Shape, classes: int, recipe: Recipe) -> Any:
    """uint8 `[N, H, W, 3]` to float32 logits `[N, classes]`."""
    layers = keras.layers
    image, x = stem(keras, shape, recipe)
    for channels, stride in _STAGES:
        x = _basic(layers, x, channels, stride)
        x = _basic(layers, x, channels, 1)
    x = layers.GlobalAveragePooling2D()(x)  # [N, 512]
    return keras.Model(image, layers.Dense(classes, dtype="float32", name="logits")(x), name="resnet18")


def stem(keras: Any, shape: Shape, recipe: Recipe) -> tuple[Any, Any]:
    """Input uint8 `[N, H, W, 3]`, and 64 channels of it at full size, or at half with the stem `half`."""
    layers = keras.layers
    image = keras.Input(shape, dtype="uint8", name="image")
    stride = 2 if recipe.stem == "half" else 1
    return image, layers.ReLU()(convolution(layers, layers.Rescaling(1 / 255)(image), 64, 3, stride))


def convolution(layers: Any, x: Any, channels: int, kernel: int, stride: int = 1, gamma: str = "ones") -> Any:
    """A convolution without bias and its BatchNorm; the activation is the caller's.

    With `gamma` at zeros the last one of a block leaves the block the identity at first (Goyal et al., 2017).
    """
    x = layers.Conv2D(channels, kernel, strides=stride, padding="same", use_bias=False, kernel_initializer="he_normal")(
        x
    )
    return layers.BatchNormalization(momentum=0.9, gamma_initializer=gamma)(x)


def _basic(layers: Any, x: Any, channels: int, stride: int) -> Any:
    y = layers.ReLU()(convolution(layers, x, channels, 3, stride))
    y = convolution(layers, y, channels, 3, gamma="zeros")
    if stride != 1 or x.shape[-1] != channels:
        x = convolution(layers, x, channels, 1, stride)
    return layers.ReLU()(layers.Add()([x, y]))


RECIPES = {
    "report": Recipe(
        optimizer="adam",
        schedule="cosine",
        batch_size=128,
        epochs=10,
        weight_decay=1e-4,
        augment="basic",
        expects=88.0,
        where="cifar10",
        minutes=150,
        source="the student report",
    ),
    "cpu": Recipe(
        optimizer="sgd",
        learning_rate=0.2,
        schedule="onecycle",
        batch_size=128,
        epochs=20,
        weight_decay=5e-3,
        label_smoothing=0.05,
        augment="basic",
        average=0.995,
        stem="half",
        validation=0.04,
        expects=88.0,
        where="cifar10",
        minutes=110,
        source="goal",
    ),
    "reference": Recipe(
        optimizer="sgd",
        learning_rate=0.2,
        schedule="cosine",
        warmup_epochs=5,
        batch_size=256,
        epochs=120,
        weight_decay=5e-3,
        label_smoothing=0.1,
        augment="basic",
        cutmix=1.0,
        average=0.999,
        mixed_precision=True,
        validation=0.02,
        expects=95.5,
        where="cifar10",
        minutes=8,
        source="goal; airbench's standard training has 96.0",
    ),
}
