"""`python -m training MODEL`: trains one network; `all` trains the family; `list` says what there is."""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import rich.table
import typer

import catalog
import console
from catalog import Card, KilnError, Recipe, Store

if TYPE_CHECKING:
    from training.data import Dataset
    from training.job import Job

app = console.app("Trains small image classifiers. `python -m training lenet --dataset cifar10 --recipe report`")

StoreOption = Annotated[Path | None, typer.Option(help="where models are kept [MODELKILN_STORE or artifacts]")]
DatasetOption = Annotated[str, typer.Option("--dataset", "-d", help="a file of training/data")]
RootOption = Annotated[Path | None, typer.Option(help="the data set's folder; `folder` needs it")]
RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="one of the recipes beside the model")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of weights, order and augmentation")]
ViewsOption = Annotated[
    int | None,
    typer.Option(min=0, help="augmentations of each image before they come again, 0: never [16 with a teacher]"),
]
ForceOption = Annotated[bool, typer.Option("--force", help="start over, replacing what is there")]


@app.command("train")
def train(
    model: Annotated[str, typer.Argument(help="a file of training/models; `list` shows them")],
    dataset: DatasetOption = "cifar10",
    root: RootOption = None,
    recipe: RecipeOption = "report",
    name: Annotated[str, typer.Option(help="what to call it in the store [the model's name]")] = "",
    seed: SeedOption = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="overrides the recipe")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="overrides the recipe")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="overrides the recipe")] = None,
    weights: Annotated[str, typer.Option(help="none or imagenet; overrides the recipe")] = "",
    frozen_layers: Annotated[int | None, typer.Option(min=0, help="of ImageNet weights, from the input")] = None,
    flip_at_test: Annotated[
        bool | None,
        typer.Option(
            "--flip-at-test/--no-flip-at-test", help="the mean over the image and its mirror image; twice the work"
        ),
    ] = None,
    teacher: Annotated[str, typer.Option(help="a trained model or model/onnx-variant to distil from")] = "",
    views: ViewsOption = None,
    checkpoint_seconds: Annotated[float, typer.Option(min=0.0, help="time between checkpoints")] = 60.0,
    devices: Annotated[int, typer.Option(min=0, help="that share each batch; 0 is every GPU there is")] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="also logs epochs for TensorBoard")] = False,
    store: StoreOption = None,
    force: ForceOption = False,
) -> None:
    """Trains one network (the word `train` may be left out)."""
    from training import data

    overrides = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    overrides |= {"frozen_layers": frozen_layers}
    given: dict[str, Any] = {key: value for key, value in overrides.items() if value is not None}
    if weights not in ("", "none", "imagenet"):
        raise KilnError(f"--weights is none or imagenet, not {weights[:40]!r}")
    given |= {"weights": weights} if weights else {}
    given |= {"frozen_layers": 0} if weights == "none" and frozen_layers is None else {}
    given |= {"flip_at_test": flip_at_test} if flip_at_test is not None else {}
    if teacher and teacher == (name or model):
        raise KilnError(f"{teacher} cannot be taught by itself, which it would replace; keep both with --name")
    chosen = _taught(dataclasses.replace(_recipe(model, recipe), **given), teacher, views)
    Store(store).model_dir(name or model)
    loaded = data.load(dataset, root=root, validation=chosen.validation)
    job = _job(name or model, model, recipe, chosen, loaded, Store(store))
    job = dataclasses.replace(job, seed=seed, checkpoint_seconds=checkpoint_seconds, devices=devices, over=force)
    if not force and (card := _done(job)) is not None:
        console.out.print(f"{job.model} is done: {_told(card)}. To train it again: --force", highlight=False)
        return
    card = _run_or_stop(job, "lower --learning-rate and start over with --force", tensorboard)
    console.out.print(f"{job.model}: {_told(card)}; in {job.folder}", highlight=False, soft_wrap=True)


