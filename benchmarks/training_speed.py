"""`python -m benchmarks.training_speed`: what the training loop costs beside a bare `model.fit` on the same arrays.

Both sides train the same network by the same recipe in the same process, in turn, several rounds; the ratio of each
round is reported, so a machine whose speed drifts does not matter. Augmentation is timed alone, on one epoch's images,
and given as a share of the bare time for them.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rich.table
import typer

import catalog
import console
from benchmarks import machine
from catalog import Recipe

app = console.app("Measures the training loop against a bare model.fit.")
NETWORKS = {"lenet": Recipe(batch_size=128), "simcnn": Recipe(batch_size=128)}
NETWORKS["resnet50"] = Recipe(batch_size=128, stem="imagenet")
IMAGES = {"lenet": 25_600, "simcnn": 12_800, "resnet50": 640}  # some seconds an epoch
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "basic": {"augment": "basic"},
    "advanced": {"augment": "advanced"},
    "all": {"augment": "advanced", "cutout": 8, "mixup": 0.2, "cutmix": 1.0},
}
NOISY = 1.3  # the most of the ratios over the least, from which on a median of so few is not to be trusted
RATIO, AUGMENTATION, START_UP_S = 0.95, 0.15, 15.0  # at least of a bare fit; at most of SimCNN's step; at most


@app.command()
def measure(
    models: Annotated[str, typer.Option(help="comma-separated")] = ",".join(NETWORKS),
    rounds: Annotated[int, typer.Option(min=1, help="of both sides, in turn")] = 9,
    out: Annotated[Path | None, typer.Option(help="a JSON file for the figures")] = None,
) -> None:
    """Prints images/s of both sides, their ratio round by round, and what augmentation adds."""
    names = models.split(",")
    if unknown := [name for name in names if name not in NETWORKS]:
        raise catalog.KilnError(f"no network {unknown[0]!r} is measured here; there are: {', '.join(NETWORKS)}")
    found: dict[str, Any] = {
        "created": catalog.now(),
        "commit": catalog.commit(),
        "cpu": machine.read().cpu,
        "load_before": machine.load()[0],
        "start_up_s": {model: _start_up(model) for model in names},
    }
    table = rich.table.Table("model", "ours, images/s", "bare fit", "ratio: median", "least", "most", *AUGMENTATIONS)
    for model in names:
        row = found[model] = _compare(model, rounds)
        ratios = sorted(row["ratios"])
        cells = [f"{row['ours']:,.0f}", f"{row['bare']:,.0f}", f"{statistics.median(ratios):.3f}"]
        shares = [f"{100 * share:.1f}%" for share in row["augmentation"].values()]
        table.add_row(model, *cells, f"{ratios[0]:.3f}", f"{ratios[-1]:.3f}", *shares)
    console.out.print(table)
    console.out.print("basic, advanced, all (advanced with cutout, and mixup or cutmix): what each augmentation would")
    console.out.print("add to a bare epoch, if it did not run beside it")
    noisy = [model for model in names if max(found[model]["ratios"]) > NOISY * min(found[model]["ratios"])]
    if noisy:
        console.out.print(
            f"While {', '.join(noisy)} trained the machine changed its speed; the median of such rounds says little.",
            highlight=False,
        )
    told = ", ".join(f"{model} {seconds:.1f} s" for model, seconds in found["start_up_s"].items())
    console.out.print(f"from the command to the first step done, on the digits: {told}", highlight=False)
    for goal, met in _goals(found).items():
        console.out.print(f"{'met' if met else 'MISSED'}: {goal}", highlight=False)
    if out:
        catalog.write_atomic(out, json.dumps(found, indent=2) + "\n")


def _compare(model: str, rounds: int) -> dict[str, Any]:
    """Both sides in turn; the first round of each compiles and is not counted."""
    from training.augment import augment

    data = _random_images(IMAGES[model])
    images, targets = data.x_train, np.eye(10, dtype=np.float32)[data.y_train]
    ours, bare = _ours(model, data), _bare(model, data)
    pairs = []
    for number in range(rounds + 1):  # who comes second has what the first left warm, so they change places
        first, second = (ours, bare) if number % 2 else (bare, ours)
        taken = {first: first(), second: second()}
        pairs.append((taken[ours], taken[bare]))
    del pairs[0]
    rng = np.random.default_rng(0)
    bare_s = statistics.median(b for _, b in pairs)
    augmenting: dict[str, float] = {}
    for kind, fields in AUGMENTATIONS.items():
        recipe = dataclasses.replace(NETWORKS[model], **fields)
        begun = time.perf_counter()
        for _ in range(3):
            augment(recipe, images, targets, rng)
        augmenting[kind] = (time.perf_counter() - begun) / 3 / bare_s
    return {
        "images": len(images),
        "ours": len(images) / statistics.median(o for o, _ in pairs),
        "bare": len(images) / bare_s,
        "ratios": [b / o for o, b in pairs],
        "augmentation": augmenting,
    }


def _goals(found: dict[str, Any]) -> dict[str, bool]:
    """What the project promises of its training, and whether these figures keep it."""
    goals = {}
    for model in (name for name in NETWORKS if name in found):
        goals[f"{model}'s start-up to the first step within {START_UP_S:g} s"] = (
            found["start_up_s"][model] <= START_UP_S
        )
        ratio = statistics.median(found[model]["ratios"])
        goals[f"{model} at {100 * RATIO:g}% or more of a bare fit"] = ratio >= RATIO
    if "simcnn" in found:
        for kind, share in found["simcnn"]["augmentation"].items():
            goals[f"{kind} augmentation at most {100 * AUGMENTATION:g}% of SimCNN's step"] = share <= AUGMENTATION
    return goals


def _random_images(count: int) -> Any:
    from training.data import Dataset

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, count)
    return Dataset("random", "", "0" * 64, [str(i) for i in range(10)], x, y, x[:0], y[:0], x[:1], y[:1])


def _ours(model: str, data: Any) -> Any:
    """A function that trains one more epoch through the project's loop and returns its seconds."""
    from training import loop
    from training.job import Job

    store = catalog.Store(tempfile.mkdtemp(prefix="modelkiln-speed-"))
    recipe = dataclasses.replace(NETWORKS[model], epochs=1000)
    run = loop.prepare(Job(model, model, "speed", recipe, data, 0, store, checkpoint_seconds=1e9))

    def epoch() -> float:
        begun = time.perf_counter()
        run.epoch(*run.draw(run.state.epoch))
        return time.perf_counter() - begun

    return epoch


