"""Real runs: real processes over a store of real models."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import catalog
from benchmarks import machine, progress
from benchmarks.__main__ import application
from benchmarks.measuring import corrupt, measure, planning, predictions, process, roofline, tax
from benchmarks.measuring.candidates import Candidate, candidates, named
from benchmarks.measuring.job import Job
from benchmarks.measuring.measure import Run
from benchmarks.measuring.turns import Turns
from benchmarks.reporting.depth import method
from benchmarks.results import Results, Roofline, Settings, read
from catalog import KilnError, Store, Variant
from export import answers
from tests.benchmarks.conftest import linear_onnx, write_model, write_variant

Ran = tuple[Path, "subprocess.CompletedProcess[str]"]
MEASURED = ["onnx-fp32", "onnx-int8"]
REASONS = {
    "altered-onnx-fp32": "is corrupt: its sha256",
    "garbage-onnx-fp32": "ONNX",
    "stale-onnx-fp32": "stale: made from other weights",
    "older-onnx-fp32": "stale: made from other weights",
    "litert-int8": "the converter refused",
    "keras-fp32": "cannot be read as a card",
}


@pytest.fixture
def results(run_folder: Ran) -> Results:
    return read(run_folder[0] / "results.json")


def test_every_variant_has_a_row(results: Results) -> None:
    assert {row.variant.version for row in results.rows} == {*MEASURED, *REASONS}
    assert sorted(results.order) == sorted(str(row.variant) for row in results.rows)
    assert results.order != sorted(results.order)


@pytest.mark.parametrize("version", MEASURED)
def test_a_measured_row_is_whole(results: Results, version: str, digits: Any) -> None:
    row = next(row for row in results.rows if row.variant.version == version)
    assert row.status == "ok", row.reason
    assert row.accuracy is not None and row.accuracy.images == len(digits.x_test)
    assert row.p50_ms and row.p90_ms and row.p99_ms and 0 < row.p50_ms <= row.p90_ms <= row.p99_ms
    assert set(row.images_per_s_at) >= {"1", "2", "4", "8"}
    assert row.images_per_s == max(row.images_per_s_at.values()) == row.images_per_s_at[str(row.offline_batch)]
    assert row.peak_rss_bytes and row.size_bytes and row.gzip_bytes and row.threads == 1
    detail = results.details[str(row.variant)]
    assert detail.rounds >= Settings.quick().single_rounds
    assert detail.p50_low_ms <= row.p50_ms <= detail.p50_high_ms
    assert [one.p50_ms for one in detail.passes] == [row.p50_ms] and detail.passes[0].kernel_ms > 0
    ratio = detail.passes[0].speed_up
    assert ratio and (ratio == 1) == (version == "onnx-fp32") and 0.2 < ratio < 5
    one = detail.passes[0]
    assert one.turns and one.turns >= 6 and one.speed_up_low and one.speed_up_high  # enough for an interval
    assert one.speed_up_low <= ratio <= one.speed_up_high
    assert (detail.passes[0].offline_kernel_ms or 0) > 0
    assert detail.server_rate is not None and detail.process_threads and detail.affinity == machine.cores()
    assert detail.work is not None and detail.work.macs == 10 * digits.x_test[0].size
    assert len(detail.top1_by_class) == 10 and 0 <= (detail.calibration_error or -1) <= 100
    assert len(detail.robust_top1) == 6 and all(len(shares) == 3 for shares in detail.robust_top1.values())
    assert detail.robust_images == 100 and not detail.reused
    assert 0 < detail.overhead_us / 1000 < row.p50_ms
    assert detail.rss_before_bytes <= row.peak_rss_bytes
    assert detail.command == f"python -m export tiny --formats onnx --precisions {row.variant.precision}"


def test_accuracy_is_that_of_the_model(results: Results, tiny_store: Store, digits: Any) -> None:
    row = next(row for row in results.rows if row.variant.version == "onnx-fp32")
    path = tiny_store.variant_dir(row.variant) / "model.onnx"
    predict = catalog.plugin("export.formats", "onnx").load(path, 1)
    assert row.accuracy is not None
    assert row.accuracy.correct == int((predict(digits.x_test).argmax(1) == digits.y_test).sum())
    assert row.accuracy.top1 > 80


def test_flips_add_up_to_the_change(results: Results) -> None:
    rows = {row.variant.version: row for row in results.rows}
    fp32, int8, detail = rows["onnx-fp32"].accuracy, rows["onnx-int8"].accuracy, results.details["tiny/onnx-int8"]
    assert fp32 and int8 and detail.lost is not None and detail.won is not None
    assert detail.against == "onnx-fp32"
    assert int8.correct - fp32.correct == detail.won - detail.lost
    assert detail.mcnemar_p is not None and detail.mcnemar_holm == pytest.approx(detail.mcnemar_p, abs=1e-5)


@pytest.mark.parametrize("version", REASONS)
def test_what_cannot_be_measured_says_why(run_folder: Ran, results: Results, tiny_store: Store, version: str) -> None:
    row = next(row for row in results.rows if row.variant.version == version)
    assert row.status == "failed"
    assert REASONS[version] in row.reason
    assert "\n" not in row.reason and str(tiny_store.root) not in row.reason
    assert row.p50_ms is None and row.accuracy is None
    out, done = run_folder
    assert row.reason[:40] in done.stderr
    assert row.reason[:40] in (out / "report.md").read_text()


def test_the_machine_and_conditions_are_written_down(results: Results) -> None:
    assert results.machine.cpu and results.machine.memory_bytes > 2**28
    assert {"numpy", "onnxruntime"} <= set(results.machine.versions)
    assert results.environment["OMP_NUM_THREADS"] == "1"
    assert len(results.load_before) == len(results.load_after) == 3 and results.others_percent is not None
    assert results.roofline and results.roofline.fp32_macs_per_s > 1e8 and results.roofline.int8_macs_per_s > 1e8
    assert [sorted(order) for order in results.orders] == [sorted(results.order)]
    assert results.seed == 3 and results.quick and results.models["tiny"].dataset == "digits"


def test_report_again_from_the_results_alone(run_folder: Ran, benchmarks_command: Any, tmp_path: Path) -> None:
    out, done = run_folder
    again = benchmarks_command("report", "--results", out / "results.json", "--out", tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[0] == done.stdout.splitlines()[0]
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(
        path.name for path in out.iterdir() if path.name not in ("results.json", "predictions", "benchmark.json")
    )
    for name in written:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name


def test_pytest_benchmark_reads_its_own_file(run_folder: Ran) -> None:
    out, _ = run_folder
    told = json.loads((out / "benchmark.json").read_text())
    names = {bench["name"] for bench in told["benchmarks"]}
    assert {"tiny/onnx-fp32[SingleStream-pass1]", "tiny/onnx-int8[Offline-8-pass1]"} <= names
    assert all("data" not in bench["stats"] and bench["stats"]["median"] > 0 for bench in told["benchmarks"])
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(out / "benchmark.json"), "--columns=median"]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "tiny/onnx-fp32[SingleStream-pass1]" in done.stdout, done.stderr


def test_answers_are_taken_from_an_earlier_run(
    run_folder: Ran, tiny_store: Store, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = run_folder[0] / "predictions"
    assert len(list(kept.glob("*.npz"))) == len(MEASURED)
    lean: dict[str, Any] = {"single_seconds": 0.05, "single_rounds": 20, "offline_seconds": 0.01, "warmup_seconds": 0.1}
    settings = dataclasses.replace(Settings.quick(), peak_seconds=0.1, server_seconds=0.0, passes=2, **lean)
    peaks = iter(Roofline(rate, 1.0, {}, {"fp32": "a"}, 1.0) for rate in (5.0, 7.0, 6.0))
    monkeypatch.setattr(roofline, "measured", lambda *_: next(peaks))
    again = Run(tiny_store, 1, settings, 1, lambda name, root: digits, kept=kept).measure(
        candidates(tiny_store, ["tiny"])
    )
    before = read(run_folder[0] / "results.json")
    for version in MEASURED:
        now, then = again.details[f"tiny/{version}"], before.details[f"tiny/{version}"]
        assert now.reused and now.robust_top1 == then.robust_top1 and now.top1_by_class == then.top1_by_class
        assert len(now.passes) == 2 and now.server_rate is None
        first, second = (one.images_per_s_at for one in now.passes)
        best = int(max(first, key=lambda batch: first[batch]))
        assert max(map(int, second)) <= max(*settings.batches, 2 * best)  # no use trying more
        p50 = [one.p50_ms for one in now.passes]
        assert (now.p50_low_ms, now.p50_high_ms) == (min(p50), max(p50))
    assert len(again.orders) == 2 and again.roofline is not None
    assert again.roofline.fp32_macs_per_s == 7 and next(peaks, None) is None  # before, between and after the passes


def test_answers_are_taken_from_the_export_and_only_the_corrupted_images_asked_for(
    run_folder: Ran, tiny_store: Store, digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    variant = Variant("tiny", "onnx")
    shutil.copytree(tiny_store.variant_dir(variant), store.variant_dir(variant))
    shutil.copy(tiny_store.model_dir("tiny") / catalog.CARD, store.model_dir("tiny"))
    card = store.variants("tiny")[0]
    packages = catalog.plugin("export.formats", "onnx").PACKAGES
    says_nine = np.tile(np.eye(10, dtype=np.float32)[9], (len(digits.x_test), 1))
    answers.write(tmp_path / "left.npz", says_nine)
    answers.keep(store, card, packages, 2, tmp_path / "left.npz")
    answers.keep(store, card, packages, 1, tmp_path / "left.npz")
    assert len(list(store.model_dir("tiny").glob("answers/*"))) == 1  # a variant's newest export counts
    assert answers.kept(store, card, packages, 2) is None
    lean = dataclasses.replace(Settings.quick(), peak_seconds=0.0, server_seconds=0.0, single_seconds=0.05)
    run = Run(store, 1, lean, 1, lambda name, root: digits, kept=tmp_path / "kept")
    todo = candidates(store, ["tiny"])
    monkeypatch.setattr(planning, "MACS_PER_S", 1.0)
    reckoned = [planning.load(store, todo, 1, fresh).answers_s for fresh in (False, True)]
    assert reckoned[1] - reckoned[0] == len(digits.x_test) * store.card("tiny").macs
    found = run.measure(todo)
    row, detail = found.rows[0], found.details["tiny/onnx-fp32"]
    assert row.accuracy is not None and row.accuracy.correct == int((digits.y_test == 9).sum())
    before = read(run_folder[0] / "results.json").details["tiny/onnx-fp32"]
    assert detail.reused and detail.robust_top1 == before.robust_top1
    fresh = dataclasses.replace(run, kept=None).measure(todo)
    assert fresh.rows[0].accuracy and fresh.rows[0].accuracy.top1 > 80 and not fresh.details["tiny/onnx-fp32"].reused


def test_answers_on_images_corrupted_in_another_way_are_not_taken(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = next(one.card for one in candidates(tiny_store, ["tiny"]) if one.name == "tiny/onnx-fp32")
    assert card is not None
    before = predictions.key(card, (), 1, 100)
    assert before == predictions.key(card, (), 1, 100) != predictions.key(card, (), 1, 50)
    monkeypatch.setitem(corrupt.STRENGTHS, "noise", (0.04, 0.08, 0.11))
    stronger = predictions.key(card, (), 1, 100)
    monkeypatch.setattr(inspect, "getsource", lambda _: "another way of corrupting")
    assert len({before, stronger, predictions.key(card, (), 1, 100)}) == 3


@dataclasses.dataclass
class Slow:
    """A stand-in for the service, whose answers are slow by known amounts."""

    port: int
    asked: list[str]  # paths, in order
    name: str = "slow"

    def cpu_s(self) -> float:
        return 0.0


@pytest.fixture
def slow_service() -> Iterator[Slow]:
    import http.server
    import threading

    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            asked.append(self.path)
            assert self.rfile.read(int(self.headers["content-length"])).startswith(b"\x89PNG")
            time.sleep(0.004)
            stages = {"receive": 0.5, "decode": 1.0, "queue": 0.25, "compute": 2.0, "total": 4.0}
            body = b"{}" if "silent" in self.path else json.dumps({"milliseconds": stages}).encode()
            status = 503 if "int8" in self.path else 200
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Slow(server.server_port, asked)
        server.shutdown()


def test_the_tax_is_split_by_what_the_service_says(tiny_store: Store, slow_service: Slow) -> None:
    def asked(**changes: str) -> tax.Asked:
        variant = dataclasses.replace(Variant("tiny", "onnx"), **changes)
        return tax.Asked(variant, tax.request(variant, tax.image(tiny_store, "tiny")))

    server: Any = slow_service
    found = tax.ask(server, asked(), 20, 10.0)
    assert len(found) == 20 and slow_service.asked[0] == "/predict?model=tiny&version=onnx-fp32"
    for one in found:
        assert (one["decode"], one["queue"], one["compute"], one["handling"]) == (1.0, 0.25, 2.0, 0.75)
        assert one["http"] > 4.0 and one["transport"] == pytest.approx(one["http"] - 4.0)
    assert 0 < len(tax.ask(server, asked(), 1000, 0.05)) < 1000
    with pytest.raises(KilnError, match="answered 503 for tiny/onnx-int8"):
        tax.ask(server, asked(precision="int8"), 5, 10.0)
    with pytest.raises(KilnError, match="did not say how long tiny/silent-onnx-fp32 took"):
        tax.ask(server, asked(transform="silent"), 5, 10.0)


LITTLE = {"http_requests": 20, "http_rounds": 4, "http_seconds": 0.1, "http_connections": 4, "server_seconds": 0.05}


def lean(results: Results, **settings: Any) -> Results:
    """The same run, to be asked over HTTP for moments."""
    return dataclasses.replace(results, settings=dataclasses.replace(results.settings, **{**LITTLE, **settings}))


def test_a_bad_answer_costs_the_other_variants_nothing(
    results: Results, tiny_store: Store, slow_service: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tax, "_service", lambda store, threads: nullcontext(slow_service))
    for seed in range(2):  # whichever comes first
        found = tax.measured(dataclasses.replace(lean(results), seed=seed), tiny_store)
        fp32, int8 = found.details["tiny/onnx-fp32"], found.details["tiny/onnx-int8"]
        assert fp32.tax and not fp32.tax_reason and not found.http_reason
        assert not int8.tax and "answered 503 for tiny/onnx-int8" in int8.tax_reason
    assert any("No serving tax of tiny/onnx-int8: the service answered 503" in point for point in method(found))


def test_variants_take_turns_over_http(
    results: Results, tiny_store: Store, slow_service: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight rounds of two variants, none of which has more than two turns in a row."""
    monkeypatch.setattr(tax, "_service", lambda store, threads: nullcontext(slow_service))
    other = next(row for row in results.rows if row.variant.version == "onnx-fp32")
    other = dataclasses.replace(other, variant=dataclasses.replace(other.variant, transform="other"))
    rows = [*(row for row in results.rows if row.variant.version != "onnx-int8"), other]
    details = {**results.details, str(other.variant): results.details["tiny/onnx-fp32"]}
    whole = dataclasses.replace(lean(results, http_rounds=8, http_requests=8, http_seconds=0.0), rows=rows)
    told_of: list[tuple[str, int, int]] = []
    found = tax.measured(dataclasses.replace(whole, details=details), tiny_store, lambda *turn: told_of.append(turn))
    assert [done for _, done, _ in told_of] == list(range(1, 19)) and {of for *_, of in told_of} == {18}
    turns = [len(list(run)) for _, run in itertools.groupby(slow_service.asked[2 * tax.WARM :])]
    assert sum(turns) == 8 * 2 * (tax.WARM_TURN + 1) and max(turns) <= 2 * (tax.WARM_TURN + 1)
    for name in ("tiny/onnx-fp32", "tiny/other-onnx-fp32"):
        told = found.details[name].tax
        assert told and told.requests == len(told.rounds) == 8 and told.images_per_s is None


