"""`python -m export MODEL`: converts a trained model to every format; `all` does every model in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import console
from catalog import KilnError, Store, Variant, VariantCard
from export import pages, pipeline

app = console.app("Converts trained models and proves each variant. `python -m export lenet --formats onnx`")

StoreOption = Annotated[Path | None, typer.Option(help="where models are kept [MODELKILN_STORE or artifacts]")]


@app.command("model")
def export_models(
    model: Annotated[str, typer.Argument(help="a trained model, or `all` of them")],
    formats: Annotated[str, typer.Option(help="comma-separated files of export/formats [all]")] = "",
    precisions: Annotated[str, typer.Option(help="comma-separated, as fp32,int8 [all a format can make]")] = "",
    store: StoreOption = None,
    force: Annotated[bool, typer.Option("--force", help="make again what is there already")] = False,
    threads: Annotated[int, typer.Option(min=1, help="of the runtime while it is proved")] = 2,
    calibration_images: Annotated[int, typer.Option(min=1, help="training images that int8 ranges come from")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="which training images those are")] = 0,
    timeout: Annotated[float, typer.Option(min=1.0, help="seconds for one conversion with its proof")] = 1800.0,
) -> None:
    """Converts one model or all of them (the word `model` may be left out)."""
    options = pipeline.Options(threads, force, timeout, calibration_images, seed)
    opened = Store(store)
    models = opened.models() if model == "all" else [model]
    if not models:
        raise KilnError(f"no trained model in {opened.root}; run: python -m training lenet")
    asked = {name: pipeline.wanted(name, _words(formats), _words(precisions)) for name in models}
    cards, troubles = _export(opened, asked, options)
    if cards:
        console.out.print(pages.table(cards))
    unfit = [f"{card.variant}: {card.status}, {card.reason}" for card in cards if card.status != "ok"]
    if unfit or troubles:
        total = sum(map(len, asked.values()))
        raise KilnError("\n".join([f"{total - _good(cards)} of {total} variants are not to be had", *unfit, *troubles]))


@app.command("inspect")
def inspect(
    variant: Annotated[str, typer.Argument(help="as lenet/onnx-int8")],
    store: StoreOption = None,
) -> None:
    """Prints a variant's card as a page."""
    model, _, version = variant.partition("/")
    opened = Store(store)
    cards = {card.variant.version: card for card in opened.variants(model)}
    if version not in cards:
        known = ", ".join(str(card.variant) for card in cards.values()) or "none yet"
        raise KilnError(f"no variant {variant[:80]!r} in {opened.root} (there: {known}); run: python -m export {model}")
    console.out.print(pages.page(cards[version]))


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _good(cards: list[VariantCard]) -> int:
    return sum(card.status == "ok" for card in cards)


def _export(
    store: Store, asked: dict[str, list[Variant]], options: pipeline.Options
) -> tuple[list[VariantCard], list[str]]:
    """The cards of all models, and one line for each model that could not even be begun."""
    cards: list[VariantCard] = []
    troubles: list[str] = []
    with console.progress() as bar:
        task = bar.add_task("exporting", total=sum(map(len, asked.values())))
        for name, variants in asked.items():
            try:
                cards += pipeline.export(
                    store,
                    variants,
                    options,
                    begin=lambda variant: bar.update(task, description=str(variant)),
                    done=lambda: bar.advance(task),
                )
            except KilnError as error:
                if len(asked) == 1:
                    raise
                troubles.append(f"{name}: {error}")
        bar.update(task, description="exported")
    return cards, troubles


if __name__ == "__main__":
    console.run(app)