def _bare(model: str, data: Any) -> Any:
    """A function that trains one epoch by `model.fit` as anybody would write it, and returns its seconds.

    Operations are deterministic on both sides: once asked for in a process, they stay so.
    """
    from training import network
    from training.loop import keras_namespace

    keras, recipe = keras_namespace(), NETWORKS[model]
    net = network.build(keras, model, (32, 32, 3), 10, recipe)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(optimizer="adam", loss=loss, metrics=["accuracy"], jit_compile=keras.backend.backend() == "jax")

    def epoch() -> float:
        begun = time.perf_counter()
        net.fit(data.x_train, data.y_train, batch_size=recipe.batch_size, epochs=1, verbose=0)
        return time.perf_counter() - begun

    return epoch


def _start_up(model: str) -> float:
    """Seconds from starting the command to its first training step being over, in a process of its own, by `cpu`.

    Raises:
        KilnError: It ended before that; the message has its last line.
    """
    first_step = (
        "import sys; from training import loop\n"
        "def stop(run, logs, speed):\n    print('first step', flush=True); raise SystemExit\n"
        "loop._Run.show = stop\n"
        "import runpy; runpy.run_module('training', run_name='__main__')"
    )
    with tempfile.TemporaryDirectory() as store:
        arguments = [model, "--dataset", "digits", "--recipe", "cpu", "--store", store]
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", first_step, *arguments], cwd=catalog.ROOT, capture_output=True, text=True
        )
        taken = time.perf_counter() - begun
    if "first step" not in done.stdout:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise catalog.KilnError(f"no training step was reached: {said[-1]}")
    return taken


if __name__ == "__main__":
    console.run(app)
