"""What a load is measured with, and the row that comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import served
from catalog import KilnError, Store

INT8 = "onnx-int8"  # the version under load


@dataclass(frozen=True)
class Row:
    """A figure, what it is to be, and what it was made of; `met` is None where the row could not be measured.

    `beside` says in a few words what the figure comes from.
    """

    name: str
    value: float | None
    unit: str
    goal: str
    met: bool | None
    detail: dict[str, Any]
    beside: str = ""

    @property
    def figure(self) -> str:
        """The value with its unit."""
        return "" if self.value is None else f"{self.value:.3g} {self.unit}"

    @property
    def verdict(self) -> str:
        """Whether the goal is met, or why nobody knows."""
        told = {True: "met", False: "MISSED", None: f"not measured: {self.detail.get('reason')}"}
        return told[self.met]


@dataclass(frozen=True)
class Plan:
    """What all rows are measured with."""

    store: Store
    seconds: float
    rounds: int
    threads: int
    model: str
    deep: str

    def file(self, model: str, version: str = INT8) -> Path:
        """A variant's model file.

        Raises:
            KilnError: The store has none.
        """
        for card in self.store.variants(model):
            if card.variant.version == version and card.file:
                return self.store.variant_dir(card.variant) / card.file
        raise KilnError(f"{self.store.root} has no {model}/{version}")

    def service(self, **settings: str) -> Any:
        """The service with this plan's threads."""
        return served.ours(self.store.root, threads=str(self.threads), **settings)