def test_the_tax_of_the_real_service(results: Results, digits: Any, tmp_path: Path) -> None:
    """`bentoml serve` over a small store: what it says of each stage adds up to what the client waited."""
    store = Store(tmp_path)
    write_model(store, digits)
    for precision, levels in (("fp32", 0), ("int8", 15)):
        write_variant(store, digits, Variant("tiny", "onnx", precision), linear_onnx(digits, levels))
    found = tax.measured(lean(results, http_requests=60, server_p99_ms=500.0), store)
    assert not found.http_reason and found.http_seconds and len(found.http_load_before) == 3
    assert found.http_others_percent is not None and found.http_steal_percent is not None
    for version in MEASURED:
        detail = found.details[f"tiny/{version}"]
        told = detail.tax
        assert told is not None, detail.tax_reason
        assert told.requests == 60 and len(told.rounds) == 4
        assert told.p90_ms and told.p99_ms and told.http_ms <= told.p90_ms <= told.p99_ms
        assert min(told.decode_ms, told.compute_ms, told.handling_ms, told.transport_ms) > 0 <= told.queue_ms
        assert told.beside_ms + told.compute_ms == pytest.approx(told.http_ms, rel=0.4)
        spread = [one.http_ms for one in told.rounds]
        assert min(spread) <= told.http_ms <= max(spread)
        rates = [one.images_per_s or 0.0 for one in told.rounds]
        assert told.images_per_s and 0 < min(rates) <= told.images_per_s <= max(rates)
        assert told.server_rate and told.server_rate < told.images_per_s and 0 < (told.server_p99_ms or 0) <= 500
        assert told.server_trials[0][0] == pytest.approx(0.95 * told.images_per_s, abs=0.1)
    assert any("Offline over HTTP" in point and "Server over HTTP" in point for point in method(found))


