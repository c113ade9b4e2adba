"""MobileNetV2 (Sandler et al., 2018) with strides for small images, or as the Keras application has it.

Stems: `cifar` halves 32x32 three times, late (94 M multiply-accumulates); `fast` three times, early (4x4 before the
pooling, four times as fast on a CPU); `imagenet` is the Keras application, which halves five times, to a single pixel.
"""

from typing import Any

from catalog import Recipe
from training.imagenet import application
from training.models import Shape

PARAMETERS = 2_270_794  # of every stem
STEMS = ("default", "cifar", "fast", "imagenet")

# expansion, channels, blocks: table 2 of the paper
_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
_STRIDES = {"cifar": (1, 1, 2, 2, 1, 2, 1), "fast": (1, 2, 2, 2, 1, 1, 1)}


def build(keras: Any, shape: Shape, classes: int, recipe: Recipe) -> Any:
    """uint8 `[N, H, W, 3]` to float32 logits `[N, classes]`."""
    layers = keras.layers
    if recipe.stem == "imagenet":
        image, x = application(keras, "MobileNetV2", shape, recipe)
    else:
        image = keras.Input(shape, dtype="uint8", name="image")
        x = _convolution(layers, layers.Rescaling(1 / 255)(image), 32, 3)  # [N, 32, 32, 32]
        strides = _STRIDES["cifar" if recipe.stem == "default" else recipe.stem]
        for (expansion, channels, blocks), stride in zip(_STAGES, strides, strict=True):
            for block in range(blocks):
                x = _inverted_residual(layers, x, expansion, channels, stride if block == 0 else 1)
        x = _convolution(layers, x, 1280, 1)  # [N, 4, 4, 1280]
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(recipe.dropout)(x) if recipe.dropout else x
    return keras.Model(image, layers.Dense(classes, dtype="float32", name="logits")(x), name="mobilenetv2")


def _convolution(layers: Any, x: Any, channels: int, kernel: int) -> Any:
    x = layers.Conv2D(channels, kernel, padding="same", use_bias=False)(x)
    return layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))


def _inverted_residual(layers: Any, x: Any, expansion: int, channels: int, stride: int) -> Any:
    """Widen 1x1, filter depthwise 3x3, narrow 1x1 without activation; added to its input where the shapes agree."""
    wide = _convolution(layers, x, expansion * x.shape[-1], 1) if expansion > 1 else x
    y = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(wide)
    y = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(y))
    y = layers.Conv2D(channels, 1, use_bias=False)(y)
    y = layers.BatchNormalization(momentum=0.9)(y)
    return layers.Add()([x, y]) if stride == 1 and x.shape[-1] == channels else y


RECIPES = {
    "report": Recipe(
        optimizer="adam",
        batch_size=32,
        epochs=25,
        stem="imagenet",
        weights="imagenet",
        expects=23.47,
        where="cifar10",
        minutes=30,
        source="the student report (another: 80 with Adam .01, crop and flip, cosine, 10 epochs)",
    ),
    "cpu": Recipe(
        optimizer="sgd",
        learning_rate=0.1,
        schedule="onecycle",
        batch_size=128,
        epochs=34,
        weight_decay=5e-3,
        label_smoothing=0.05,
        augment="basic",
        average=0.998,
        stem="fast",
        sizes=((0.0, 24), (0.6, 32)),
        validation=0.04,
        expects=90.4,
        where="cifar10",
        minutes=135,
        source="measured, seed 0: 90.38 on a busy 2-core Xeon 2.50 GHz; the minutes are those of its fastest epochs",
    ),
    "reference": Recipe(
        optimizer="sgd",
        learning_rate=0.2,
        schedule="cosine",
        warmup_epochs=5,
        batch_size=256,
        epochs=200,
        weight_decay=2e-3,
        label_smoothing=0.1,
        augment="basic",
        cutmix=1.0,
        average=0.999,
        dropout=0.2,
        mixed_precision=True,
        validation=0.02,
        expects=94.5,
        where="cifar10",
        minutes=20,
        source="goal; kuangliu/pytorch-cifar has 94.43 after 200 epochs",
    ),
}
