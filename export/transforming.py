"""Transforms of one model as an export needs them: each link of a chain made once, in its own process, with its card.

A link is made in a folder of another name that takes its place when its card is written. Its checkpoints lie beside it,
so that a killed export goes on inside the fine-tuning it was killed in.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import catalog
from catalog import Card, KilnError, Store, plugin, read_card
from export import process
from export.staging import alone
from export.transforms import MODEL, PACKAGE, Finetuning, Progress, Stage, TransformCard, name_of
from export.tuning.apply import Transform
from training import distill
from training.distill import Teacher

Tell = Callable[[str, Progress], None]
"""Is told the name of the transform that is being made, and where it stands."""


@dataclass(frozen=True)
class Source:
    """A model to convert: its file, the hash of its weights, and the card of the transform that made it, if one did."""

    keras_path: Path
    weights_sha256: str
    card: TransformCard | None = None


def trained(store: Store, card: Card) -> Source:
    """The network as trained."""
    return Source(store.model_dir(card.model).resolve() / MODEL, card.weights_sha256)


def settings(card: TransformCard) -> dict[str, Any]:
    """What a variant's settings tell of the transform it was converted from."""
    return {
        "transform": card.transform,
        "transform_sha256": card.weights_sha256,
        "transform_parent_sha256": card.source_sha256,
        "transform_told": {key: value for key, value in card.settings.items() if key != "history"},
        "transform_recipe": {key: card.recipe[key] for key in ("optimizer", "learning_rate", "epochs", "batch_size")},
    }


def present(store: Store, parent: Card, name: str) -> Source | None:
    """The transformed model that lies there, if it was made from these weights and is whole, by whatever settings."""
    folder = store.transform_dir(parent.model, name).resolve()
    try:
        card = read_card(TransformCard, folder / catalog.CARD)
        store.verify(folder, card.files)
    except KilnError:
        return None
    return Source(folder / MODEL, card.weights_sha256, card) if card.parent_sha256 == parent.weights_sha256 else None


def found(store: Store, parent: Card, stages: list[Stage], asked: Finetuning) -> Source | None:
    """The transformed model, if no link of the chain is due: same parent, same settings, files whole."""
    source = trained(store, parent)
    for number in range(len(stages)):
        linked = _found(store, parent, source, stages[: number + 1], asked)
        if linked is None:
            return None
        source = linked
    return source


def make(store: Store, parent: Card, stages: list[Stage], asked: Finetuning, force: bool, tell: Tell) -> Source:
    """The transformed model, once every link of its chain that is due was made; with `force`, the last is due anyway.

    Raises:
        KilnError: A transform failed; the message says which and why.
    """
    source = trained(store, parent)
    for number in range(len(stages)):
        links = stages[: number + 1]
        last = number == len(stages) - 1
        linked = None if force and last else _found(store, parent, source, links, asked)
        source = linked or _alone(store, parent, source, links, asked, force and last, tell)
    return source


def _alone(
    store: Store, parent: Card, source: Source, links: list[Stage], asked: Finetuning, force: bool, tell: Tell
) -> Source:
    """Makes a link while no other process makes the same one, whose checkpoints it would share.

    What another process made meanwhile is taken, unless it is due all the same.
    """
    name = name_of(links)
    lock = store.transform_dir(parent.model, name).resolve().with_name(f".{name}.lock")
    with alone(lock, f"makes {name} of {parent.model}") as waited:
        there = _found(store, parent, source, links, asked) if waited and not force else None
        return there or _make(store, parent, source, links, asked, tell)


def _recipe(parent: Card, stage: Stage, asked: Finetuning) -> dict[str, Any]:
    tuning = plugin(PACKAGE, stage.file).TUNING
    recipe: dict[str, Any] = tuning.recipe(parent.architecture, parent.recipe, asked).decisive()
    return recipe


