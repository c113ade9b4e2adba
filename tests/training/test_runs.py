"""Whole runs as a user starts them: killed, corrupted, diverged, changed, interrupted, repeated (faults 44 to 48)."""

import csv
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog import Card, Store, plugin, plugin_names, read_card, sha256_of, to_json, write_atomic

TRAIN = [sys.executable, "-m", "training"]
ROOT = Path(__file__).parents[2]
SHORT = ["lenet", "--dataset", "digits", "--recipe", "quick", "--epochs", "4", "--checkpoint-seconds", "0"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TRAIN, *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200
    )


def card(store: Path, model: str = "lenet") -> Card:
    return read_card(Card, store / model / "card.json")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("uninterrupted")
    done = run(*SHORT, "--store", str(store))
    assert done.returncode == 0, done.stderr
    return store


def test_a_run_leaves_a_whole_model_and_no_checkpoints(uninterrupted):
    folder, made = uninterrupted / "lenet", card(uninterrupted)
    assert sorted(path.name for path in folder.iterdir()) == [
        "card.json",
        "history.csv",
        "index.html",
        "model.keras",
        "plots",
    ]
    assert len(list((folder / "plots").glob("*.png"))) == 5
    Store(uninterrupted).verify(folder, made.files, extra_allowed=True)
    assert made.parameters == 62_006 and made.accuracy.images == 359 and made.dataset.name == "digits"
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert "tensorflow" in made.versions and made.device


def test_the_same_seed_twice_gives_the_same_weights(uninterrupted, tmp_path):
    assert run(*SHORT, "--store", str(tmp_path)).returncode == 0
    assert card(tmp_path).weights_sha256 == card(uninterrupted).weights_sha256


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[Any], at_least: int = 1) -> None:
    deadline = time.monotonic() + 100
    while len(list(folder.glob("e*-s*"))) < at_least and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def kill_and_finish(store: Path, kills: int, seed: int) -> int:
    """Kills a run `kills` times, each at a random moment after its first checkpoint, then lets it finish."""
    moments, landed = random.Random(seed), 0
    for _ in range(kills):
        process = subprocess.Popen([*TRAIN, *SHORT, "--store", str(store)], cwd=ROOT, stderr=subprocess.DEVNULL)
        wait_for_checkpoint(store / "lenet" / "checkpoints", process)
        time.sleep(moments.uniform(0, 1.0))
        process.kill()
        landed += process.wait() == -signal.SIGKILL
    assert run(*SHORT, "--store", str(store)).returncode == 0
    return landed


def test_killed_runs_end_in_the_same_weights(uninterrupted, tmp_path):
    assert kill_and_finish(tmp_path, kills=2, seed=0) >= 1
    assert card(tmp_path).weights_sha256 == card(uninterrupted).weights_sha256


@pytest.mark.slow
def test_twenty_kills_end_in_the_same_weights(uninterrupted, tmp_path):
    landed = sum(kill_and_finish(tmp_path / str(i), kills=4, seed=i) for i in range(5))
    assert landed >= 12
    for i in range(5):
        assert card(tmp_path / str(i)).weights_sha256 == card(uninterrupted).weights_sha256


