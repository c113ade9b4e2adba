"""AlexNet (Krizhevsky et al., 2012) fitted to 32x32: five 3x3 convolutions, overlapping pools, three dense layers.

The stem `half` gives the first convolution stride 2: a quarter of the work, for a CPU.
"""

from typing import Any

from catalog import Recipe
from training.models import Shape

PARAMETERS = 6_976_842
STEMS = ("default", "half")


def build(keras: Any, shape: Shape, classes: int, recipe: Recipe) -> Any:
    """uint8 `[N, H, W, 3]` to float32 logits `[N, classes]`."""
    layers = keras.layers
    image = keras.Input(shape, dtype="uint8", name="image")
    stride = 2 if recipe.stem == "half" else 1
    x = layers.Rescaling(1 / 255)(image)
    x = _convolution(layers, x, 64, stride)  # [N, 32, 32, 64]
    x = layers.MaxPooling2D(3, 2, padding="same")(x)  # [N, 16, 16, 64]
    x = _convolution(layers, x, 192)
    x = layers.MaxPooling2D(3, 2, padding="same")(x)  # [N, 8, 8, 192]
    x = _convolution(layers, x, 384)
    x = _convolution(layers, x, 256)
    x = _convolution(layers, x, 256)
    x = layers.MaxPooling2D(3, 2, padding="same")(x)  # [N, 4, 4, 256]
    x = layers.Flatten()(x)  # [N, 4096]
    x = layers.Dropout(recipe.dropout)(x)
    x = layers.Dense(1024, activation="relu", kernel_initializer="he_normal")(x)
    x = layers.Dropout(recipe.dropout)(x)
    x = layers.Dense(512, activation="relu", kernel_initializer="he_normal")(x)
    return keras.Model(image, layers.Dense(classes, dtype="float32", name="logits")(x), name="alexnet")


def _convolution(layers: Any, x: Any, channels: int, stride: int = 1) -> Any:
    return layers.Conv2D(
        channels, 3, strides=stride, padding="same", activation="relu", kernel_initializer="he_normal"
    )(x)


RECIPES = {
    "report": Recipe(
        optimizer="adam",
        schedule="cosine",
        batch_size=128,
        epochs=10,
        weight_decay=5e-4,
        dropout=0.3,
        augment="basic",
        expects=74.0,
        where="cifar10",
        minutes=55,
        source="the student report (it also tried dropout .5)",
    ),
    "cpu": Recipe(
        optimizer="adamw",
        learning_rate=1e-3,
        schedule="onecycle",
        batch_size=128,
        epochs=40,
        weight_decay=0.02,
        label_smoothing=0.05,
        dropout=0.3,
        augment="basic",
        average=0.998,
        stem="half",
        mixed_precision=True,
        validation=0.04,
        expects=82.2,
        where="cifar10",
        minutes=97,
        source="measured, seed 0: 82.23 in bfloat16 on one busy core of an AMD EPYC; the card is in results/training",
    ),
    "reference": Recipe(
        optimizer="sgd",
        learning_rate=0.05,
        schedule="cosine",
        warmup_epochs=5,
        batch_size=128,
        epochs=150,
        weight_decay=5e-3,
        label_smoothing=0.1,
        dropout=0.5,
        augment="basic",
        cutmix=1.0,
        average=0.999,
        mixed_precision=True,
        validation=0.02,
        expects=88.0,
        where="cifar10",
        minutes=5,
        source="goal",
    ),
}
