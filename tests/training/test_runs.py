"""Whole runs as a user starts them: killed, corrupted, diverged, changed, interrupted, repeated (faults 44 to 48)."""

import csv
import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
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
    page = (folder / "index.html").read_text()
    plots = {f"plots/{path.name}" for path in (folder / "plots").glob("*.png")}
    assert len(plots) == 5 and plots == set(re.findall(r'src="([^"]+)"', page))
    assert f"{made.accuracy.top1:.2f}" in page
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


def checkpoints(store: Path) -> set[str]:
    return {path.name for path in (store / "lenet" / "checkpoints").glob("e*-s*")}


def wait_for_checkpoint(store: Path, process: subprocess.Popen[Any], before: Collection[str] = ()) -> None:
    """Until the run has saved one that was not there before: it trains."""
    deadline = time.monotonic() + 100
    while not checkpoints(store).difference(before) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def kill_and_finish(store: Path, command: list[str], kills: int, seed: int) -> None:
    """Kills a run `kills` times, each at a random moment after a checkpoint of its own, then lets it finish."""
    moments = random.Random(seed)
    for _ in range(kills):
        before = checkpoints(store)
        process = subprocess.Popen([*TRAIN, *command, "--store", str(store)], cwd=ROOT, stderr=subprocess.DEVNULL)
        wait_for_checkpoint(store, process, before)
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -signal.SIGKILL and checkpoints(store) - before
    assert run(*command, "--store", str(store)).returncode == 0


def test_a_killed_run_ends_in_the_same_weights(uninterrupted, tmp_path):
    kill_and_finish(tmp_path, SHORT, kills=1, seed=0)
    assert card(tmp_path).weights_sha256 == card(uninterrupted).weights_sha256


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_end_in_the_same_weights(tmp_path):
    longer = [*SHORT[:-3], "40", *SHORT[-2:]]
    assert run(*longer, "--store", str(tmp_path / "uninterrupted")).returncode == 0
    kill_and_finish(tmp_path / "killed", longer, kills=20, seed=1)
    assert card(tmp_path / "killed").weights_sha256 == card(tmp_path / "uninterrupted").weights_sha256


def patched(store: Path, patch: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command with lines of Python run before it."""
    words = ["training", *SHORT, "--store", str(store), *arguments]
    program = f"{patch}\nimport runpy, sys\nsys.argv = {words!r}\nrunpy.run_module('training', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )


KILLED_SAVING = """
import os, pathlib, signal
rename, saved = pathlib.Path.rename, []
def killed(self, target):
    if "checkpoints" in str(target):
        saved.append(target)
        if len(saved) == 3:
            {first}
            os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
pathlib.Path.rename = killed
"""


@pytest.mark.parametrize(
    "first", ["pass", pytest.param("rename(self, target)", marks=pytest.mark.slow)], ids=["before", "after"]
)
def test_a_kill_inside_a_save_costs_that_save_at_most(uninterrupted, tmp_path, first):
    assert patched(tmp_path, KILLED_SAVING.format(first=first)).returncode == -signal.SIGKILL
    assert len(checkpoints(tmp_path)) == (2 if first == "pass" else 3)
    done = run(*SHORT, "--store", str(tmp_path))
    assert done.returncode == 0 and "damaged" not in done.stderr
    assert card(tmp_path).weights_sha256 == card(uninterrupted).weights_sha256


@pytest.fixture
def interrupted(tmp_path) -> tuple[Path, str]:
    """A run stopped by SIGINT, and what it said."""
    process = subprocess.Popen([*TRAIN, *SHORT, "--store", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(tmp_path, process)
    wait_for_checkpoint(tmp_path, process, checkpoints(tmp_path))  # so that there is one to go back to
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
    forced = run(*SHORT, "--learning-rate", "0.01", "--epochs", "1", "--force", "--store", str(store))
    assert forced.returncode == 0 and "going on" not in forced.stderr
    assert card(store).recipe["learning_rate"] == 0.01


def test_force_keeps_what_is_there_until_the_run_can_begin(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    refused = run(*SHORT, "--force", "--devices", "7", "--store", str(tmp_path))
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    Store(tmp_path).verify(tmp_path / "lenet", card(tmp_path).files, extra_allowed=True)


def test_a_model_is_not_taught_by_what_it_would_replace(uninterrupted):
    refused = run(*SHORT, "--teacher", "lenet", "--force", "--store", str(uninterrupted))
    assert refused.returncode == 1 and "cannot be taught by itself" in refused.stderr
    assert card(uninterrupted)


def test_a_second_run_says_it_is_done_and_another_recipe_is_refused(uninterrupted):
    again = run(*SHORT, "--store", str(uninterrupted))
    assert again.returncode == 0 and "is done" in again.stdout
    before = sha256_of(uninterrupted / "lenet" / "model.keras")
    other = run(*SHORT, "--batch-size", "64", "--store", str(uninterrupted))
    assert other.returncode == 1 and "--name" in other.stderr and "--force" in other.stderr
    assert sha256_of(uninterrupted / "lenet" / "model.keras") == before


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    diverged = run("lenet", "--dataset", "digits", "--recipe", "report", "--learning-rate", "1e30",
                   "--checkpoint-seconds", "0", "--store", str(tmp_path))  # fmt: skip
    assert diverged.returncode == 1
    assert "NaN or infinite" in diverged.stderr and "Traceback" not in diverged.stderr
    assert "lower --learning-rate and start over with --force" in diverged.stderr
    assert "no checkpoint was saved yet" in diverged.stderr and not checkpoints(tmp_path)
    assert not (tmp_path / "lenet" / "card.json").exists()


POISONED = """
from training import epochs
draw = epochs.draw
def poisoned(recipe, data, seed, epoch, devices=1):
    x, y, weight = draw(recipe, data, seed, epoch, devices)
    y[len(y) // 2 :] = float("nan") if epoch == 1 else y[len(y) // 2 :]
    return x, y, weight
epochs.draw = poisoned
"""


def test_the_last_good_checkpoint_of_a_run_that_diverges_is_kept(tmp_path):
    diverged = patched(tmp_path, POISONED)
    assert diverged.returncode == 1 and "Traceback" not in diverged.stderr
    assert "the loss is NaN or infinite in epoch 2; the last good checkpoint is kept" in diverged.stderr
    newest = tmp_path / "lenet" / "checkpoints" / max(checkpoints(tmp_path))
    assert newest.name > "e00001" and newest.name < "e00002"
    with np.load(newest / "state.npz") as arrays:
        assert all(np.isfinite(arrays[name]).all() for name in arrays.files)


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


WITHOUT_TENSORFLOW = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'tensorflow':
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


def test_jax_trains_the_same_files_where_there_is_no_tensorflow(tmp_path):
    done = patched(tmp_path, WITHOUT_TENSORFLOW, "--epochs", "1", KERAS_BACKEND="jax")
    assert done.returncode == 0, done.stderr
    assert card(tmp_path).command.startswith("KERAS_BACKEND=jax python -m training ")
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
