"""A sweep: many recipes for one network, each trained and judged on the validation split, the best as a recipe.

The trials follow from the space, the search and the seed alone, and each keeps its checkpoints and history in a folder
of its own. So a sweep that was stopped is started again by the same command: what was trained is replayed to the
scheduler, the rest goes on. The test split is never read.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import catalog
import console
from catalog import KilnError, Recipe, Store, sha256_of_json, write_atomic
from training.spaces import Log

RESULT = "result.json"


@dataclass(frozen=True)
class Sweep:
    """What decides a sweep; `folder` keeps it, one sweep a folder."""

    model: str
    space: str
    search: Literal["grid", "random", "asha"]
    trials: int  # of random and ASHA
    base: Recipe
    dataset: str
    root: str
    seed: int
    folder: Path
    epochs: int | None = None  # instead of the space's
    cpus: int = 1  # of each trial


@dataclass(frozen=True)
class Trial:
    """One recipe of a sweep: `varied` is what sets it apart, `key` names its folder."""

    number: int
    varied: dict[str, Any]
    recipe: Recipe

    @property
    def key(self) -> str:
        """Its number, and the start of a hash over all that decides its weights."""
        return f"{self.number:03d}-{sha256_of_json(self.recipe.decisive())[:8]}"


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: validation accuracy in 0..1 after each epoch it trained, or why it failed."""

    trial: Trial
    status: Literal["done", "stopped", "failed"]
    reason: str
    accuracies: list[float]
    seconds: float

    @property
    def accuracy(self) -> float:
        """After the last epoch; -1 where there is none."""
        return self.accuracies[-1] if self.accuracies else -1.0


def trials(sweep: Sweep) -> list[Trial]:
    """The recipes to try, in order: all combinations of a grid, or as many draws as asked for.

    Raises:
        KilnError: A grid over a range that has no steps, a space that varies what no recipe has or gives it a word that
            is not known, or one that judges by nothing.
    """
    module = catalog.plugin("training.spaces", sweep.space)
    varied: dict[str, Any] = module.space(sweep.model)
    fields = {field.name for field in dataclasses.fields(Recipe)}
    if unknown := sorted(set(varied) - fields):
        raise KilnError(f"the space {sweep.space} varies {unknown[0]!r}, which no recipe has")
    shared = module.BASE | ({"epochs": sweep.epochs} if sweep.epochs else {})
    base = dataclasses.replace(sweep.base, **shared)
    if sweep.search == "grid":
        if ranges := [name for name, values in varied.items() if isinstance(values, Log)]:
            raise KilnError(f"the space {sweep.space} has a range for {ranges[0]}; take --search random or asha")
        chosen = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    else:
        rng = np.random.default_rng(sweep.seed)
        chosen = [{name: _draw(rng, values) for name, values in varied.items()} for _ in range(sweep.trials)]
    planned = [Trial(i, one, dataclasses.replace(base, **one)) for i, one in enumerate(chosen)]
    if any(not trial.recipe.validation for trial in planned):
        raise KilnError(
            f"the space {sweep.space} holds out no images to judge by; its BASE needs a `validation` above 0"
        )
    return planned


def _draw(rng: np.random.Generator, values: list[Any] | Log) -> Any:
    if isinstance(values, Log):
        drawn = math.exp(rng.uniform(math.log(values.low), math.log(values.high)))
        return float(f"{drawn:.3g}")
    return values[int(rng.integers(len(values)))]


