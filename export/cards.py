"""The card of a variant: what its worker replied, what it was made of and by which command, whether it may serve."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import catalog
from catalog import Card, KilnError, Variant, VariantCard, plugin
from export import transforming
from export.options import Options
from export.transforms import TransformCard
from export.verdict import judged_by
from export.worker import Reply


def in_words(error: KilnError | OSError) -> str:
    """An error in one line for a card, which travels: it names a file, not where that lay on this machine."""
    if isinstance(error, KilnError):
        return str(error)
    name = Path(str(error.filename)).name if error.filename else ""
    return f"{name}: {error.strerror or error}" if name else str(error.strerror or error)


def failed(parent: Card, variant: Variant, error: KilnError | OSError, options: Options) -> VariantCard:
    """The row of a variant for which not even a card could be written."""
    return made(parent, variant, None, Reply(in_words(error)), None, options, 0.0)


def made(
    parent: Card,
    variant: Variant,
    transform: TransformCard | None,
    reply: Reply,
    folder: Path | None,
    options: Options,
    seconds: float,
) -> VariantCard:
    """The card of what a worker replied about a variant; `folder` holds what it made, None where nothing was."""
    form = plugin("export.formats", variant.format)
    files = {path.name: path for path in folder.iterdir() if path.name != catalog.CARD} if folder else {}
    told = dataclasses.replace(options, finetune=transform.asked) if transform else options
    card = VariantCard(
        variant=variant,
        status="failed",
        reason=reply.error,
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
            **(transforming.settings(transform) if transform else {}),
            "threads": options.threads,
        },
        operators=reply.operators,
        seconds=round(seconds, 2),
        versions=catalog.versions(*form.PACKAGES),
        commit=catalog.commit(),
        command=f"python -m export {variant.model}{_transforms(variant)} --formats {variant.format} "
        f"--precisions {variant.precision}{_unusual(told)} --force",
        created=catalog.now(),
        files={name: catalog.sha256_of(path) for name, path in files.items()},
        flips=reply.flips,
        weights=reply.weights,
        macs=reply.macs,
        validation=reply.validation,
        validation_drop=reply.validation_drop,
        search=reply.search,
    )
    return card if reply.error else judged_by(card, options.allowed_drop)


def _transforms(variant: Variant) -> str:
    return f" --transforms {variant.transform.replace('-', '+')}" if variant.transform else ""


def _unusual(options: Options) -> str:
    """The options of the command line that differ from their defaults."""
    usual = type(options)()
    told = {"threads": "--threads", "calibration_images": "--calibration-images", "seed": "--seed"}
    told |= {"allowed_drop": "--max-accuracy-drop"}
    given = {name: getattr(options, name) for name in told}
    flags = (f" {flag} {given[name]}" for name, flag in told.items() if given[name] != getattr(usual, name))
    return options.finetune.flags + "".join(flags)
