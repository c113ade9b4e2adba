"""Transforms: one a file, a Keras model in and a Keras model out, smaller or ready for integers.

A transform file defines

    ORDER: int                          # place in a chain, which climbs: channels 0, prune 1, cluster 2, quantize 3
    PACKAGES: tuple[str, ...]           # distributions whose versions a card should tell
    LEVELS: dict[str, dict[str, Any]]   # the words a user types, `prune80`, and what each is told
    TUNING: Tuning                      # how long and how hard it fine-tunes
    def apply(work: Work) -> dict[str, Any]

`apply` reads the Keras 3 model at `work.keras_path` and writes `model.keras` into `work.folder`: plain Keras 3 without
wrappers, uint8 `[N, H, W, 3]` in and probabilities out. What formats must know beside the weights lies next to it; so
far that is `ranges.json`, the ranges a quantization-aware model learned (`export/onnx/learned.py`). It returns
settings for the card: what it did and what it left alone. Its process is its own, so it may import what it likes,
inside functions.

Levels are chained by `+`: `prune80+cluster16` clusters what `prune80` left, and is named `prune80-cluster16` in
folders, versions and addresses, where a plus means a space. Each link of a chain is a transform of its own, kept in
`<model>/transforms/<name>/{model.keras, card.json}` and made once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import catalog
from catalog import KilnError, Recipe
from training.distill import VIEWS

MODEL = "model.keras"
RANGES = "ranges.json"
PACKAGE = "export.transforms"
TEACHER = "trained"  # in a recipe: the network as trained, whose hash stands in the card


@dataclass(frozen=True)
class Finetuning:
    """What the user asks of every transform's fine-tuning in place of its own; None and "" are its own."""

    epochs: int | None = None
    teacher: str = ""  # a trained model, or one of its ONNX variants as model/version

    @property
    def flags(self) -> str:
        """As the command line has them, each with a space before it."""
        epochs = f" --finetune-epochs {self.epochs}" if self.epochs else ""
        return epochs + (f" --teacher {self.teacher}" if self.teacher else "")


ITS_OWN = Finetuning()


@dataclass(frozen=True)
class Tuning:
    """A fine-tuning as shares of the recipe that trained the model.

    `changes` are fields of Recipe that it sets whatever the parent had, `families` the fields of this record that are
    others for single architectures.
    """

    epochs: float = 0.1  # share of the parent's epochs
    learning_rate: float = 0.1  # share of the parent's peak
    at_least: int = 2  # epochs
    distill: float = 0.0  # share of the loss that asks for the answers of the network as trained
    mixed_precision: bool = False  # as the parent was trained; the tools of `tf_keras` know float32 only
    changes: dict[str, Any] = field(default_factory=dict)
    families: dict[str, dict[str, Any]] = field(default_factory=dict)  # architecture -> fields of Tuning

    def recipe(self, architecture: str, parent: dict[str, Any], asked: Finetuning = ITS_OWN) -> Recipe:
        """The recipe of a fine-tuning; `parent` is a card's `recipe`.

        Whatever makes training harder than the task (mixing of images, small images first, averages) is left out: the
        weights are to stay where they are and mend. A teacher is the network as trained, for every link of a chain, so
        that what an earlier link lost is not handed on, or the one that is asked for. It is never the parent's own.

        Raises:
            KilnError: `parent` is no recipe of this version.
        """
        own = dataclasses.replace(self, **self.families.get(architecture, {}))
        distill = own.distill or (Recipe.distill_weight if asked.teacher else 0.0)
        try:
            told = Recipe.of(parent)
        except ValueError as error:
            raise KilnError(f"the recipe in the model's card cannot be read: {error}. Train the model again") from error
        tuned = dataclasses.replace(
            told,
            learning_rate=told.learning_rate * own.learning_rate,
            schedule="cosine",
            warmup_epochs=0.0,
            mixup=0.0,
            cutmix=0.0,
            sizes=(),
            average=0.0,
            epochs=asked.epochs or max(own.at_least, round(own.epochs * told.epochs)),
            weights="none",
            frozen_layers=0,
            mixed_precision=own.mixed_precision and told.mixed_precision,
            teacher=(asked.teacher or TEACHER) if distill else "",
            views=VIEWS if asked.teacher else 0,
            distill_weight=distill,
        )
        return dataclasses.replace(tuned, **own.changes)


@dataclass(frozen=True)
class Progress:
    """Where a transform stands: `done` of `total` steps, and figures for the end of the line."""

    done: int
    total: int
    figures: str = ""


