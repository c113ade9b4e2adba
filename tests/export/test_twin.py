"""The crossings between Keras 3 and tf_keras: whatever differs by more than 1e-5 in a probability does not cross."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.tuning import twin
from tests.export import residual
from training import network as networks


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import keras

    path = tmp_path_factory.mktemp("twin") / "model.keras"
    networks.with_probabilities(keras, residual.logits()).save(path)
    return path


@pytest.fixture(scope="module")
def crossed(path: Path) -> twin.Twin:
    return twin.cross(path)


def astray(monkeypatch: pytest.MonkeyPatch, size: float, only: Any = None) -> None:
    """Lets one bias differ by `size` on its way, to any network or to one."""
    carry = twin._carry

    def wrong(source: Any, arrays: twin.Weights, target: Any) -> None:
        carry(source, arrays, target)
        if only is None or target is only:
            kernel, bias = target.get_layer("logits").get_weights()
            bias[0] += size
            target.get_layer("logits").set_weights([kernel, bias])

    monkeypatch.setattr(twin, "_carry", wrong)


def test_equal_networks_cross_and_come_back(crossed: twin.Twin, tmp_path: Path) -> None:
    assert crossed.largest_difference <= 1e-5
    assert twin.cross_back(crossed, {}, tmp_path / "back.keras") <= 1e-5


def test_a_twin_of_other_weights_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    astray(monkeypatch, 1e-3)
    with pytest.raises(RuntimeError, match=r"the tf_keras twin of model\.keras differs by .*e-0[45] in a probability"):
        twin.cross(path)


def test_a_file_of_other_weights_is_an_error(
    crossed: twin.Twin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed = {"logits": [array * 0.9 for array in twin.weights_of(crossed.model)["logits"]]}
    assert twin.cross_back(crossed, changed, tmp_path / "back.keras") <= 1e-5
    astray(monkeypatch, 1e-3, only=crossed.logits)
    with pytest.raises(RuntimeError, match=r"back\.keras differs by .*e-0[45] in a probability from the network"):
        twin.cross_back(crossed, changed, tmp_path / "back.keras")


def test_weights_of_other_shapes_are_an_error(crossed: twin.Twin) -> None:
    other = {"logits": twin.weights_of(crossed.model)["last"]}
    with pytest.raises(RuntimeError, match="the layer logits has weights of other shapes in its twin"):
        twin._carry(Renamed(crossed.model), other, crossed.logits)


class Renamed:
    """A network whose layer `logits` is another one."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def get_layer(self, name: str) -> Any:
        return self.model.get_layer("last")


def test_the_largest_difference_of_a_probability_is_found(crossed: twin.Twin) -> None:
    import keras

    other = keras.models.clone_model(crossed.logits)
    other.set_weights(crossed.logits.get_weights())
    assert twin.disagreement(crossed.logits, other) == 0
    kernel, bias = other.get_layer("logits").get_weights()
    other.get_layer("logits").set_weights([kernel, bias + np.eye(10, dtype=np.float32)[0] * 20])
    assert twin.disagreement(crossed.logits, other) > 0.5  # nearly all of it goes to one class