def _teacher(store: Store, parent: Card, asked: Finetuning) -> Teacher:
    """Who answers in fine-tuning: whoever is asked for, else the network as trained."""
    if asked.teacher:
        return distill.find(store, asked.teacher, parent.dataset)
    return Teacher(trained(store, parent).keras_path, parent.weights_sha256)


def _found(store: Store, parent: Card, source: Source, links: list[Stage], asked: Finetuning) -> Source | None:
    there = present(store, parent, name_of(links))
    if there is None or (card := there.card) is None:
        return None
    wanted = (source.weights_sha256, parent.dataset.sha256, parent.seed, links[-1].parameters)
    same = wanted == (card.source_sha256, card.dataset_sha256, card.seed, card.parameters)
    if asked.teacher:
        same = same and card.settings.get("teacher_sha256") == _teacher(store, parent, asked).sha256
    if not same or card.whole_recipe != _recipe(parent, links[-1], asked):
        return None
    return there


def _make(store: Store, parent: Card, source: Source, links: list[Stage], asked: Finetuning, tell: Tell) -> Source:
    name, stage, data = name_of(links), links[-1], parent.dataset
    final = store.transform_dir(parent.model, name).resolve()
    teacher = _teacher(store, parent, asked)
    checkpoints, started = final.with_name(f".{name}.checkpoints"), time.monotonic()
    with catalog.staged_folder(final) as staged:
        checkpoints.mkdir(exist_ok=True)
        progress = checkpoints / "progress.json"
        request = Transform(
            keras_path=str(source.keras_path),
            folder=str(staged),
            checkpoints=str(checkpoints / "state"),
            progress=str(progress),
            file=stage.file,
            level=stage.level,
            parameters=stage.parameters,
            architecture=parent.architecture,
            recipe=_recipe(parent, stage, asked),
            dataset=data.name,
            root=data.root,
            sha256=data.sha256,
            validation=float(parent.recipe.get("validation", 0.1)),
            seed=parent.seed,
            parent_sha256=source.weights_sha256,
            teacher_path=str(teacher.path.resolve()),
            teacher_sha256=teacher.sha256,
        )
        reply = process.ask(request, math.inf, watch=lambda: _tell(progress, name, tell))
        if reply.error:
            raise KilnError(f"{parent.model} cannot be made {name}: {reply.error}")
        card = _card(parent, source, links, request, reply.settings, staged, time.monotonic() - started, asked)
        catalog.write_atomic(staged / catalog.CARD, catalog.to_json(card))
    shutil.rmtree(checkpoints, ignore_errors=True)
    return Source(final / MODEL, card.weights_sha256, card)


def _tell(path: Path, name: str, tell: Tell) -> None:
    try:
        told = Progress(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return
    tell(name, told)


def _card(
    parent: Card,
    source: Source,
    links: list[Stage],
    request: Transform,
    told: dict[str, Any],
    folder: Path,
    seconds: float,
    asked: Finetuning,
) -> TransformCard:
    name, stage = name_of(links), links[-1]
    return TransformCard(
        model=parent.model,
        transform=name,
        parent_sha256=parent.weights_sha256,
        source_sha256=source.weights_sha256,
        weights_sha256=told["weights_sha256"],
        dataset_sha256=parent.dataset.sha256,
        seed=parent.seed,
        recipe=request.recipe,
        parameters=stage.parameters,
        settings=told["settings"],
        weights=told["parameters"],
        macs=told["macs"],
        val_top1=told["val_top1"],
        seconds=round(seconds, 2),
        versions=catalog.versions(*plugin(PACKAGE, stage.file).PACKAGES),
        commit=catalog.commit(),
        command=command(parent.model, links, asked),
        created=catalog.now(),
        files={path.name: catalog.sha256_of(path) for path in sorted(folder.iterdir()) if path.is_file()},
        finetune_epochs=asked.epochs,
        finetune_teacher=asked.teacher,
    )


def command(model: str, links: list[Stage], asked: Finetuning) -> str:
    """The command that makes the transform again."""
    chain = "+".join(link.level for link in links)
    return f"python -m export {model} --transforms {chain}{asked.flags} --force"