def test_a_service_that_does_not_start_leaves_its_reason(
    results: Results, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def broken(store: Store, threads: int) -> Iterator[Any]:
        raise KilnError(f"a file in {tiny_store.root.resolve()} is corrupt")
        yield

    monkeypatch.setattr(tax, "_service", broken)
    found = tax.measured(results, tiny_store)
    assert found.http_reason == "a file in the store is corrupt" and not any(d.tax for d in found.details.values())
    assert found.rows == results.rows


@pytest.mark.parametrize("broken", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_what_was_measured_in_process_outlasts_the_part_over_http(
    results: Results, tiny_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: BaseException
) -> None:
    def over_http(*_: object) -> Results:
        raise broken

    measured = dataclasses.replace(results, settings=dataclasses.replace(results.settings, http_requests=10))
    monkeypatch.setattr(progress, "measured", lambda *_: measured)
    monkeypatch.setattr(progress, "over_http", over_http)
    arguments = ["run", "--store", str(tiny_store.root), "--out", str(tmp_path), "--threads", "1"]
    done = CliRunner().invoke(application, arguments)
    found = read(tmp_path / "results.json")
    assert found.rows == results.rows and (tmp_path / "benchmark.json").is_file()
    if isinstance(broken, KeyboardInterrupt):
        assert done.exit_code == 0 and found.http_reason == "it was stopped by Ctrl-C"
        assert "stopped by Ctrl-C" in (tmp_path / "report.md").read_text()
    else:
        assert done.exception is broken and not found.http_reason


def run_over(store: Store, loader: Any, **settings: Any) -> Results:
    run = Run(store, 1, dataclasses.replace(Settings.quick(), peak_seconds=0.0, **settings), 0, loader)
    return run.measure(candidates(store, ["tiny"]))


def test_a_process_that_takes_too_long_is_stopped(tiny_store: Store, digits: Any) -> None:
    found = run_over(tiny_store, lambda name, root: digits, timeout_seconds=0.05)
    rows = {row.variant.version: row for row in found.rows}
    assert "stopped; a longer --timeout" in rows["onnx-fp32"].reason
    assert not found.details


def test_other_data_than_the_model_was_trained_on(tiny_store: Store, digits: Any) -> None:
    other = dataclasses.replace(digits, sha256="c" * 64)
    rows = {row.variant.version: row for row in run_over(tiny_store, lambda name, root: other).rows}
    assert "is not the one tiny was trained on" in rows["onnx-fp32"].reason
    assert rows["litert-int8"].reason == "the converter refused"


@contextmanager
def started(command: list[str], folder: Path, limit_s: float = 30.0) -> Iterator[process.Child]:
    """A command that is given the ends of two pipes as its last arguments."""
    grants, asks = os.pipe(), os.pipe()
    theirs = [grants[0], asks[1]]
    output = folder / "output.txt"
    child = process.Child(
        [*command, *map(str, theirs)], dict(os.environ), output, limit_s, theirs, (grants[1], asks[0])
    )
    try:
        yield child
    finally:
        child.kill()


TAKES_TURNS = """
import sys, time
from pathlib import Path
from benchmarks.measuring.turns import Turns
out, count = Path(sys.argv[1]), int(sys.argv[2])
turns = Turns([int(end) for end in sys.argv[3:]], 0.02)
turns.take()
with out.open("a") as log:
    for _ in range(count):
        start = time.perf_counter()
        while not turns.next_if_over(lambda: None, 0.0):
            log.write(f"{time.perf_counter()} {sys.argv[2]}\\n")
            log.flush()
            time.sleep(0.002)
    if count == 2:
        raise SystemExit(3)
"""


def test_processes_compute_in_turns_and_one_that_dies_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {tmp_path / "a": 4, tmp_path / "b": 2, tmp_path / "c": 6}
    for folder in counts:
        folder.mkdir()

    def starting(job: Job) -> Any:
        out = Path(job.out)
        return started([sys.executable, "-c", TAKES_TURNS, str(tmp_path / "log"), str(counts[out])], out)

    def left(job: Job, code: int) -> dict[str, Any]:
        if code:
            raise KilnError(f"code {code}")
        return {"out": job.out}

    monkeypatch.setattr(process, "_started", starting)
    monkeypatch.setattr(process, "_left", left)
    ended = list(process.together([Job("", "", 1, "", str(folder), Settings()) for folder in counts]))
    assert [place for place, _, _ in ended] == [1, 0, 2]  # the shortest first
    assert str(ended[0][1]) == "code 3" and ended[1][1] == {"out": str(tmp_path / "a")}
    assert all(0 < seconds < 20 for _, _, seconds in ended)
    who = [line.split()[1] for line in (tmp_path / "log").read_text().splitlines()]
    turns = [name for name, before in zip(who, ["", *who], strict=False) if name != before]
    assert turns == [*["4", "2", "6"] * 2, *["4", "6"] * 2]  # the last goes on alone


def test_a_process_without_pipes_has_the_turn_for_good() -> None:
    turns = Turns([], 0.0)
    turns.take()
    assert not turns.next_if_over(lambda: pytest.fail("called"), 0.0)


def test_a_model_named_twice_is_measured_once(tiny_store: Store) -> None:
    assert named(tiny_store, "tiny, tiny,") == named(tiny_store, "") == ["tiny"]
    names = [candidate.name for candidate in candidates(tiny_store, named(tiny_store, "tiny,tiny"))]
    assert len(names) == len(set(names))


def test_heats_are_of_one_model_with_its_reference_in_each(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = ["onnx", *(f"f{number}" for number in range(5))]
    tries = [measure._Try(Candidate(Variant(model, form), None)) for model in ("a", "b") for form in formats]

    def heats(turn: int = 0, **settings: Any) -> list[list[str]]:
        made = measure._heats(tries, turn, dataclasses.replace(Settings(), **settings))
        return [[f"{t.candidate.variant.model}/{t.candidate.variant.format}" for t in heat] for heat in made]

    assert heats() == [[f"{model}/{form}" for form in formats] for model in "ab"]
    monkeypatch.setattr(measure, "MOST_TOGETHER", 4)
    assert heats()[:2] == [["a/onnx", "a/f0", "a/f1", "a/f2"], ["a/onnx", "a/f3", "a/f4"]]
    assert heats(turn_seconds=0.0) == [[f"{model}/{form}"] for model in "ab" for form in formats]
    slow = tries[1]
    slow.runs = [SimpleNamespace(outcome=SimpleNamespace(load_ms=9000.0))]  # type: ignore[list-item]
    assert "a/f0" in heats(1)[0] and "a/f0" not in [name for heat in heats(2) for name in heat]


def test_a_dead_process_names_its_signal(tmp_path: Path) -> None:
    kill = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    with started([sys.executable, "-c", kill], tmp_path) as child:
        assert not child.asks(granting=False)
        code = child.ended()
    job = Job("onnx", "", 1, "", str(tmp_path), Settings())
    assert process._reason(job, code) == "its process died of SIGSEGV"


def test_nothing_of_a_stopped_process_lives_on(tmp_path: Path) -> None:
    script = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    log = tmp_path / "output.txt"
    with (
        pytest.raises(KilnError, match="not done after"),
        started([sys.executable, "-c", script], tmp_path, 2.0) as child,
    ):
        child.asks(granting=False)
    grandchild = Path("/proc") / log.read_text().strip() / "stat"
    deadline = time.monotonic() + 5
    while grandchild.exists() and " Z " not in grandchild.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not grandchild.exists() or " Z " in grandchild.read_text()


def test_peak_memory_is_the_process_own(tmp_path: Path) -> None:
    """`ru_maxrss` would hand the parent's peak down to the child."""
    ballast = np.ones(60_000_000, np.uint8)
    script = "from benchmarks.machine import peak_rss_bytes; print(peak_rss_bytes())"
    child = subprocess.run([sys.executable, "-c", script], cwd=catalog.ROOT, capture_output=True, text=True, check=True)
    assert 1_000_000 < int(child.stdout) < machine.peak_rss_bytes()
    assert ballast[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--threads", "0"], "--threads 0 is not between 1 and"),
        (["run", "--timeout", "-1"], "--timeout -1.0 is not a number of seconds above 0"),
        (["run", "--models", "lenet"], "no trained model 'lenet'"),
        (["run"], "no variants of any model"),
        (["report", "--results", "nowhere.json"], "there are no results at nowhere.json"),
    ],
)
def test_mistakes_get_one_sentence(benchmarks_command: Any, tmp_path: Path, arguments: list[str], said: str) -> None:
    where = ["--out", tmp_path / "out"] + (["--store", tmp_path] if arguments[0] == "run" else [])
    done = benchmarks_command(*arguments, *where)
    assert done.returncode == 1
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_results_of_another_kind_are_refused(tmp_path: Path, golden: Results) -> None:
    path = tmp_path / "results.json"
    golden.write(path)
    assert read(path) == golden
    data = json.loads(path.read_text())
    for wrong, said in ({**data, "schema": 99}, "has schema 99"), ({**data, "rows": 3}, "Results.rows is 3"):
        path.write_text(json.dumps(wrong))
        with pytest.raises(KilnError, match=said):
            read(path)