def train_trial(config: dict[str, Any]) -> None:
    """One trial, as Ray calls it in a process of its own: replays what is trained already, and trains the rest."""
    from ray import tune

    from training import data, loop
    from training.checkpoint import Checkpoints
    from training.job import Job

    sweep, trial = config["sweep"], config["trial"]
    folder = Path(sweep.folder, "trials", trial.key)
    rows: list[dict[str, float]] = []
    if (folder / RESULT).is_file():
        rows = json.loads((folder / RESULT).read_text(encoding="utf-8"))["history"]
    if found := Checkpoints(folder / "trial" / "checkpoints").newest(lambda _: None):
        rows += found[0].history[len(rows) :]
    for row in rows:
        tune.report(_told(row))
    if len(rows) == trial.recipe.epochs:
        return
    loaded = data.load(sweep.dataset, root=sweep.root or None, validation=trial.recipe.validation)
    job = Job("trial", sweep.model, sweep.space, trial.recipe, loaded, sweep.seed, Store(folder), 30.0)

    def tell(row: dict[str, float]) -> None:
        """Files the epoch first: a scheduler that stops the trial ends this function in its report."""
        if int(row["epoch"]) <= len(rows):  # trained again, from a checkpoint before it
            return
        rows.append(row)
        write_atomic(folder / RESULT, json.dumps({"history": rows}))
        if len(rows) == trial.recipe.epochs:
            job.checkpoints.clear()
        tune.report(_told(row))

    loop.train(job, tell)


def _told(row: dict[str, float]) -> dict[str, float]:
    return {"val_accuracy": row["val_accuracy"], "epoch": int(row["epoch"])}