@app.command("all")
def train_all(
    dataset: DatasetOption = "cifar10",
    root: RootOption = None,
    recipe: RecipeOption = "cpu",
    models: Annotated[str, typer.Option(help="comma-separated [all of training/models]")] = "",
    cpus: Annotated[int, typer.Option(min=1, help="of each task on a Ray cluster")] = 2,
    devices: Annotated[int, typer.Option(min=0, help="that share each batch; 0 is every GPU there is")] = 0,
    store: StoreOption = None,
    force: ForceOption = False,
) -> None:
    """Trains every network, one process each; one failure does not stop the others.

    Where RAY_ADDRESS names a cluster, each is a task there; store and data set are folders its machines share.
    """
    names = models.split(",") if models else catalog.plugin_names("training.models")
    for name in names:
        _recipe(name, recipe)
    shared = ["--dataset", dataset, "--recipe", recipe, "--store", str(Store(store).root.resolve())]
    shared += ["--root", str(root.resolve())] if root else []
    shared += ["--devices", str(devices)] if devices else []
    shared += ["--force"] if force else []
    commands = {name: ["-m", "training", name, *shared] for name in names}
    if os.environ.get("RAY_ADDRESS"):
        from training.cluster import run_commands

        failed = [name for name, (status, _) in run_commands(commands, cpus).items() if status]
    else:
        failed = [name for name, arguments in commands.items() if _python(arguments)]
    if failed:
        raise KilnError(f"{len(failed)} of {len(names)} models failed: {', '.join(failed)} (each said why above)")


@app.command("sweep")
def sweep(
    model: Annotated[str, typer.Argument(help="a file of training/models")],
    space: Annotated[str, typer.Option(help="a file of training/spaces")] = "reports",
    search: Annotated[Literal["grid", "random", "asha"], typer.Option(help="how the space is searched")] = "grid",
    trials: Annotated[int, typer.Option(min=1, help="of random and asha")] = 32,
    dataset: DatasetOption = "cifar10",
    root: RootOption = None,
    recipe: RecipeOption = "cpu",
    epochs: Annotated[int | None, typer.Option(min=1, help="overrides the space")] = None,
    seed: SeedOption = 0,
    cpus: Annotated[int, typer.Option(min=1, help="of each trial; as many run at once as fit")] = 1,
    out: Annotated[Path | None, typer.Option(help="where it is kept [sweeps/MODEL-DATASET-SPACE-SEARCH]")] = None,
) -> None:
    """Trains one network by many recipes with Ray Tune, here or on the cluster RAY_ADDRESS names."""
    from training import sweep as sweeps

    base = _recipe(model, recipe)
    where = f"{model}-{dataset}-{space}-{search}" + (f"-{epochs}-epochs" if epochs else "")
    folder = (out or catalog.ROOT / "sweeps" / where).resolve()
    asked = sweeps.Sweep(
        model,
        space,
        search,
        trials,
        base,
        dataset,
        str(root.resolve()) if root else "",
        seed,
        folder,
        epochs=epochs,
        cpus=cpus,
    )
    try:
        outcomes = sweeps.run(asked)
    except KeyboardInterrupt as stop:
        raise _stopped("stopped; finished trials and checkpoints are kept") from stop
    sweeps.report(asked, outcomes)


