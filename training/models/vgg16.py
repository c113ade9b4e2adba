"""VGG-16 (Simonyan and Zisserman, 2014): its 13 convolutions with BatchNorm, global average, one dense layer.

The stem `imagenet` is the Keras application, without BatchNorm, as the report transferred it.
"""

from typing import Any

from catalog import Recipe
from training.imagenet import application
from training.models import Shape

PARAMETERS = 14_732_490
STEMS = ("default", "imagenet")

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions; each ends in a pool


def build(keras: Any, shape: Shape, classes: int, recipe: Recipe) -> Any:
    """uint8 `[N, H, W, 3]` to float32 logits `[N, classes]`."""
    layers = keras.layers
    if recipe.stem == "imagenet":
        image, x = application(keras, "VGG16", shape, recipe)
    else:
        image = keras.Input(shape, dtype="uint8", name="image")
        x = layers.Rescaling(1 / 255)(image)
        for channels, convolutions in _STAGES:
            for _ in range(convolutions):
                x = layers.Conv2D(channels, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
                x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
            x = layers.MaxPooling2D(2)(x)  # at last [N, 1, 1, 512]
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(recipe.dropout)(x) if recipe.dropout else x
    return keras.Model(image, layers.Dense(classes, dtype="float32", name="logits")(x), name="vgg16")


RECIPES = {
    "report": Recipe(
        optimizer="adam",
        learning_rate=1e-2,
        schedule="step",
        step_at=(1 / 3, 2 / 3),
        batch_size=32,
        epochs=30,
        stem="imagenet",
        weights="imagenet",
        frozen_layers=14,  # blocks 1 to 4
        where="cifar10",
        minutes=150,
        source="the student report: transfer, rates .01, .001, .0001 for 10 epochs each; it gave no figure",
    ),
    "cpu": Recipe(
        optimizer="sgd",
        learning_rate=0.1,
        schedule="onecycle",
        batch_size=128,
        epochs=12,
        weight_decay=5e-3,
        label_smoothing=0.05,
        augment="basic",
        average=0.995,
        validation=0.04,
        expects=85.0,
        where="cifar10",
        minutes=120,
        source="goal",
    ),
    "reference": Recipe(
        optimizer="sgd",
        learning_rate=0.1,
        schedule="cosine",
        warmup_epochs=5,
        batch_size=128,
        epochs=120,
        weight_decay=5e-3,
        label_smoothing=0.1,
        augment="basic",
        cutmix=1.0,
        average=0.999,
        mixed_precision=True,
        validation=0.02,
        expects=94.0,
        where="cifar10",
        minutes=6,
        source="goal; kuangliu/pytorch-cifar has 92.64",
    ),
}
