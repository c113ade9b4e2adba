"""One network a file, written against a Keras namespace, with the recipes that train it.

A model file defines

    PARAMETERS: int                # of the default stem at 32x32x3 and ten classes, moving statistics included
    RECIPES: dict[str, Recipe]     # `report`, `cpu`, `reference`, `quick`: see models.md
    STEMS: tuple[str, ...]         # what a recipe's `stem` may be, if not only "default"
    def build(keras, shape, classes, recipe) -> keras.Model   # uint8 [N, H, W, 3] -> logits [N, classes]

`keras` is Keras 3 on any backend, or `tf_keras` for the compression tools that know no other. BatchNorm directly
follows its convolution, and the activation follows it, because quantization-aware training folds only that.
"""

Shape = tuple[int | None, int | None, int]
"""Height, width, channels; None where a network takes images of any size."""