@app.command("seeds")
def seeds(
    model: Annotated[str, typer.Argument(help="a file of training/models")],
    dataset: DatasetOption = "cifar10",
    root: RootOption = None,
    recipe: RecipeOption = "cpu",
    count: Annotated[int, typer.Option("--seeds", min=1, help="how many, from 0")] = 3,
    teacher: Annotated[str, typer.Option(help="as for train; trains with and without it")] = "",
    views: ViewsOption = None,
    store: StoreOption = None,
    out: Annotated[Path | None, typer.Option(help="a JSON file for the figures")] = None,
    force: ForceOption = False,
) -> None:
    """Trains the same recipe with several seeds; with a teacher, also without, to show what it does."""
    from training import data
    from training import seeds as several

    plain, opened = _recipe(model, recipe), Store(store)
    loaded = data.load(dataset, root=root, validation=plain.validation)
    recipes = [plain, *([_taught(plain, teacher, views)] if teacher else [])]
    jobs = [_job(model, model, recipe, one, loaded, opened) for one in recipes]
    cure = f"lower the learning_rate of its recipe {recipe} in training/models/{model}.py"
    for job in jobs if force else []:
        several.forget(job, count)
    made = [several.run(job, count, functools.partial(_run_or_stop, cure=cure), force) for job in jobs]
    several.report(model, dataset, [figures for figures, _ in made])
    if out:
        cards = [card for _, made_cards in made for card in made_cards]
        catalog.write_atomic(out, several.to_json(model, dataset, [figures for figures, _ in made], cards))


@app.command("restore")
def restore(
    model: Annotated[str, typer.Argument(help="a model of the zoo, or of --source")],
    source: Annotated[Path | None, typer.Option(help="the store that has its ONNX variant [zoo]")] = None,
    root: RootOption = None,
    name: Annotated[str, typer.Option(help="what to call it in the store [the model's name]")] = "",
    store: StoreOption = None,
    force: ForceOption = False,
) -> None:
    """Makes a network trainable again from its float ONNX variant, or its int8 one: no training before it is pruned."""
    from training import data
    from training import restore as restored
    from training.job import Job, alone

    known, variant, path = restored.variant_of(Store(source or catalog.ROOT / "zoo"), model)
    loaded = data.load(
        known.dataset.name, root=root or known.dataset.root or None, validation=known.whole_recipe["validation"]
    )
    if loaded.sha256 != known.dataset.sha256:
        raise KilnError(f"{model} was trained on other data than this {loaded.name}; give its folder as --root")
    recipe = Recipe.of(known.recipe)
    job = Job(name or model, known.architecture, known.recipe_name, recipe, loaded, known.seed, Store(store))
    with alone(job):
        if not force and ((job.folder / catalog.CARD).is_file() or job.checkpoints.any()):
            raise KilnError(f"{job.folder} has a model or an unfinished run; give --name, or replace it with --force")
        card = restored.restore(job, known, variant, path, _command(sys.argv[1:]))
        job.checkpoints.clear()
    console.out.print(f"{job.model}: {_told(card)}; in {job.folder}", highlight=False, soft_wrap=True)


@app.command("publish")
def publish(store: StoreOption = None) -> None:
    """Keeps the cards of what recipes made of CIFAR-10 in results/training/; writes docs/accuracies.md from them."""
    from training import accuracies

    opened = Store(store)
    kept = accuracies.keep(opened)
    for path in kept:
        console.out.print(f"kept {path}", highlight=False)
    catalog.write_atomic(accuracies.PAGE, accuracies.page(accuracies.read()))
    console.out.print(f"{len(kept)} cards of {opened.root}; the page is {accuracies.PAGE}", highlight=False)


@app.command("list")
def list_models() -> None:
    """Networks, recipes, and what each recipe expects."""
    table = rich.table.Table("model", "recipe", "optimizer", "epochs", "expects", "minutes", "from")
    for name in catalog.plugin_names("training.models"):
        for recipe_name, recipe in catalog.plugin("training.models", name).RECIPES.items():
            expects = f"{recipe.expects:g}% on {recipe.where}" if recipe.expects else ""
            minutes = f"{recipe.minutes:g}" if recipe.minutes else ""
            table.add_row(name, recipe_name, recipe.optimizer, str(recipe.epochs), expects, minutes, recipe.source)
    console.out.print(table)


