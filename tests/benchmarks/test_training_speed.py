"""The comparison of the training loop with a bare fit: refuses what it does not know, and measures both sides."""

import json
import subprocess
import sys

import pytest

from benchmarks import training_speed
from catalog import ROOT, KilnError

COMMAND = [sys.executable, "-m", "benchmarks.training_speed"]


def test_an_unknown_network_is_refused_before_anything_is_measured():
    refused = subprocess.run([*COMMAND, "--models", "lenet,nope"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "no network 'nope' is measured here; there are: lenet, simcnn, resnet50" in refused.stderr.replace("\n", " ")


@pytest.mark.slow
def test_both_sides_are_measured(tmp_path):
    command = [*COMMAND, "--models", "lenet", "--rounds", "2", "--out", str(tmp_path / "speed.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    found = json.loads((tmp_path / "speed.json").read_text())
    assert len(found["lenet"]["ratios"]) == 2 and found["lenet"]["ours"] > 0 and found["lenet"]["bare"] > 0
    assert 0 < found["lenet"]["augmentation"]["basic"] < found["lenet"]["augmentation"]["advanced"]
    assert found["start_up_s"]["lenet"] > 0


def test_a_goal_is_met_or_missed_by_the_figures():
    simcnn = {"ratios": [0.9, 0.95, 1.0], "augmentation": {"basic": 0.16, "advanced": 0.15}}
    told = training_speed._goals({"start_up_s": {"simcnn": 15.1}, "simcnn": simcnn})
    assert list(told.values()) == [False, True, False, True]
    lenet = {"ratios": [0.94], "augmentation": {"basic": 0.5, "advanced": 0.9}}
    assert list(training_speed._goals({"start_up_s": {"lenet": 3.0}, "lenet": lenet}).values()) == [True, False]


def test_a_training_that_ends_before_its_first_step_is_no_fast_start(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "none such")
    with pytest.raises(KilnError, match="no training step was reached: "):
        training_speed._start_up("lenet")
