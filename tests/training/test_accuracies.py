"""The cards that are kept with the project, and the page of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import catalog
from catalog import ROOT, Accuracy, Card, KilnError, Store
from training import accuracies
from training.models import cnn1
from training.seeds import FOLDER


def card(seed: int = 0, top1: float = 80.0, **changed: Any) -> Card:
    """A card of cnn1's cpu recipe."""
    one = catalog.from_json(Card, json.loads((ROOT / "zoo" / "lenet" / "card.json").read_text()))
    accuracy = Accuracy(round(100 * top1), 10_000, top1, top1 - 0.8, top1 + 0.8)
    told = {"model": "cnn1", "architecture": "cnn1", "recipe": cnn1.RECIPES["cpu"].decisive(), "seed": seed}
    return dataclasses.replace(one, **{**told, "accuracy": accuracy, "weights_sha256": f"{seed:064}", **changed})


def put(store: Store, one: Card, name: str = "") -> None:
    catalog.write_atomic(store.model_dir(name or one.model) / catalog.CARD, catalog.to_json(one))


def test_cards_of_current_recipes_are_kept_one_a_seed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    put(store, card())
    put(store, card(recipe={**cnn1.RECIPES["cpu"].decisive(), "epochs": 3}), "short")
    put(store, card(dataset=dataclasses.replace(card().dataset, name="digits")), "digits")
    put(Store(store.root / FOLDER), card(1, 81.0), "cnn1-cpu-1-0123abcd")
    taught = {**cnn1.RECIPES["cpu"].decisive(), "teacher": "mobilenetv2"}
    put(Store(store.root / FOLDER), card(1, 82.0, recipe=taught, weights_sha256="f" * 64), "cnn1-cpu-1-4567abcd")
    kept = accuracies.keep(store, tmp_path / "kept")
    assert [path.name for path in kept] == [
        "cnn1-cpu-from-mobilenetv2-seed1.json",
        "cnn1-cpu-seed0.json",
        "cnn1-cpu-seed1.json",
    ]
    again = accuracies.read(tmp_path / "kept", tmp_path / "no-zoo")
    assert sorted(one.accuracy.top1 for one in again) == [80.0, 81.0, 82.0]


def test_the_page_tells_intervals_of_one_seed_and_the_spread_of_several() -> None:
    taught = card(0, 82.5, recipe={**cnn1.RECIPES["cpu"].decisive(), "teacher": "mobilenetv2"})
    text = accuracies.page([card(1, 81.0), card(0, 80.0), taught])
    plain, distilled = (line for line in text.splitlines() if line.startswith("| cnn1"))
    expects = cnn1.RECIPES["cpu"].expects
    assert plain.startswith(f"| cnn1 | cpu |  | {expects:g} | 80.50 ± 0.71 (80.00, 81.00) | 2 |")
    assert distilled.startswith("| cnn1 | cpu | mobilenetv2 |  | 82.50 (81.70 to 83.30) | 1 |")
    assert "all 10,000 test images" in text and "by `cpu`: alexnet, cnn2" in text


def test_a_recipe_that_has_changed_since_is_told() -> None:
    text = accuracies.page([card(recipe={**cnn1.RECIPES["cpu"].decisive(), "epochs": 3})])
    assert "| cpu (the recipe has changed since) |" in text


def test_a_kept_card_names_no_folder_of_the_machine_it_was_made_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    told = "python -m training cnn1 --store /home/me/store --recipe cpu --root=/data --seed 3"
    put(store, card(command=told))
    (kept,) = accuracies.keep(store, tmp_path / "kept", tmp_path / "no-zoo")
    assert catalog.read_card(Card, kept).command == "python -m training cnn1 --recipe cpu --seed 3"


def test_one_seed_trained_twice_is_one_seed(tmp_path: Path) -> None:
    """By a recipe that has changed it is another row; by the same one the newer counts."""
    kept, zoo, recipe = tmp_path / "kept", tmp_path / "zoo", cnn1.RECIPES["cpu"].decisive()
    older = card(0, 85.0, weights_sha256="a" * 64, recipe={**recipe, "epochs": 13}, created="2026-01-01T00:00:00+00:00")
    store = Store(zoo)
    put(store, older, "cnn1")
    put(store, card(0, 87.0, created="2026-02-01T00:00:00+00:00"), "other")
    put(store, card(0, 86.0, weights_sha256="b" * 64, created="2026-01-02T00:00:00+00:00"), "third")
    accuracies.keep(store, kept, tmp_path / "no-zoo")
    assert [path.name for path in kept.iterdir()] == ["cnn1-cpu-seed0.json"]
    rows = [line for line in accuracies.page(accuracies.read(kept, zoo)).splitlines() if line.startswith("| cnn1")]
    assert [row.split("|")[5].strip()[:5] for row in rows] == ["87.00", "85.00"], (
        "the recipe as it is before what it was"
    )
    assert all(row.split("|")[6].strip() == "1" for row in rows)


def test_of_a_seed_in_the_zoo_the_served_model_is_told(tmp_path: Path) -> None:
    put(Store(tmp_path / "zoo"), card(0, 80.5, created="2026-01-01T00:00:00+00:00"))
    put(Store(tmp_path / "store"), card(0, 80.1, weights_sha256="b" * 64, created="2026-02-01T00:00:00+00:00"))
    put(Store(tmp_path / "store"), card(1, 80.2, weights_sha256="c" * 64), "second")
    kept = accuracies.keep(Store(tmp_path / "store"), tmp_path / "kept", tmp_path / "zoo")
    assert [path.name for path in kept] == ["cnn1-cpu-seed1.json"]
    found = accuracies.read(tmp_path / "kept", tmp_path / "zoo")
    assert sorted(one.accuracy.top1 for one in found) == [80.2, 80.5]


def test_a_recipe_field_that_came_later_changes_no_card(tmp_path: Path) -> None:
    recipe = cnn1.RECIPES["cpu"].decisive()
    del recipe["class_weights"]  # as if recipes had got it after this card
    old = card(recipe=recipe)
    assert accuracies.current(old) and "changed since" not in accuracies.page([old])


def test_the_arithmetic_of_a_training_is_told() -> None:
    assert "EPYC, bfloat16 |" in accuracies.page([card(device="EPYC", compute_dtype="bfloat16")])


def test_what_is_called_measured_has_its_card() -> None:
    shown = {(one.architecture, one.recipe_name) for one in accuracies.read() if accuracies.current(one)}
    for name in catalog.plugin_names("training.models"):
        for recipe_name, recipe in catalog.plugin("training.models", name).RECIPES.items():
            assert not recipe.source.startswith("measured") or (name, recipe_name) in shown, (name, recipe_name)


def test_a_file_that_is_no_card_is_named(tmp_path: Path) -> None:
    (tmp_path / "cnn1.json").write_text("{}")
    with pytest.raises(KilnError, match=r"cnn1\.json cannot be read as a card"):
        accuracies.read(tmp_path, tmp_path)


def test_the_committed_page_is_that_of_the_committed_cards() -> None:
    assert accuracies.PAGE.read_text(encoding="utf-8") == accuracies.page(accuracies.read())