@dataclass(frozen=True)
class Work:
    """What a transform is asked for.

    `checkpoints` is a folder of its own that outlives a killed process and is removed when the transform is done.
    `stop` says whether the user asked to stop: save there, then raise `Stopped`.
    """

    keras_path: Path
    folder: Path
    checkpoints: Path
    level: str
    parameters: dict[str, Any]  # LEVELS[level]
    architecture: str
    recipe: Recipe  # of the fine-tuning
    dataset: Any  # training.data.Dataset; choose by its validation split, never look at its test images
    seed: int
    parent_sha256: str  # of the weights it starts from
    teacher_path: Path  # the network as trained, `keras_path` itself for the first link of a chain; or the one named
    teacher_sha256: str
    progress: Callable[[Progress], None]
    stop: Callable[[], bool] = lambda: False

    @property
    def taught_by(self) -> str:
        """The hash of the teacher; empty where the recipe asks none."""
        return self.teacher_sha256 if self.recipe.teacher else ""

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with this work to be its own."""
        return {
            "level": self.level,
            "parameters": self.parameters,
            "parent_sha256": self.parent_sha256,
            "teacher_sha256": self.taught_by,
            "dataset": self.dataset.sha256,
            "seed": self.seed,
            **self.recipe.decisive(),
        }


class Stopped(KilnError):
    """The user stopped the transform; it is saved and goes on when it is asked for again."""


@dataclass(frozen=True)
class Stage:
    """One link of a chain: the file that makes it and the level that was asked for."""

    file: str
    level: str
    parameters: dict[str, Any]


def levels() -> dict[str, Stage]:
    """Every level there is, by its name."""
    found = {}
    for file in catalog.plugin_names(PACKAGE):
        for level, parameters in catalog.plugin(PACKAGE, file).LEVELS.items():
            found[level] = Stage(file, level, parameters)
    return found


def chain(text: str) -> list[Stage]:
    """`prune80+cluster16`, or the name `prune80-cluster16`, as its stages.

    Raises:
        KilnError: An unknown level, or links in an order in which the later would undo the earlier.
    """
    known = levels()
    words = [word for part in text.split("+") for word in part.split("-")]
    if unknown := [word for word in words if word not in known]:
        raise KilnError(
            f"no transform {unknown[0][:80]!r}; there are: {', '.join(known)}, chained as prune80+cluster16"
        )
    stages = [known[word] for word in words]
    order = [catalog.plugin(PACKAGE, stage.file).ORDER for stage in stages]
    if any(later <= earlier for earlier, later in itertools.pairwise(order)):
        levelled = sorted(set(zip(order, words, strict=True)))
        kinds = {rank: word for rank, word in reversed(levelled)}
        raise KilnError(
            f"{text[:80]} cannot be chained so: each kind once, and in this order: "
            f"{'+'.join(kinds[rank] for rank in sorted(kinds))}"
        )
    return stages


def name_of(stages: list[Stage]) -> str:
    """What a chain is called in folders and versions: `prune80-cluster16`."""
    return "-".join(stage.level for stage in stages)


@dataclass(frozen=True)
class TransformCard:
    """A transformed network: `card.json` beside its `model.keras`."""

    model: str
    transform: str
    parent_sha256: str  # weights of the trained model
    source_sha256: str  # weights this stage began with: the trained model's, or those of the stage before
    weights_sha256: str
    dataset_sha256: str
    seed: int
    recipe: dict[str, Any]  # of the fine-tuning
    parameters: dict[str, Any]
    settings: dict[str, Any]  # what the transform says it did
    weights: int  # parameters, zeros among them
    macs: int  # multiply-accumulates of one image, zeros multiplied too
    val_top1: float | None  # percent, of the plain model that was written; None without a validation split
    seconds: float
    versions: dict[str, str]
    commit: str
    command: str
    created: str
    files: dict[str, str]
    finetune_epochs: int | None = None  # of every link of its chain, where they were not their own
    finetune_teacher: str = ""  # of every link, where it was not the network as trained

    @property
    def whole_recipe(self) -> dict[str, Any]:
        """The recipe with the fields that recipes have got since, at their defaults, by which it was fine-tuned."""
        return Recipe.whole(self.recipe)

    @property
    def asked(self) -> Finetuning:
        """What was asked of every link's fine-tuning."""
        return Finetuning(self.finetune_epochs, self.finetune_teacher)
