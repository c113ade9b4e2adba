"""Sweeps: what is tried, that a failing trial does not stop the rest, and that nothing is trained twice."""

from __future__ import annotations

import csv
import dataclasses
import json
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
    assert {trial.recipe.optimizer for trial in drawn} == {"sgd", "adamw"}, "adam with a decay would be adamw again"
    assert drawn == sweep.trials(asked(tmp_path, space="wide", search="random", trials=40))
    assert drawn[:10] == sweep.trials(asked(tmp_path, space="wide", search="asha", trials=10))
    assert drawn != sweep.trials(asked(tmp_path, space="wide", search="random", trials=40, seed=1))


def test_what_cannot_be_searched_is_said(tmp_path, monkeypatch):
    with pytest.raises(KilnError, match=r"a range for learning_rate; take --search random or asha"):
        sweep.trials(asked(tmp_path, space="wide"))
    with pytest.raises(KilnError, match=r"no space 'reprots'; did you mean 'reports'\?"):
        sweep.trials(asked(tmp_path, space="reprots"))
    spaces(monkeypatch, {}, {"optimizer": ["lion"]})
    with pytest.raises(KilnError, match="a recipe's optimizer is one of adam, adamw, sgd, rmsprop, not 'lion'"):
        sweep.trials(asked(tmp_path))
    spaces(monkeypatch, {}, {"optimizer": ["sgd"]})
    with pytest.raises(KilnError, match="holds out no images to judge by"):
        sweep.trials(asked(tmp_path, base=lenet.RECIPES["report"]))
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
    sweep._claim(few, sweep.trials(few), "a" * 64)
    more = dataclasses.replace(few, trials=5)
    sweep._claim(more, sweep.trials(more), "a" * 64)
    other = dataclasses.replace(few, seed=1)
    with pytest.raises(KilnError, match="keeps another sweep; give --out another folder"):
        sweep._claim(other, sweep.trials(other), "a" * 64)
    with pytest.raises(KilnError, match="a sweep over other images than digits has now; give --out another folder"):
        sweep._claim(more, sweep.trials(more), "b" * 64)


def test_a_trial_that_failed_after_good_epochs_is_not_the_best(tmp_path):
    first, second, third, *_ = sweep.trials(asked(tmp_path))
    failed = Outcome(first, "failed", "the loss is NaN", [0.8, 0.9], 1.0)
    done, stopped = Outcome(second, "done", "", [0.5], 1.0), Outcome(third, "stopped", "by ASHA", [0.6], 1.0)
    assert sweep.ranked([failed, done, stopped]) == [stopped, done, failed]
    with pytest.raises(KilnError, match="every trial failed; the first: the loss is NaN"):
        sweep.report(asked(tmp_path), [failed])


def test_only_asha_is_said_to_stop_a_trial(tmp_path):
    trial = sweep.trials(asked(tmp_path))[0]
    halfway = SimpleNamespace(config={"trial": trial}, metrics_dataframe=None, metrics=None, error=None)
    assert sweep._outcome(asked(tmp_path, search="asha"), halfway).reason == "by ASHA"
    assert sweep._outcome(asked(tmp_path), halfway).reason == "early"


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


def test_what_a_scheduler_stopped_is_kept(tmp_path, monkeypatch):
    """Ray ends a trial's function inside its report, the last one's too."""
    spaces(monkeypatch, {"epochs": 2, "batch_size": 256}, {"learning_rate": [0.01]})
    asking = asked(tmp_path)
    (trial,) = sweep.trials(asking)
    reported: list[int] = []

    def stopped(row: dict[str, float]) -> None:
        reported.append(int(row["epoch"]))
        if reported in ([1], [1, 1, 2]):
            raise SystemExit

    monkeypatch.setattr("ray.tune.report", stopped)
    for _ in range(2):
        with pytest.raises(SystemExit):
            sweep.train_trial({"sweep": asking, "trial": trial})
    folder = tmp_path / "trials" / trial.key
    first = (folder / sweep.RESULT).read_text()
    assert len(json.loads(first)["history"]) == 2 and not (folder / "trial" / "checkpoints").exists()
    sweep.train_trial({"sweep": asking, "trial": trial})
    assert reported == [1, 1, 2, 1, 2] and (folder / sweep.RESULT).read_text() == first


def test_ctrl_c_ends_a_sweep_with_the_way_to_go_on(tmp_path):
    command = [sys.executable, "-m", "training", "sweep", "lenet", "--dataset", "digits", "--recipe", "quick"]
    command += ["--space", "wide", "--search", "random", "--trials", "4", "--epochs", "900", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=catalog.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("ray/*/train_trial*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does; trials wait for the processor then, and none is begun
    out, said = process.communicate(timeout=90)
    assert process.returncode == 130, said
    assert "To go on: python -m training sweep lenet" in said
    assert "Traceback" not in out + said and "best" not in out


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    command = [sys.executable, "-m", "training", "sweep", "lenet", "--dataset", "digits", "--recipe", "quick"]
    command += ["--space", "wide", "--search", "asha", "--trials", "6", "--epochs", "4", "--out", str(tmp_path)]
    first = subprocess.Popen(command, cwd=catalog.ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 600

    def histories() -> dict[Path, list[dict[str, float]]]:
        return {path: json.loads(path.read_text())["history"] for path in tmp_path.glob("trials/*/result.json")}

    while all(len(rows) < 4 for rows in histories().values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(5)  # its workers outlive it for a moment
    for path in histories():  # a figure that only a replay can give
        path.write_text(path.read_text().replace('"val_accuracy": 0.', '"val_accuracy": 0.99'))
    kept = histories()
    done = subprocess.run(command, cwd=catalog.ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    for path, replayed in kept.items():
        assert histories()[path][: len(replayed)] == replayed
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and float(rows[0]["val_accuracy"]) > 0.99
    assert '"best": Recipe(' in done.stdout
