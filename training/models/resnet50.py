"""ResNet-50 (He et al., 2015): bottleneck blocks (3, 4, 6, 3) behind a stem for small images, or the Keras application.

Stems: `cifar` is 3x3 at stride 1 and no pooling (1.3 G multiply-accumulates); `half` is 3x3 at stride 2 (four times as
fast); `imagenet` is the Keras application, with the report's dense layer of 1,024 on top.
"""

from typing import Any

from catalog import Recipe
from training.imagenet import application
from training.models import Shape
from training.models.resnet18 import convolution, stem

PARAMETERS = 23_573_962
STEMS = ("default", "cifar", "half", "imagenet")

_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # channels, blocks, stride of the first


def build(keras: Any, shape: Shape, classes: int, recipe: Recipe) -> Any:
    """uint8 `[N, H, W, 3]` to float32 logits `[N, classes]`."""
    layers = keras.layers
    if recipe.stem == "imagenet":
        image, x = application(keras, "ResNet50", shape, recipe)
        x = layers.Dense(1024, activation="relu")(layers.GlobalAveragePooling2D()(x))
    else:
        image, x = stem(keras, shape, recipe)
        for channels, blocks, stride in _STAGES:
            for block in range(blocks):
                x = _bottleneck(layers, x, channels, stride if block == 0 else 1)
        x = layers.GlobalAveragePooling2D()(x)  # [N, 2048]
    return keras.Model(image, layers.Dense(classes, dtype="float32", name="logits")(x), name="resnet50")


def _bottleneck(layers: Any, x: Any, channels: int, stride: int) -> Any:
    """Narrow 1x1, filter 3x3, widen 1x1 to four times `channels`, and add; the stride sits on the 3x3."""
    y = layers.ReLU()(convolution(layers, x, channels, 1))
    y = layers.ReLU()(convolution(layers, y, channels, 3, stride))
    y = convolution(layers, y, 4 * channels, 1, gamma="zeros")
    if stride != 1 or x.shape[-1] != 4 * channels:
        x = convolution(layers, x, 4 * channels, 1, stride)
    return layers.ReLU()(layers.Add()([x, y]))


RECIPES = {
    "report": Recipe(
        optimizer="adam",
        batch_size=64,
        epochs=15,
        stem="imagenet",
        weights="imagenet",
        expects=79.29,
        where="cifar10",
        minutes=55,
        source="the student report, which took a softmax for logits; here it is not",
    ),
    "cpu": Recipe(
        optimizer="adamw",
        learning_rate=2e-3,
        schedule="onecycle",
        batch_size=128,
        epochs=20,
        weight_decay=0.05,
        label_smoothing=0.05,
        augment="basic",
        average=0.995,
        stem="half",
        sizes=((0.0, 16), (0.46, 24), (0.77, 32)),
        mixed_precision=True,
        validation=0.04,
        expects=88.7,
        where="cifar10",
        minutes=125,
        source="measured, seed 0: 88.69 in bfloat16 on one core of an AMD EPYC; minutes of its fastest epochs",
    ),
    "reference": Recipe(
        optimizer="sgd",
        learning_rate=0.1,
        schedule="cosine",
        warmup_epochs=5,
        batch_size=128,
        epochs=100,
        weight_decay=5e-3,
        label_smoothing=0.1,
        augment="basic",
        cutmix=1.0,
        average=0.999,
        mixed_precision=True,
        validation=0.02,
        expects=95.5,
        where="cifar10",
        minutes=15,
        source="goal; kuangliu/pytorch-cifar has 93.62",
    ),
}
