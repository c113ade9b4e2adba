"""Sweeps: what is tried, that a failing trial does not stop the rest, and that nothing is trained twice."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import catalog
from catalog import KilnError, Recipe
from training import sweep
from training.models import alexnet, lenet
from training.sweep import Outcome, Sweep, Trial


def asked(folder: Path, **changes: Any) -> Sweep:
    base = Sweep("lenet", "reports", "grid", 4, lenet.RECIPES["quick"], "digits", "", 0, folder)
    return dataclasses.replace(base, **changes)


def spaces(monkeypatch: pytest.MonkeyPatch, base: dict[str, Any], varied: dict[str, Any]) -> None:
    """Puts a space of the test's own in the place of all others."""
    plugin = catalog.plugin
    space = SimpleNamespace(BASE=base, space=lambda model: varied)
    monkeypatch.setattr(catalog, "plugin", lambda p, n: space if p == "training.spaces" else plugin(p, n))


def test_the_reports_grid_is_sixteen_recipes_and_alexnets_thirty_two(tmp_path):
    tried = sweep.trials(asked(tmp_path))
    assert len(tried) == len({trial.key for trial in tried}) == 16
    assert {(t.recipe.optimizer, t.recipe.learning_rate, t.recipe.weight_decay, t.recipe.augment) for t in tried} == {
        (o, r, w, a)
        for o in ("sgd", "adam")
        for r in (0.001, 0.01)
        for w in (5e-4, 1e-4)
        for a in ("basic", "advanced")
    }
    assert {(t.recipe.schedule, t.recipe.epochs, t.recipe.batch_size) for t in tried} == {("cosine", 10, 128)}
    many = sweep.trials(asked(tmp_path, model="alexnet", base=alexnet.RECIPES["cpu"]))
    assert len(many) == 32 and {trial.recipe.dropout for trial in many} == {0.3, 0.5}


def test_draws_stay_in_their_ranges_and_follow_from_the_seed(tmp_path):
    drawn = sweep.trials(asked(tmp_path, space="wide", search="random", trials=40))
    assert all(3e-4 <= trial.recipe.learning_rate <= 0.1 for trial in drawn)
    assert len({trial.recipe.learning_rate for trial in drawn}) > 30
    assert drawn == sweep.trials(asked(tmp_path, space="wide", search="random", trials=40))
    assert drawn[:10] == sweep.trials(asked(tmp_path, space="wide", search="asha", trials=10))
    assert drawn != sweep.trials(asked(tmp_path, space="wide", search="random", trials=40, seed=1))


def test_what_cannot_be_searched_is_said(tmp_path, monkeypatch):
    with pytest.raises(KilnError, match=r"a range for learning_rate; take --search random or asha"):
        sweep.trials(asked(tmp_path, space="wide"))
    with pytest.raises(KilnError, match=r"no space 'reprots'; did you mean 'reports'\?"):
        sweep.trials(asked(tmp_path, space="reprots"))
    spaces(monkeypatch, {}, {"optimiser": ["sgd"]})
    with pytest.raises(KilnError, match="varies 'optimiser', which no recipe has"):
        sweep.trials(asked(tmp_path))


def test_the_best_is_printed_as_a_recipe_that_python_reads(tmp_path):
    trial = Trial(3, {"optimizer": "sgd"}, dataclasses.replace(Recipe(), optimizer="sgd", sizes=((0.0, 24),), epochs=7))
    text = sweep.as_recipe(Outcome(trial, "done", "", [0.1, 0.5], 3.0), asked(tmp_path))
    read = eval("{" + text + "}", {"Recipe": Recipe})["best"]
    assert read.decisive() == trial.recipe.decisive()
    assert read.source == "sweep over reports: 50.00% of the validation split of digits, seed 0"


def test_a_folder_keeps_one_sweep_which_may_grow(tmp_path):
    few = asked(tmp_path, space="wide", search="random", trials=3)
    sweep._claim(few, sweep.trials(few))
    more = dataclasses.replace(few, trials=5)
    sweep._claim(more, sweep.trials(more))
    other = dataclasses.replace(few, seed=1)
    with pytest.raises(KilnError, match="keeps another sweep; give --out another folder"):
        sweep._claim(other, sweep.trials(other))


def test_a_failing_trial_leaves_the_others(tmp_path, monkeypatch, capsys):
    spaces(monkeypatch, {"epochs": 1, "batch_size": 128}, {"learning_rate": [0.003, 1e30], "optimizer": ["sgd"]})
    outcomes = sweep.run(asked(tmp_path))
    assert [outcome.status for outcome in outcomes] == ["done", "failed"]
    assert outcomes[0].accuracy > 0.05 and "the loss is NaN or infinite in epoch 1" in outcomes[1].reason
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["learning_rate"] for row in rows] == ["0.003", "1e+30"]
    sweep.report(asked(tmp_path), outcomes)
    printed = capsys.readouterr().out
    assert '"best": Recipe(' in printed and "learning_rate=0.003" in printed and "failed: " in printed
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    command = [sys.executable, "-m", "training", "sweep", "lenet", "--dataset", "digits", "--recipe", "quick"]
    command += ["--space", "wide", "--search", "asha", "--trials", "6", "--epochs", "4", "--out", str(tmp_path)]
    first = subprocess.Popen(command, cwd=catalog.ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("trials/*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("trials/*/result.json")}
    assert kept
    for path in kept:  # a figure that only a replay can give
        path.write_text(path.read_text().replace('"val_accuracy": 0.', '"val_accuracy": 0.99'))
        kept[path] = path.stat().st_mtime_ns
    done = subprocess.run(command, cwd=catalog.ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and float(rows[0]["val_accuracy"]) > 0.99
    assert '"best": Recipe(' in done.stdout