def _job(name: str, model: str, recipe_name: str, recipe: Recipe, loaded: Dataset, store: Store) -> Job:
    """A job with seed 0.

    Raises:
        KilnError: The recipe's teacher is not trained, or on other data.
    """
    from training import distill
    from training.job import Job

    teacher = distill.find(store, recipe.teacher, loaded) if recipe.teacher else None
    return Job(name, model, recipe_name, recipe, loaded, 0, store, teacher=teacher)


def _python(arguments: list[str]) -> int:
    """Runs one training here; its exit status.

    Raises:
        typer.Exit: The user stopped it, and with it the rest.
    """
    stops: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: stops.append(number))  # the training gets it too, and saves
    try:
        status = subprocess.run([sys.executable, *arguments], cwd=catalog.ROOT).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    if stops or status in (130, -signal.SIGINT):
        raise _stopped("the rest is not trained")
    return status


def _recipe(model: str, name: str) -> Recipe:
    """A model's recipe by name.

    Raises:
        KilnError: No such model or recipe; the message lists those there are.
    """
    recipes: dict[str, Recipe] = catalog.plugin("training.models", model).RECIPES
    if name not in recipes:
        raise KilnError(f"{model} has no recipe {name!r}; it has: {', '.join(recipes)}")
    return recipes[name]


def _taught(recipe: Recipe, teacher: str, views: int | None) -> Recipe:
    """The recipe with this teacher, if one is named, which is asked about so many views of each image."""
    from training.distill import VIEWS

    if teacher:
        recipe = dataclasses.replace(recipe, teacher=teacher, views=recipe.views or VIEWS)
    return recipe if views is None else dataclasses.replace(recipe, views=views)


def _run_or_stop(job: Job, cure: str, tensorboard: bool = False) -> Card:
    """Trains to the card; where the user stops it, says how to go on and exits; `cure` is for a loss that diverges."""
    from training.loop import Diverged, Interrupted

    try:
        return _run(job, tensorboard)
    except Diverged as error:
        raise KilnError(f"{error}; {cure}") from error
    except Interrupted as stop:
        raise _stopped("stopped and saved") from stop


def _stopped(what: str) -> typer.Exit:
    """Says how to go on with this command; gives the exit to raise."""
    again = _command([a for a in sys.argv[1:] if a != "--force"])
    console.err.print(f"{what}. To go on: {again}", style="yellow", highlight=False, soft_wrap=True)
    return typer.Exit(130)


def _command(arguments: list[str]) -> str:
    """This command with these arguments, as a shell takes it; on the same backend, where that is not the default."""
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    prefix = f"KERAS_BACKEND={shlex.quote(backend)} " if backend != "tensorflow" else ""
    return prefix + shlex.join(["python", "-m", "training", *arguments])


def _run(job: Job, tensorboard: bool) -> Card:
    from training.complete import complete
    from training.job import alone
    from training.loop import train
    from training.tensorboard import logs

    with alone(job):
        with logs(job.folder / "tensorboard") if tensorboard else nullcontext() as on_epoch:
            trained = train(job, on_epoch)
        card = complete(job, trained, _command(sys.argv[1:]))
        job.checkpoints.clear()
    return card


def _done(job: Job) -> Card | None:
    """The card of this very job, if it is done.

    Raises:
        KilnError: Something else is kept under this name.
    """
    from training.job import finished

    if (card := finished(job, job.store, job.model)) is None and (job.folder / catalog.CARD).is_file():
        raise KilnError(
            f"{job.folder} holds {_told(job.store.card(job.model))}, trained otherwise. Keep both with --name, or "
            "replace it with --force"
        )
    return card


def _told(card: Card) -> str:
    a = card.accuracy
    return (
        f"{card.architecture} by recipe {card.recipe_name} on {card.dataset.name}: {a.top1:.2f}% of {a.images:,} test "
        f"images (95% interval {a.low:.2f} to {a.high:.2f}), {card.train_seconds:.0f} s"
    )


if __name__ == "__main__":
    console.run(app)
