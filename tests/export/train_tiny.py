"""Trains LeNet for a few steps on digits and writes its card: `python -m tests.export.train_tiny STORE`."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import catalog
from catalog import Accuracy, Card, Store


def main(root: str) -> None:
    import keras

    from training import data, network
    from training.models import lenet

    keras.utils.set_random_seed(0)
    digits, recipe = data.load("digits"), dataclasses.replace(lenet.RECIPES["report"], validation=0.1)
    model: Any = network.with_probabilities(keras, lenet.build(keras, (32, 32, 3), 10, recipe))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(digits.x_train, digits.y_train, batch_size=32, epochs=3, verbose=0)
    folder = Store(root).model_dir("tiny")
    folder.mkdir(parents=True)
    model.save(folder / "model.keras")
    right = model.predict(digits.x_test, verbose=0).argmax(1) == digits.y_test
    card = Card(
        model="tiny",
        architecture="lenet",
        recipe_name="report",
        recipe={**recipe.decisive()},
        seed=0,
        dataset=digits.info,
        accuracy=Accuracy.of(int(right.sum()), len(right)),
        train_top1=0.0,
        parameters=model.count_params(),
        macs=network.macs(model),
        weights_sha256=network.weights_sha256(model),
        train_seconds=0.0,
        device="cpu",
        versions={},
        commit="",
        command="",
        created=catalog.now(),
        files={"model.keras": catalog.sha256_of(folder / "model.keras")},
    )
    catalog.write_atomic(folder / catalog.CARD, catalog.to_json(card))


if __name__ == "__main__":
    main(sys.argv[1])
