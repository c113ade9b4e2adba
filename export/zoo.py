"""`python -m export.zoo MODEL …`: puts servable ONNX variants with their cards into `zoo/`, which ships with the code.

`bentoml serve` on a fresh clone answers from there. A model is replaced only by a better one, and the whole stays
within `LIMIT_BYTES`.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Annotated

import typer

import catalog
import console
from catalog import CARD, KilnError, Store, VariantCard
from training.accuracies import anywhere

LIMIT_BYTES = 40_000_000
LARGE_BYTES = 16_000_000  # above this only the int8 variants are taken
PRECISIONS = ("fp32", "int8", "mixed")  # what a CPU gains from; half precision it has to widen
ROOT = catalog.ROOT / "zoo"

app = console.app("Puts models into the zoo, from which a fresh clone serves.")


@app.command()
def put(
    models: Annotated[list[str], typer.Argument(help="models of the store")],
    store: Annotated[Path | None, typer.Option(help="where they are [MODELKILN_STORE or artifacts]")] = None,
    zoo: Annotated[Path, typer.Option(help="the zoo's folder")] = ROOT,
    force: Annotated[bool, typer.Option("--force", help="replace a model by one that is no better")] = False,
) -> None:
    """Copies the models' ONNX variants and cards, each model whole or not at all."""
    opened, target = Store(store), Store(zoo)
    for model in models:
        renew(opened, target, model, force)
        told = ", ".join(card.variant.version for card in target.variants(model))
        console.out.print(f"{target.model_dir(model)}: {told}", highlight=False, soft_wrap=True)


def renew(source: Store, zoo: Store, model: str, force: bool = False) -> None:
    """Replaces one model of the zoo; its policy stays.

    Raises:
        KilnError: It is not exported, no better than the one there, or too large; the zoo stays as it is.
    """
    card = source.card(model)
    if (zoo.model_dir(model) / CARD).is_file() and not force:
        there = zoo.card(model).accuracy
        if card.accuracy.top1 <= there.top1:
            raise KilnError(
                f"the zoo's {model} has {there.top1:.2f}%, this one {card.accuracy.top1:.2f}%: no better. "
                "Replace it all the same with --force"
            )
    chosen = _worth_serving(source, model, card.weights_sha256)
    others = sum(f.stat().st_size for f in zoo.root.rglob("*") if f.is_file() and model not in f.parts)
    if (total := others + sum(variant.size_bytes for variant in chosen)) > LIMIT_BYTES:
        raise KilnError(f"with {model} the zoo would have {total / 1e6:.1f} MB; it may have {LIMIT_BYTES / 1e6:.0f}")
    with catalog.staged_folder(zoo.model_dir(model)) as folder:
        for variant in chosen:
            origin, name = source.variant_dir(variant.variant), variant.variant.version
            source.verify(origin, variant.files)
            shutil.copytree(origin, folder / "variants" / name)
        if (policy := zoo.model_dir(model) / catalog.POLICY).is_file():
            shutil.copy(policy, folder)
        catalog.write_atomic(
            folder / CARD, catalog.to_json(dataclasses.replace(card, files={}, command=anywhere(card.command)))
        )


def _worth_serving(source: Store, model: str, weights_sha256: str) -> list[VariantCard]:
    """The ONNX variants of these very weights that hold their floors; of a large network only the integer ones."""
    cards = [card for card in source.variants(model) if card.status == "ok" and card.parent_sha256 == weights_sha256]
    onnx = [card for card in cards if card.variant.format == "onnx" and not card.variant.transform]
    fresh = [card for card in onnx if card.variant.precision in PRECISIONS]
    small = [card for card in fresh if card.size_bytes <= LARGE_BYTES or card.variant.precision == "int8"]
    if not small:
        raise KilnError(
            f"{model} has no ONNX variant of its present weights to put there; run: python -m export {model}"
        )
    return small


if __name__ == "__main__":
    console.run(app)