def run(sweep: Sweep) -> list[Outcome]:
    """Trains all trials; gives them best first, failed ones last. A failed one does not stop the others.

    Raises:
        KeyboardInterrupt: The user stopped it; the same sweep goes on.
        KilnError: The folder keeps another sweep, or Ray cannot be used.
    """
    from training import data
    from training.cluster import gpus_per_task, ray_session

    planned = trials(sweep)
    sha256 = data.load(sweep.dataset, root=sweep.root or None).sha256  # now, so that one process downloads it
    _claim(sweep, planned, sha256)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # its own returns as if the sweep were over
    with ray_session(sweep.cpus) as ray:
        from ray import tune

        from training.sweep_progress import Bar

        scheduler = None
        if sweep.search == "asha":
            from ray.tune.schedulers import ASHAScheduler

            epochs = max(trial.recipe.epochs for trial in planned)
            scheduler = ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=max(epochs // 8, 1))
        function = tune.with_resources(train_trial, {"cpu": sweep.cpus, "gpu": gpus_per_task(ray)})
        with Bar(sum(trial.recipe.epochs for trial in planned)) as bar:
            results = tune.Tuner(
                function,
                param_space={"sweep": sweep, "trial": tune.grid_search(planned)},
                tune_config=tune.TuneConfig(metric="val_accuracy", mode="max", scheduler=scheduler, reuse_actors=True),
                run_config=tune.RunConfig(
                    name=time.strftime("%Y%m%d-%H%M%S"),
                    storage_path=str(sweep.folder.resolve() / "ray"),
                    callbacks=[bar.callback()],
                    verbose=0,
                ),
            ).fit()
        outcomes = ranked([_outcome(sweep, results[i]) for i in range(len(results))])
    write_atomic(sweep.folder / "sweep.csv", _csv(outcomes))
    return outcomes


def ranked(outcomes: list[Outcome]) -> list[Outcome]:
    """The best first; failed ones last, however good their epochs were."""
    return sorted(outcomes, key=lambda outcome: (outcome.status == "failed", -outcome.accuracy))


def _claim(sweep: Sweep, planned: list[Trial], dataset_sha256: str) -> None:
    """Makes the folder this sweep's; more trials of the same sweep may follow what is there.

    Raises:
        KilnError: It keeps another sweep, or one over images that have changed since.
    """
    told: dict[str, Any] = {"model": sweep.model, "dataset": sweep.dataset, "root": sweep.root, "seed": sweep.seed}
    told["dataset_sha256"] = dataset_sha256
    told["trials"] = [trial.key for trial in planned]
    path = sweep.folder / "sweep.json"
    if path.is_file():
        there = {"dataset_sha256": dataset_sha256, **json.loads(path.read_text(encoding="utf-8"))}
        if there["dataset_sha256"] != dataset_sha256:
            raise KilnError(
                f"{sweep.folder} keeps a sweep over other images than {sweep.dataset} has now; give --out another "
                "folder, or remove it"
            )
        both = min(len(there["trials"]), len(planned))
        if there | {"trials": there["trials"][:both]} != told | {"trials": told["trials"][:both]}:
            raise KilnError(f"{sweep.folder} keeps another sweep; give --out another folder, or remove it")
    write_atomic(path, json.dumps(told, indent=2) + "\n")


def _outcome(sweep: Sweep, result: Any) -> Outcome:
    trial: Trial = result.config["trial"]
    frame = result.metrics_dataframe
    accuracies = [] if frame is None or "val_accuracy" not in frame else [float(a) for a in frame["val_accuracy"]]
    seconds = float(result.metrics.get("time_total_s", 0.0)) if result.metrics else 0.0
    if result.error is not None:
        return Outcome(trial, "failed", _reason(str(result.error)), accuracies, seconds)
    if len(accuracies) >= trial.recipe.epochs:
        return Outcome(trial, "done", "", accuracies, seconds)
    return Outcome(trial, "stopped", "by ASHA" if sweep.search == "asha" else "early", accuracies, seconds)


def _reason(error: str) -> str:
    """The last line of a traceback, without the exception's type."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return re.sub(r"^[\w.]+(Error|Exception|Diverged): ", "", lines[-1])[:200] if lines else "no reason given"


def _csv(outcomes: list[Outcome]) -> str:
    text = io.StringIO()
    names = list(outcomes[0].trial.varied)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *names, "epochs", "val_accuracy", "status", "reason", "seconds"])
    for o in outcomes:
        values = [o.trial.varied[name] for name in names]
        reached = f"{o.accuracy:.4f}" if o.accuracies else ""
        writer.writerow([o.trial.key, *values, len(o.accuracies), reached, o.status, o.reason, f"{o.seconds:.1f}"])
    return text.getvalue()


def as_recipe(best: Outcome, sweep: Sweep) -> str:
    """The recipe as it would stand in the model's file; only what differs from a plain `Recipe()`."""
    recipe, plain = best.trial.recipe, Recipe()
    told = {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(Recipe)
        if getattr(recipe, field.name) != getattr(plain, field.name)
        and field.name not in ("expects", "where", "minutes", "source")
    }
    told["source"] = (
        f"sweep over {sweep.space}: {100 * best.accuracy:.2f}% of the validation split of {sweep.dataset}, "
        f"seed {sweep.seed}"
    )
    quoted = {name: json.dumps(value) if isinstance(value, str) else repr(value) for name, value in told.items()}
    lines = [f"    {name}={value}," for name, value in quoted.items()]
    return "\n".join(['"best": Recipe(', *lines, "),"])


def summary(outcomes: list[Outcome]) -> Any:
    """One table of all trials, best first."""
    import rich.table
    from rich.markup import escape

    table = rich.table.Table("trial", "validation", "epochs", "what it tried")
    for o in outcomes:
        reached = f"{100 * o.accuracy:.2f}%" if o.accuracies else ""
        told = {"done": "", "stopped": f"stopped {o.reason}", "failed": f"failed: {o.reason:.40}"}[o.status]
        tried = ", ".join(f"{name}={value}" for name, value in o.trial.varied.items())
        table.add_row(o.trial.key[:3], reached, str(len(o.accuracies)), escape(f"{told}\n{tried}" if told else tried))
    return table


def report(sweep: Sweep, outcomes: list[Outcome]) -> None:
    """Prints the table and the best recipe; writes the plot beside them.

    Raises:
        KilnError: Every trial failed.
    """
    from training import plots

    console.out.print(summary(outcomes))
    best = outcomes[0]
    if best.status == "failed":
        raise KilnError(f"every trial failed; the first: {best.reason}")
    drawn = [(o.trial.varied, o.accuracies) for o in outcomes if o.accuracies]
    title = f"{sweep.model} on {sweep.dataset}: {sweep.space}, {sweep.search}"
    write_atomic(sweep.folder / "sweep.png", plots.sweep(drawn, title))
    console.out.print(f"the best, for training/models/{sweep.model}.py:", highlight=False)
    console.out.print(as_recipe(best, sweep), highlight=False, markup=False, soft_wrap=True)
    console.out.print(f"table, plot and trials in {sweep.folder}", highlight=False, soft_wrap=True)