@pytest.fixture
def interrupted(tmp_path) -> tuple[Path, str]:
    """A run stopped by SIGINT, and what it said."""
    process = subprocess.Popen([*TRAIN, *SHORT, "--store", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(tmp_path / "lenet" / "checkpoints", process, at_least=2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    return tmp_path, said


def test_sigint_saves_and_says_how_to_go_on(interrupted, uninterrupted):
    store, said = interrupted
    assert "stopped and saved. To go on: python -m training lenet" in said.replace("\n", " ")
    assert "Traceback" not in said
    assert not (store / "lenet" / "card.json").exists()
    assert run(*SHORT, "--store", str(store)).returncode == 0
    assert card(store).weights_sha256 == card(uninterrupted).weights_sha256


SLOW_TO_SAVE = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(1)  # longer than subprocess.run waits for a child after Ctrl-C
    pathlib.Path("saved").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, save)
pathlib.Path("ready").touch()
signal.pause()
"""


def test_ctrl_c_lets_the_training_of_all_save_and_starts_no_other(tmp_path):
    models = f"""
import sys, typer
from training.__main__ import _python
try:
    for _ in range(2):
        _python(["-c", "import os; os.chdir({str(tmp_path)!r})" + {SLOW_TO_SAVE!r}])
except typer.Exit as stop:
    sys.exit(stop.exit_code)
"""
    process = subprocess.Popen([sys.executable, "-c", models], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 100
    while not (tmp_path / "ready").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(60) == 130
    assert (tmp_path / "saved").exists()


def test_a_damaged_newest_checkpoint_is_passed_over_aloud(interrupted, uninterrupted):
    store, _ = interrupted
    newest = sorted((store / "lenet" / "checkpoints").iterdir())[-1] / "state.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    done = run(*SHORT, "--store", str(store))
    assert done.returncode == 0
    assert "is damaged" in done.stderr and "going back to the one before it" in done.stderr.replace("\n", " ")
    assert card(store).weights_sha256 == card(uninterrupted).weights_sha256


def test_another_recipe_does_not_go_on_with_an_unfinished_run(interrupted):
    store, _ = interrupted
    refused = run(*SHORT, "--learning-rate", "0.5", "--store", str(store))
    assert refused.returncode == 1
    assert "learning_rate was 0.003, is 0.5" in refused.stderr and "--force" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_second_run_says_it_is_done_and_another_recipe_is_refused(uninterrupted):
    again = run(*SHORT, "--store", str(uninterrupted))
    assert again.returncode == 0 and "is done" in again.stdout
    before = sha256_of(uninterrupted / "lenet" / "model.keras")
    other = run(*SHORT, "--batch-size", "64", "--store", str(uninterrupted))
    assert other.returncode == 1 and "--name" in other.stderr and "--force" in other.stderr
    assert sha256_of(uninterrupted / "lenet" / "model.keras") == before


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    diverged = run("lenet", "--dataset", "digits", "--recipe", "report", "--learning-rate", "1e30",
                   "--checkpoint-seconds", "0", "--store", str(tmp_path))  # fmt: skip
    assert diverged.returncode == 1
    assert "NaN or infinite" in diverged.stderr and "Traceback" not in diverged.stderr
    assert "lower --learning-rate and start over with --force" in diverged.stderr
    for state in (tmp_path / "lenet" / "checkpoints").glob("*/state.npz"):
        with np.load(state) as arrays:
            assert all(np.isfinite(arrays[name]).all() for name in arrays.files)
    assert not (tmp_path / "lenet" / "card.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lenett"], "did you mean 'lenet'"),
        (["lenet", "--recipe", "fast"], "it has: report, cpu"),
        (
            ["lenet", "--dataset", "digits", "--weights", "imagenet"],
            "these recipes do: mobilenetv2 report,",
        ),
        (
            ["mobilenetv2", "-d", "digits", "-r", "cpu", "--weights", "imagenet"],
            "mobilenetv2 by recipe cpu does not",
        ),
        (["lenet", "--dataset", "cifar"], "There are: cifar10, digits, folder"),
        (["lenet", "--dataset", "digits", "--name", "../x"], "cannot name a model"),
        (["../../etc/passwd"], "There are: alexnet"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said, tmp_path):
    refused = run(*arguments, "--store", str(tmp_path))
    assert refused.returncode == 1 and said in refused.stderr and "Traceback" not in refused.stderr
    assert not any(tmp_path.iterdir())


def test_jax_trains_the_same_files_where_there_is_no_tensorflow(tmp_path):
    arguments = [
        "training",
        "lenet",
        "--dataset",
        "digits",
        "--recipe",
        "quick",
        "--epochs",
        "1",
        "--store",
        str(tmp_path),
    ]
    probe = (
        "import sys, runpy\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'tensorflow': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"sys.argv = {arguments!r}\n"
        "runpy.run_module('training', run_name='__main__')"
    )
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "jax" in card(tmp_path).versions and "tensorflow" not in card(tmp_path).versions


def test_all_goes_on_after_a_failure_and_names_it(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    quick = plugin("training.models", "lenet").RECIPES["quick"]  # as if it had run for all its epochs
    done = dataclasses.replace(card(tmp_path), recipe=quick.decisive())
    write_atomic(tmp_path / "lenet" / "card.json", to_json(done))
    (tmp_path / "simcnn").write_text("a file where the folder should be")
    failed = run(
        "all", "--dataset", "digits", "--recipe", "quick", "--models", "simcnn,lenet", "--store", str(tmp_path)
    )
    assert failed.returncode == 1 and "1 of 2 models failed: simcnn" in failed.stderr
    assert "lenet is done" in failed.stdout


@pytest.mark.parametrize(("given", "recipe"), [([], "cpu"), (["RECIPE=report"], "report")])
def test_make_trains_the_family_by_the_recipes_of_the_readme(given: list[str], recipe: str) -> None:
    told = subprocess.run(
        ["make", "--dry-run", "train-all", "DATASET=cifar10", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"-m training all --dataset cifar10  --recipe {recipe} " in told.stdout
    for name in plugin_names("training.models"):
        assert recipe in plugin("training.models", name).RECIPES


def test_the_command_trains_the_family_by_the_same() -> None:
    import inspect

    from training.__main__ import train_all

    assert inspect.signature(train_all).parameters["recipe"].default == "cpu"
