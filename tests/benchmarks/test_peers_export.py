"""The comparison with Olive and NNCF: what keeps its row and why, and the verdicts."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console

import catalog
from benchmarks.peers import export as peers
from benchmarks.peers import exported
from benchmarks.peers.exported import Contender
from catalog import KilnError, Store, Variant
from export import answers
from tests.benchmarks.conftest import write_model, write_variant

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


def test_the_interpreter_may_be_named_relative_to_where_the_command_runs(calibration: Path, tmp_path: Path) -> None:
    here = Path(os.path.relpath(sys.executable))
    row = peers.quantized("olive", "m", tmp_path / "m.onnx", calibration, tmp_path / "olive", here, 60)
    assert row.reason and "cannot be run" not in row.reason


def test_peers_send_no_telemetry(calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openvino_telemetry.py").write_text("")
    (tmp_path / "nncf.py").write_text("import openvino_telemetry")  # NNCF itself does without where this fails
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = (tmp_path / "m.onnx", calibration, tmp_path / "out", Path(sys.executable), 60)
    assert "openvino_telemetry is not installed" in peers.quantized("nncf-onnx", "m", *made).reason


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("olive", {}, "we lose in nothing"),
        ("olive", {"p50_ms": 0.8, "top1": 79.95}, "we lose in latency"),
        ("olive", {"p50_ms": 0.8, "images_per_s": 2000.0}, "we lose in latency and throughput"),
        ("olive", {"p50_ms": 0.97, "images_per_s": 1030.0}, "we lose in nothing"),
        ("olive", {"top1": 80.5}, "we lose in accuracy"),
        (
            "olive",
            {"p50_ms": 0.8, "images_per_s": 1500.0, "top1": 70.0},
            "it is better in latency (0.8000 ms against 1.0000 ms) and throughput "
            "(1,500 images/s against 1,000 images/s) and 10.00 points less accurate (70.00% against 80.00%)",
        ),
        ("nncf-openvino", {"format": "openvino"}, "nothing of ours to hold against it; run: python -m export m "),
        ("olive", {"reason": "it fell over"}, "m: olive: no figures, because it fell over"),
    ],
)
def test_a_peer_is_held_against_what_was_made_as_it_was(name: str, change: dict[str, Any], said: str) -> None:
    fastest = dataclasses.replace(OURS, name="litert-int8", format="litert", p50_ms=0.1)  # another runtime: not alike
    (told, *_) = exported.verdicts([OURS, fastest, dataclasses.replace(THEIRS, name=name, **change)])
    assert said in told and ("we lose in" not in said or told.endswith(said))
    assert "less accurate" not in told or "we lose in nothing" not in told


def test_ours_that_failed_is_a_loss() -> None:
    broken = dataclasses.replace(OURS, reason="it crashed", top1=None, p50_ms=None)
    told = exported.verdicts([broken, THEIRS])
    assert told[0].endswith("we lose, ours failed")
    assert told[1] == "m: onnx-int8 of ours: no figures, because it crashed"


def test_the_best_of_ours_is_chosen_on_images_held_out_of_training() -> None:
    kept = dataclasses.replace(OURS, validation_drop=0.2)
    lucky = dataclasses.replace(OURS, name="litert-int8", format="litert", p50_ms=0.1, top1=81.0, validation_drop=0.9)
    unknown = dataclasses.replace(lucky, name="litert-fp16", validation_drop=None)
    assert exported.best_of_ours([kept, lucky, unknown, THEIRS], "latency") == kept
    assert exported.verdicts([kept, lucky, THEIRS])[-2].startswith("m: for latency the best of ours, of those within")
    assert exported.best_of_ours([lucky, THEIRS], "latency") is None


def test_the_best_is_another_for_another_objective() -> None:
    quick = dataclasses.replace(OURS, name="litert-int8", format="litert", p50_ms=0.1, validation_drop=0.0)
    broad = dataclasses.replace(OURS, name="openvino-int8", format="openvino", p50_ms=3.0, images_per_s=9000.0)
    rows = [quick, dataclasses.replace(broad, validation_drop=0.0), dataclasses.replace(THEIRS, images_per_s=5000.0)]
    latency, throughput = exported.verdicts(rows)[-2:]
    assert latency.startswith("m: for latency ") and "litert-int8" in latency and latency.endswith("we lose in nothing")
    assert throughput.startswith("m: for throughput ") and "openvino-int8" in throughput
    assert throughput.endswith("we lose in nothing")
    assert exported.verdicts(rows[::2])[-1].endswith("we lose in throughput")
    assert exported.table(rows).row_count == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "best peer: olive 80.05%, 1.5000 ms, 1,000 images/s: we lose in nothing"),
        ({"p50_ms": 0.9, "images_per_s": 1200.0, "top1": 79.9}, "we lose in latency"),
        ({"p50_ms": 0.9, "top1": 79.8}, "and 0.20 points less accurate (79.80% against 80.00%)"),
        ({"top1": 80.2}, "we lose in accuracy"),
        ({"reason": "it fell over", "top1": None}, "no peer has figures"),
    ],
)
def test_the_best_of_ours_is_judged_against_the_best_peer(change: dict[str, Any], said: str) -> None:
    """In one sentence an objective, whatever the formats: `LIKE` has no say."""
    best = dataclasses.replace(OURS, name="litert-int8", format="litert", validation_drop=0.2)
    slow = dataclasses.replace(THEIRS, name="nncf-onnx", top1=79.7, p50_ms=0.5)
    rude = dataclasses.replace(THEIRS, name="nncf-openvino", format="openvino", top1=60.0, p50_ms=0.1)
    peer = dataclasses.replace(THEIRS, **change)
    rows = [best, peer] if peer.reason else [best, slow, rude, peer]
    told = [line for line in exported.verdicts(rows) if "best of ours" in line]
    assert len(told) == 2 and told[0].endswith(said)
    assert all("litert-int8 80.00%, 1.0000 ms, 1,000 images/s" in line for line in told)


def test_each_peer_is_matched_by_what_of_ours_is_as_accurate_and_as_fast() -> None:
    """Whatever its format and whether or not it is the best: the fastest may be less accurate."""
    quick = dataclasses.replace(OURS, name="litert-int8", format="litert", p50_ms=0.1, images_per_s=9000.0, top1=79.9)
    rows = [OURS, quick, THEIRS, dataclasses.replace(THEIRS, name="nncf-onnx", images_per_s=2000.0)]
    told = [line for line in exported.verdicts(rows) if "as accurate within" in line]
    assert told == [
        f"m: for {aim}, as accurate within 0.1 points and as fast: olive by onnx-int8, nncf-onnx by {other}"
        for aim, other in (("latency", "onnx-int8"), ("throughput", "nothing of ours"))
    ]


def test_a_loss_in_accuracy_tells_whether_it_may_be_chance() -> None:
    labels = np.zeros(10_000, np.int64)
    ours, peer = np.zeros_like(labels), np.zeros_like(labels)
    ours[:40], peer[20:45] = 1, 1  # 20 right for the peer alone, 5 for ours alone
    told = {"onnx-int8": ours, "olive": peer, "nncf-onnx": "it fell over"}
    theirs = dataclasses.replace(THEIRS, top1=80.2)
    mine, *_ = peers.beside([OURS, theirs, dataclasses.replace(THEIRS, name="nncf-onnx")], told, labels)
    assert mine.beside == {"olive": (5, 20)}
    assert exported.verdicts([mine, theirs])[0].endswith("we lose in accuracy (McNemar's p = 0.0041)")
    even = dataclasses.replace(OURS, beside={"olive": (40, 53)})
    assert exported.verdicts([even, theirs])[0].endswith("accuracy (McNemar's p = 0.21, which may be chance)")
    assert exported.verdicts([OURS, theirs])[0].endswith("we lose in accuracy")  # of a file of before


def test_no_variant_within_the_budget_is_a_loss() -> None:
    lossy = dataclasses.replace(OURS, validation_drop=2.0)
    assert exported.verdicts([lossy, THEIRS])[-1].endswith(
        ": none; best peer: olive 80.05%, 1.5000 ms, 1,000 images/s: we lose"
    )


def test_every_contender_has_a_row() -> None:
    broken = dataclasses.replace(THEIRS, reason="it fell over", top1=None, p50_ms=None)
    assert exported.table([OURS, broken]).row_count == 2
    assert exported.table([dataclasses.replace(OURS, validation_drop=0.0), broken]).row_count == 4


def test_the_table_has_room_for_its_figures_in_a_narrow_terminal() -> None:
    ours = dataclasses.replace(
        OURS, model="mobilenetv2", name="openvino-int8", validation_drop=0.0, size_bytes=94_123_456
    )
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(exported.table([ours, dataclasses.replace(THEIRS, model="mobilenetv2")]))
    text = console.export_text()
    assert "mobilenetv2/openvino-int8 (throughput)" in text and "…" not in text
    assert all(figure in text for figure in ("80.00%", "1.0000", "1,000", "94,123"))


def test_a_model_that_cannot_be_compared_costs_only_its_own_rows(digits: Any, tmp_path: Path) -> None:
    store, out = Store(tmp_path / "store"), tmp_path / "peers-export.json"
    write_model(store, digits)
    write_variant(store, digits, Variant("tiny", "onnx"), b"this is no ONNX file")
    peers.compare(Path(sys.executable), ["missing", "tiny"], store.root, out, 1, 60)
    rows = {f"{row['model']}/{row['name']}": row["reason"] for row in json.loads(out.read_text())["rows"]}
    assert "no trained model 'missing'" in rows["missing/olive"]
    assert "not an ONNX file" in rows["tiny/onnx-fp32"] and "is not installed" in rows["tiny/olive"]
    assert len(rows) == 7


def test_what_was_made_of_other_weights_takes_no_part(digits: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    write_model(store, digits)
    fp32 = Variant("tiny", "onnx")
    write_variant(store, digits, fp32, b"of today")
    write_variant(store, digits, Variant("tiny", "onnx", "int8"), b"of today")
    assert [row.name for row in peers._ours(store, "tiny")] == ["onnx-fp32", "onnx-int8"]
    assert peers._source(store, "tiny").name == "model.onnx"
    write_variant(store, digits, fp32, b"of before", parent="f" * 64)
    assert [row.name for row in peers._ours(store, "tiny")] == ["onnx-int8"]
    with pytest.raises(KilnError, match="no onnx-fp32 of its weights"):
        peers._source(store, "tiny")


def test_what_ours_answered_at_its_export_is_not_asked_again(digits: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    write_model(store, digits)
    write_variant(store, digits, Variant("tiny", "onnx"), b"this is no ONNX file")
    nines = np.tile(np.eye(10, dtype=np.float32)[9], (len(digits.x_test), 1))
    answers.write(tmp_path / "left.npz", nines)
    packages = catalog.plugin("export.formats", "onnx").PACKAGES
    answers.keep(store, store.variants("tiny")[0], packages, 1, tmp_path / "left.npz")
    (row,) = peers._ours(store, "tiny")
    kept = peers._answered(row, digits, 1, peers._kept(store, row, 1))
    proved = peers._proved(row, kept, digits.y_test)
    assert not proved.reason and proved.top1 == pytest.approx(100 * (digits.y_test == 9).mean(), abs=1e-3)
    assert peers._kept(store, row, 2) is None and peers._kept(store, THEIRS, 1) is None
    asked = peers._answered(row, digits, 2, None)
    assert "not an ONNX file" in asked and peers._proved(row, asked, digits.y_test).reason == asked


def test_what_cannot_be_timed_keeps_its_row(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"this is no ONNX file")
    row = dataclasses.replace(OURS, folder=str(tmp_path), file="model.onnx", p50_ms=None, images_per_s=None)
    (timed,) = peers._timed([row], 8, 8, 1)
    assert timed.reason.startswith("cannot be timed: ") and timed.top1 is None


def test_without_names_all_of_the_store_take_part(tmp_path: Path) -> None:
    with pytest.raises(KilnError, match=r"no trained model in .*; run: make train-all export-all"):
        peers.compare(Path(sys.executable), None, tmp_path)
