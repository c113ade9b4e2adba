"""`python -m export MODEL`: converts a trained model to every format; `all` does every model in the store."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import rich.progress
import typer

import console
from catalog import KilnError, Store, Variant, VariantCard
from export import budget, pages, pipeline
from export.options import Options
from export.transforming import Tell
from export.transforms import Finetuning, Progress

app = console.app("Converts trained models and proves each variant. `python -m export lenet --formats onnx`")


class Goal(enum.StrEnum):
    """What the best variant is best at."""

    latency = "latency"
    throughput = "throughput"
    size = "size"


StoreOption = Annotated[Path | None, typer.Option(help="where models are kept [MODELKILN_STORE or artifacts]")]


@app.command("model")
def export_models(
    model: Annotated[str, typer.Argument(help="a trained model, or `all` of them")],
    formats: Annotated[str, typer.Option(help="comma-separated files of export/formats [all]")] = "",
    precisions: Annotated[str, typer.Option(help="comma-separated, as fp32,int8 [all a format can make]")] = "",
    transforms: Annotated[
        str, typer.Option(help="comma-separated, chained by +: prune80,prune80+quantize_aware [the network as trained]")
    ] = "",
    store: StoreOption = None,
    force: Annotated[bool, typer.Option("--force", help="make again what is there already")] = False,
    threads: Annotated[int, typer.Option(min=1, help="of the runtime while it is proved")] = 2,
    calibration_images: Annotated[int, typer.Option(min=1, help="training images that int8 ranges come from")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="which training images those are")] = 0,
    timeout: Annotated[float, typer.Option(min=1.0, help="seconds for one conversion with its proof")] = 1800.0,
    finetune_epochs: Annotated[
        int | None, typer.Option(min=1, help="of every transform [a share of the epochs the model was trained for]")
    ] = None,
    teacher: Annotated[
        str, typer.Option(help="a model or model/onnx-variant that fine-tuning asks [the network as trained]")
    ] = "",
    max_accuracy_drop: Annotated[
        float | None, typer.Option(min=0.0, help="points of top-1 on the validation split a variant may lose [any]")
    ] = None,
    objective: Annotated[
        Goal | None,
        typer.Option(help="find the best at this within --max-accuracy-drop, of these and all made before"),
    ] = None,
) -> None:
    """Converts one model or all of them (the word `model` may be left out).

    With `--objective`, also says which variant is the best within the budget, giving int8 layers back where needed.
    """
    finetuning = Finetuning(finetune_epochs, teacher)
    options = Options(threads, force, timeout, calibration_images, seed, finetuning, max_accuracy_drop)
    opened = Store(store)
    models = opened.models() if model == "all" else [model]
    if not models:
        raise KilnError(f"no trained model in {opened.root}; run: python -m training lenet")
    if "mixed" in console.words(precisions) and max_accuracy_drop is None:
        raise KilnError("mixed precision spends an accuracy budget; say which: --max-accuracy-drop 0.3")
    asked = {
        name: pipeline.wanted(name, console.words(formats), console.words(precisions), console.words(transforms))
        for name in models
    }
    if objective:
        _race(opened, asked, options, objective.value)
        return
    cards, troubles = _export(opened, asked, options)
    missing = {variant: reason for name, reason in troubles.items() for variant in asked[name]}
    console.out.print(pages.table(cards, missing))
    unfit = [f"{card.variant}: {pages.status(card)}, {card.reason}" for card in cards if card.status != "ok"]
    unfit += [f"{name}: {reason}" for name, reason in troubles.items()]
    if unfit:
        total = sum(map(len, asked.values()))
        raise KilnError("\n".join([f"{total - _good(cards)} of {total} variants are not to be had", *unfit]))


@app.command("inspect")
def inspect(
    variant: Annotated[str, typer.Argument(help="as lenet/onnx-int8")],
    store: StoreOption = None,
) -> None:
    """Prints a variant's card as a page."""
    model, _, version = variant.replace("+", "-").partition("/")
    opened = Store(store)
    unreadable: dict[str, str] = {}
    cards = {card.variant.version: card for card in opened.variants(model, unreadable)}
    if version in unreadable:
        raise KilnError(unreadable[version])
    if version not in cards:
        known = ", ".join(str(card.variant) for card in cards.values()) or "none yet"
        raise KilnError(f"no variant {variant[:80]!r} in {opened.root} (there: {known}); run: python -m export {model}")
    console.out.print(pages.page(cards[version]))


def _good(cards: list[VariantCard]) -> int:
    return sum(card.status == "ok" for card in cards)


def _export(
    store: Store, asked: dict[str, list[Variant]], options: Options
) -> tuple[list[VariantCard], dict[str, str]]:
    """The cards of all models, and by name why a model could not even be begun."""
    cards: list[VariantCard] = []
    troubles: dict[str, str] = {}
    with console.progress(rich.progress.TextColumn("{task.fields[figures]}")) as bar:
        task = bar.add_task("exporting", total=sum(map(len, asked.values())), figures="")
        tuning = bar.add_task("fine-tuning", total=1, visible=False, figures="")
        for name, variants in asked.items():
            try:
                cards += pipeline.export(
                    store,
                    variants,
                    options,
                    begin=lambda variant: bar.update(task, description=str(variant)),
                    done=lambda: bar.advance(task),
                    tell=_teller(bar, tuning, name),
                )
            except KilnError as error:
                if len(asked) == 1:
                    raise
                troubles[name] = str(error)
            except OSError as error:
                troubles[name] = console.refused(error)
        bar.update(task, description="exported")
    return cards, troubles


def _race(store: Store, asked: dict[str, list[Variant]], options: Options, objective: budget.Objective) -> None:
    """Finds each model's best variant and shows what was tried; a model that has none does not stop the others.

    Raises:
        KilnError: One or more have none; says which and why.
    """
    troubles = []
    for model, variants in asked.items():
        try:
            console.out.print(pages.race(_best(store, variants, options, objective)))
        except (KilnError, OSError) as error:
            said = str(error) if isinstance(error, KilnError) else console.refused(error)
            troubles.append(said if len(asked) == 1 else f"{model}: {said}")
    if troubles:
        raise KilnError("\n".join(troubles))


def _best(store: Store, variants: list[Variant], options: Options, objective: budget.Objective) -> budget.Race:
    with console.progress(rich.progress.TextColumn("{task.fields[figures]}")) as bar:
        model = variants[0].model
        task = bar.add_task(model, total=len(variants), figures="")
        tuning = bar.add_task("fine-tuning", total=1, visible=False, figures="")
        race = budget.find(
            store,
            variants,
            options,
            objective,
            begin=lambda variant: bar.update(task, description=str(variant)),
            done=lambda: bar.advance(task),
            tell=_teller(bar, tuning, model),
        )
        bar.update(task, description=model)
    return race


def _teller(bar: rich.progress.Progress, task: rich.progress.TaskID, model: str) -> Tell:
    """Moves the second bar, that of the transform which is being made."""

    def tell(name: str, at: Progress) -> None:
        bar.update(
            task,
            description=f"{model} {name}",
            completed=at.done,
            total=at.total,
            visible=at.done < at.total,
            figures=at.figures,
        )

    return tell


if __name__ == "__main__":
    console.run(app)
