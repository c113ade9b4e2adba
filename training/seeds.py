"""The same recipe with several seeds, with and without a teacher: what of an accuracy is the recipe's, what is luck."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import catalog
import console
from catalog import Card, Store
from training.job import Job, finished, start_over

FOLDER = ".seeds"  # inside the store, where no command looks for models


@dataclass(frozen=True)
class Seeds:
    """Top-1 accuracies on the whole test split in percent, one a seed."""

    recipe: str
    teacher: str
    top1: list[float]
    images: int

    @property
    def mean(self) -> float:
        """Percent."""
        return statistics.mean(self.top1)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds (n - 1) in points; 0 for one seed."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else 0.0


def run(job: Job, seeds: int, train: Callable[[Job], Card], force: bool = False) -> tuple[Seeds, list[Card]]:
    """Trains `job` with seeds 0, 1, …; one that is trained already, here or in the store, is taken as it is.

    With `force` none is taken of the user's own; call `forget` first.
    """
    cards = []
    for one in _each(job, seeds):
        cards.append((None if force else find(one, job.store)) or find(one, one.store) or train(one))
    top1 = [card.accuracy.top1 for card in cards]
    return Seeds(job.recipe_name, job.recipe.teacher, top1, cards[0].accuracy.images), cards


def forget(job: Job, seeds: int) -> None:
    """Of these seeds nothing is trained any more: one that is stopped may go on, and takes no old one for a new one."""
    for one in _each(job, seeds):
        start_over(one)


def _each(job: Job, seeds: int) -> Iterator[Job]:
    inner = Store(job.store.root / FOLDER)
    for seed in range(seeds):
        one = dataclasses.replace(job, seed=seed, store=inner)
        yield dataclasses.replace(one, model=f"{job.architecture}-{job.recipe_name}-{seed}-{one.digest}")


def find(job: Job, store: Store) -> Card | None:
    """The card of this very job in a store, whatever it is called there."""
    return next((card for name in store.models() if (card := finished(job, store, name))), None)


def report(model: str, dataset: str, sets: list[Seeds]) -> None:
    """Prints mean and spread; for two sets over the same seeds, also what the second changed."""
    import rich.table

    table = rich.table.Table("recipe", "teacher", "seeds", "mean", "spread", "each")
    for one in sets:
        each = ", ".join(f"{value:.2f}" for value in one.top1)
        cells = [str(len(one.top1)), f"{one.mean:.2f}%", f"{one.spread:.2f}", each]
        table.add_row(one.recipe, one.teacher or "none", *cells)
    console.out.print(f"{model} on {dataset}, {sets[0].images:,} test images", highlight=False)
    console.out.print(table)
    if len(sets) == 2:
        gains = [b - a for a, b in zip(sets[0].top1, sets[1].top1, strict=True)]
        told = ", ".join(f"{gain:+.2f}" for gain in gains)
        console.out.print(f"the teacher changes it by {statistics.mean(gains):+.2f} points ({told})", highlight=False)


def to_json(model: str, dataset: str, sets: list[Seeds], cards: list[Card]) -> str:
    """The figures and what they were made with, for results/."""
    newest = max(cards, key=lambda card: card.created)
    told: dict[str, Any] = {"model": model, "dataset": dataset, "sets": [dataclasses.asdict(one) for one in sets]}
    told |= {"device": newest.device, "versions": newest.versions, "created": catalog.now()}
    return json.dumps(told, indent=2) + "\n"
