"""One model to all its variants: what is due, each in its own process, each with its card.

A variant is made in a folder of another name that takes its place when its card is written, so there is never half a
one. What is there already, from the same weights by the same settings, is left alone.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import catalog
from catalog import Card, DatasetInfo, KilnError, Store, Variant, VariantCard, plugin, plugin_names
from export import process
from export.worker import Convert, Prepare, Reply

_STAGED = re.compile(r"\.(?P<name>[a-z0-9][a-z0-9_.-]*)\.(?P<pid>\d+)\.(?P<kind>tmp|old)")


@dataclass(frozen=True)
class Options:
    """How to export. `calibration_images` and `seed` choose the training images that int8 ranges are measured on."""

    threads: int = 2
    force: bool = False
    timeout: float = 1800.0  # seconds for one conversion with its proof
    calibration_images: int = 1024
    seed: int = 0

    def settings(self, form: Any, precision: str, data: DatasetInfo) -> dict[str, Any]:
        """What a variant would be made with: the format's settings, and how it was calibrated if it was."""
        settings: dict[str, Any] = dict(form.SETTINGS[precision])
        if precision == "int8":
            settings |= {
                "calibration_images": min(self.calibration_images, data.train_images),
                "calibration_seed": self.seed,
            }
        return settings


def wanted(model: str, formats: list[str], precisions: list[str]) -> list[Variant]:
    """The variants of a model that formats and precisions ask for; an empty list asks for all.

    Raises:
        KilnError: An unknown format, or a precision that none of the formats can make.
    """
    chosen = {name: plugin("export.formats", name) for name in formats or plugin_names("export.formats")}
    can = sorted({precision for form in chosen.values() for precision in form.PRECISIONS})
    if unknown := [precision for precision in precisions if precision not in can]:
        raise KilnError(f"no precision {unknown[0]!r} in {', '.join(chosen)}; there are: {', '.join(can)}")
    return [
        Variant(model, name, precision)
        for name, form in chosen.items()
        for precision in form.PRECISIONS
        if not precisions or precision in precisions
    ]


def export(
    store: Store, variants: list[Variant], options: Options, begin: Callable[[Variant], None], done: Callable[[], None]
) -> list[VariantCard]:
    """Makes the variants of one model that are due; the cards of all of them, in order.

    `begin` is called with each before it is made, `done` after each, made or found.

    Raises:
        KilnError: The model is missing or altered, or its data set cannot be had; nothing was changed then.
    """
    model = variants[0].model
    card, folder = store.card(model), store.model_dir(model)
    store.verify(folder, card.files, extra_allowed=True)
    sweep(folder / "variants")
    cards = {variant: found(store, card, variant, options) for variant in variants}
    with _scratch(folder / "variants") as scratch:
        for variant in variants:
            if cards[variant] is None:
                begin(variant)
                if not any(scratch.iterdir()):
                    _prepare(card, folder, scratch, options)
                cards[variant] = _make(store, card, variant, scratch, options)
            done()
    return [made for made in cards.values() if made is not None]


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for what the workers share; `sweep` removes it if this process cannot."""
    path = folder.resolve() / f".scratch.{os.getpid()}.tmp"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def found(store: Store, parent: Card, variant: Variant, options: Options) -> VariantCard | None:
    """The card of a variant that need not be made again: same weights, same settings, files whole."""
    if options.force:
        return None
    folder = store.variant_dir(variant)
    try:
        card = catalog.read_card(VariantCard, folder / catalog.CARD)
        store.verify(folder, card.files)
    except KilnError:
        return None
    asked = options.settings(plugin("export.formats", variant.format), variant.precision, parent.dataset)
    same = card.parent_sha256 == parent.weights_sha256 and asked.items() <= card.settings.items()
    return card if same and card.status != "failed" else None


def sweep(folder: Path) -> None:
    """Removes what killed exports left of their staged folders, and puts back what one of them had set aside."""
    for path in folder.glob(".*"):
        match = _STAGED.fullmatch(path.name)
        if match is None or _alive(int(match["pid"])):
            continue
        if match["kind"] == "old" and not (folder / match["name"]).exists():
            path.rename(folder / match["name"])
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _prepare(card: Card, folder: Path, scratch: Path, options: Options) -> None:
    data = card.dataset
    reply = process.ask(
        Prepare(
            keras_path=str((folder / "model.keras").resolve()),
            folder=str(scratch),
            dataset=data.name,
            root=data.root,
            sha256=data.sha256,
            validation=float(card.recipe.get("validation", 0.1)),
            calibration_images=options.calibration_images,
            seed=options.seed,
        ),
        options.timeout,
        scratch,
    )
    if reply.error:
        raise KilnError(f"{card.model} cannot be exported: {reply.error}")


def _make(store: Store, parent: Card, variant: Variant, scratch: Path, options: Options) -> VariantCard:
    """Converts, proves and files one variant; its card says `failed` where that did not work."""
    keras_path = store.model_dir(variant.model).resolve() / "model.keras"
    with catalog.staged_folder(store.variant_dir(variant).resolve()) as staged:
        started = time.monotonic()
        asked = Convert(str(keras_path), str(staged), str(scratch), variant.format, variant.precision, options.threads)
        reply = process.ask(asked, options.timeout, scratch)
        if reply.error:
            shutil.rmtree(staged)
            staged.mkdir()
        card = _card(parent, variant, reply, staged, options, time.monotonic() - started)
        catalog.write_atomic(staged / catalog.CARD, catalog.to_json(card))
    return card


def _card(parent: Card, variant: Variant, reply: Reply, folder: Path, options: Options, seconds: float) -> VariantCard:
    from export.parity import shortfall

    form = plugin("export.formats", variant.format)
    reason = reply.error or (shortfall(reply.parity) if reply.parity else "")
    files = {path.name: path for path in folder.iterdir() if path.name != catalog.CARD}
    return VariantCard(
        variant=variant,
        status="failed" if reply.error else "below-floor" if reason else "ok",
        reason=reason,
        parent_sha256=parent.weights_sha256,
        dataset=parent.dataset,
        file=reply.file,
        size_bytes=sum(path.stat().st_size for path in files.values()),
        gzip_bytes=sum(catalog.gzip_bytes_of(path) for path in files.values()),
        parity=reply.parity,
        accuracy=reply.accuracy,
        settings={
            **options.settings(form, variant.precision, parent.dataset),
            **reply.settings,
            "threads": options.threads,
        },
        operators=reply.operators,
        seconds=round(seconds, 2),
        versions=catalog.versions(*form.PACKAGES),
        commit=catalog.commit(),
        command=f"python -m export {variant.model} --formats {variant.format} --precisions {variant.precision}"
        f"{_unusual(options)} --force",
        created=catalog.now(),
        files={name: catalog.sha256_of(path) for name, path in files.items()},
    )


def _unusual(options: Options) -> str:
    """The options of the command line that differ from their defaults."""
    usual = Options()
    told = {"threads": "--threads", "calibration_images": "--calibration-images", "seed": "--seed"}
    given = dataclasses.asdict(options)
    return "".join(f" {flag} {given[name]}" for name, flag in told.items() if given[name] != getattr(usual, name))
