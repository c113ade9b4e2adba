"""The comparison with Olive and NNCF: what keeps its row and why, and the verdict."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import export as peers
from benchmarks.peers.export import Contender

OURS = Contender("m", "onnx-int8", True, "onnx", "", "", "", 80.0, 10, 1.0, 1000.0)
THEIRS = dataclasses.replace(OURS, name="olive", ours=False, top1=80.05, p50_ms=1.5)


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    np.save(tmp_path / "calibration.npy", np.zeros((2, 4, 4, 3), np.uint8))
    return tmp_path / "calibration.npy"


@pytest.mark.parametrize("peer", sorted(peers.PEERS))
def test_a_peer_that_is_not_installed_keeps_its_row(peer: str, calibration: Path, tmp_path: Path) -> None:
    row = peers.quantized(peer, "m", tmp_path / "m.onnx", calibration, tmp_path / peer, Path(sys.executable), 60)
    assert row.name == peer and not row.ours and row.top1 is None
    assert "is not installed; run: make peers-export" in row.reason or "No such file" in row.reason


def test_a_missing_interpreter_and_a_slow_peer_keep_their_rows(
    calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (calibration, tmp_path / "a", tmp_path / "nowhere" / "python", 60)
    assert "cannot be run" in peers.quantized("olive", "m", tmp_path / "m.onnx", *made).reason

    def slow(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("python", 60)

    monkeypatch.setattr(subprocess, "run", slow)
    row = peers.quantized("olive", "m", tmp_path / "m.onnx", calibration, tmp_path / "b", Path(sys.executable), 60)
    assert row.reason == "took longer than 60 s"


def test_the_verdict_compares_with_the_most_accurate_peer() -> None:
    fast = dataclasses.replace(THEIRS, name="nncf-openvino", top1=70.0, p50_ms=0.5)
    broken = dataclasses.replace(THEIRS, name="nncf-onnx", reason="it fell over", top1=None, p50_ms=None)
    told = peers.verdict([OURS, THEIRS, fast, broken])
    assert "ours is onnx-int8 with 80.00% in 1.0000 ms" in told and "olive with 80.05%" in told
    assert "1.50 times ours" in told and "fastest nncf-openvino with 70.00%" in told
    assert "no variant of ours is within 0.1" in peers.verdict([dataclasses.replace(OURS, top1=79.9), THEIRS])
    assert "nothing to compare" in peers.verdict([OURS, broken]) or "no peer" in peers.verdict([OURS, broken])


def test_every_contender_has_a_row() -> None:
    broken = dataclasses.replace(THEIRS, reason="it fell over", top1=None, p50_ms=None)
    assert peers.table([OURS, broken]).row_count == 2
