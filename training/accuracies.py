"""What each recipe reached: cards kept in `results/training/`, and the page of them.

A store lives and dies with its machine. The cards of what was trained on CIFAR-10 by a recipe as it is in
`training/models/` are kept with the project, one a seed; those of the zoo are kept there.
"""

from __future__ import annotations

import dataclasses
import shlex
import statistics
from collections.abc import Iterable
from pathlib import Path

import catalog
from catalog import CARD, ROOT, Card, Recipe, Store
from training.seeds import FOLDER, Seeds

KEPT, PAGE, ZOO = ROOT / "results" / "training", ROOT / "docs" / "accuracies.md", ROOT / "zoo"
DATASET = "cifar10"
Key = tuple[str, str, str, str, str]  # architecture, recipe, teacher, sha256 of its weights and of the recipe's content
HEAD = """# What the recipes reach

Written by `python -m training publish`; do not edit. Top-1 accuracy on all {images} test images of CIFAR-10, in
percent: of one seed with its 95% interval, of several their mean, standard deviation and each. No test image was looked
at before the end of a run. `expects` is what the recipe itself says; the cards are in `results/training/` and `zoo/`.
"""


def keep(store: Store, folder: Path = KEPT, zoo: Path = ZOO) -> list[Path]:
    """Copies the cards of a store's models that a recipe of `training/models/` made, those of `seeds` too.

    A seed whose model the zoo has, trained on another machine perhaps, is told of that one: it is what is served.
    """
    served = {(_key(card), card.seed) for card in _cards(zoo.glob(f"*/{CARD}"))}
    found = [one.card(name) for one in (store, Store(store.root / FOLDER)) for name in one.models()]
    kept: dict[Path, Card] = {}
    for card in sorted(found, key=lambda card: card.created):  # of one seed trained twice, the newer
        if card.dataset.name == DATASET and current(card) and (_key(card), card.seed) not in served:
            teacher = f"-from-{card.recipe['teacher'].replace('/', '-')}" if card.recipe.get("teacher") else ""
            kept[folder / f"{card.architecture}-{card.recipe_name}{teacher}-seed{card.seed}.json"] = card
    for path, card in kept.items():
        kept_so = dataclasses.replace(card, model=path.stem, command=anywhere(card.command))
        catalog.write_atomic(path, catalog.to_json(kept_so))
    return sorted(kept)


def anywhere(command: str) -> str:
    """A card's command without the folders of the machine that it ran on."""
    words = shlex.split(command)
    places = {number for number, word in enumerate(words) if word in ("--store", "--root")}
    kept = [word for number, word in enumerate(words) if not places & {number, number - 1}]
    return shlex.join(word for word in kept if not word.startswith(("--store=", "--root=")))


def current(card: Card) -> bool:
    """Whether a card's recipe is still the one of that name, but for a teacher and the views it was asked about."""
    recipe, was = recipe_of(card), card.whole_recipe
    added = {key: was[key] for key in ("teacher", "views") if was["teacher"]}
    return recipe is not None and was == {**recipe.decisive(), **added}


def recipe_of(card: Card) -> Recipe | None:
    """The recipe of the card's name, as it is now."""
    if card.architecture not in catalog.plugin_names("training.models"):
        return None
    found: Recipe | None = catalog.plugin("training.models", card.architecture).RECIPES.get(card.recipe_name)
    return found


def read(folder: Path = KEPT, zoo: Path = ZOO) -> list[Card]:
    """The cards that are kept; of the same recipe, teacher and seed in both places, the zoo's.

    Raises:
        KilnError: A card cannot be read.
    """
    cards = [*_cards(folder.glob("*.json")), *_cards(zoo.glob(f"*/{CARD}"))]
    found = {(_key(card), card.seed): card for card in cards}
    return [card for card in found.values() if card.dataset.name == DATASET and recipe_of(card) is not None]


def _cards(paths: Iterable[Path]) -> list[Card]:
    """The cards in these files, the oldest first."""
    return sorted((catalog.read_card(Card, path) for path in paths), key=lambda card: card.created)


def _key(card: Card) -> Key:
    """What cards of several seeds must share to be told together."""
    recipe = catalog.sha256_of_json(card.whole_recipe)
    return card.architecture, card.recipe_name, card.recipe.get("teacher", ""), card.teacher_sha256, recipe


def page(cards: Iterable[Card]) -> str:
    """The page in Markdown."""
    groups: dict[Key, list[Card]] = {}
    for card in sorted(cards, key=lambda card: card.seed):
        groups.setdefault(_key(card), []).append(card)
    images = {card.accuracy.images for same in groups.values() for card in same}
    lines = ["| model | recipe | teacher | expects | top-1 % | seeds | parameters | minutes | on | commit |"]
    lines += ["|---|---|---|--:|--:|--:|--:|--:|---|---|"]
    old = {key: not all(map(current, same)) for key, same in groups.items()}
    lines += [_row(key, groups[key]) for key in sorted(groups, key=lambda key: (*key[:3], old[key], *key[3:]))]
    head = HEAD.format(images=" or ".join(f"{count:,}" for count in sorted(images)) or "10,000")
    return "\n".join([head, *lines, "", _missing({key[:3] for key in groups}), ""])


def _row(key: Key, same: list[Card]) -> str:
    model, recipe_name, teacher, *_ = key
    newest = max(same, key=lambda card: card.created)
    recipe = recipe_of(newest)
    expects = f"{recipe.expects:g}" if recipe and recipe.expects and not teacher else ""
    minutes = statistics.mean(card.train_seconds for card in same) / 60
    changed = "" if all(map(current, same)) else " (the recipe has changed since)"
    cells = [model, recipe_name + changed, teacher, expects, _top1(key, same), str(len(same)), f"{newest.parameters:,}"]
    arithmetic = sorted({card.compute_dtype for card in same if card.compute_dtype not in ("", "float32")})
    device = ", ".join([newest.device, *arithmetic])
    cells += [f"{minutes:.0f}" if minutes >= 1 else f"{minutes:.1f}", device, f"`{newest.commit}`"]
    return f"| {' | '.join(cells)} |"


def _top1(key: Key, same: list[Card]) -> str:
    _, recipe_name, teacher, *_ = key
    first = same[0].accuracy
    if len(same) == 1:
        return f"{first.top1:.2f} ({first.low:.2f} to {first.high:.2f})"
    seeds = Seeds(recipe_name, teacher, [card.accuracy.top1 for card in same], first.images)
    each = ", ".join(f"{value:.2f}" for value in seeds.top1)
    return f"{seeds.mean:.2f} ± {seeds.spread:.2f} ({each})"


def _missing(there: set[tuple[str, str, str]]) -> str:
    told = []
    for recipe in ("cpu", "reference"):
        names = [
            name
            for name in catalog.plugin_names("training.models")
            if recipe in catalog.plugin("training.models", name).RECIPES and (name, recipe, "") not in there
        ]
        if names:
            told.append(f"by `{recipe}`: {', '.join(names)}")
    return f"Not trained yet {'; '.join(told)}." if told else ""
