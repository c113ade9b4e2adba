"""The comparison of the training loop with a bare fit: refuses what it does not know, and measures both sides."""

import json
import subprocess
import sys

import pytest

from catalog import ROOT

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
    assert 0 < found["lenet"]["augmentation"] < 1 and found["start_up_s"] > 0
