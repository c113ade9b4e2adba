"""What a report says over HTTP of a run in rounds, and of an older one."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest

from benchmarks import results as records
from benchmarks.judging.compare import groups
from benchmarks.reporting import over_http
from benchmarks.reporting.columns import table
from benchmarks.reporting.report import render
from benchmarks.results import Results, TaxRound
from catalog import to_json


@pytest.fixture
def in_rounds(golden: Results) -> Results:
    """The golden run, had it asked over HTTP in three rounds, the slowest of them twice as slow as the quickest."""
    details = {}
    for name, detail in golden.details.items():
        tax = detail.tax
        if tax is not None:
            stages = (tax.decode_ms, tax.queue_ms, tax.compute_ms, tax.handling_ms, tax.transport_ms)
            rounds = [TaxRound(k * tax.http_ms, *stages, images_per_s=700.0 / k) for k in (0.75, 1.0, 1.5)]
            tax = dataclasses.replace(
                tax, p90_ms=2.5, p99_ms=4.25, rounds=rounds, images_per_s=700.0, server_rate=525.0, server_p99_ms=14.5
            )
        details[name] = dataclasses.replace(detail, tax=tax)
    settings = dataclasses.replace(golden.settings, http_rounds=3, http_seconds=0.2)
    return dataclasses.replace(
        golden,
        details=details,
        settings=settings,
        http_load_before=[0.4, 0.4, 0.4],
        http_others_percent=12.0,
        http_steal_percent=0.0,
    )


def test_every_figure_over_http_is_told(in_rounds: Results) -> None:
    report = render(in_rounds, pictures=False)
    lines = report.markdown.splitlines()
    head = next(line for line in lines if line.startswith("| model | variant | in process | over HTTP |"))
    assert head.endswith("| transport | low | high | p90 | p99 | images/s | held/s |")
    row = next(line for line in lines[lines.index(head) + 2 :] if "| mobilenetv2 | onnx-int8 |" in line)
    assert row.endswith("| 0.90 | 1.8 | 2.5 | 4.2 | 700 | 520 |") and row.count("|") == head.count("|")
    assert "700 <small>467 to 933</small>" in report.html
    told = next(r for r in csv.DictReader(io.StringIO(table(groups(in_rounds)))) if r["http_p99_ms"])
    assert (told["http_p90_ms"], told["http_images_per_s"], told["http_server_rate"]) == ("2.5", "700.0", "525.0")
    said = " ".join(over_http.method(in_rounds))
    assert "in 3 rounds over all variants" in said and "in the middle 2.00 times apart" in said
    assert "Meanwhile other processes took 12%" in said


def test_an_older_run_claims_no_rounds(golden: Results, tmp_path: Path) -> None:
    data = json.loads(to_json(golden))
    for added in ("http_rounds", "http_seconds", "http_connections"):
        del data["settings"][added]
    (tmp_path / "old.json").write_text(json.dumps(data))
    old = records.read(tmp_path / "old.json")
    assert (old.settings.http_rounds, old.settings.http_seconds) == (1, 0.0)
    assert not over_http.columns(old) and len(over_http.method(old)) == 1
    assert "rounds" not in over_http.method(old)[0]
