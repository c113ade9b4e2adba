"""The comparison with other servers: real ones, for a moment each; who is missing, wrong or worse is told."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psutil
import pytest

from benchmarks.load import page as load_page
from benchmarks.load import served
from benchmarks.peers import answers, contest, grpc_wire, processes, serving, standings, summary
from benchmarks.peers.contenders import FASTAPI, Contender, Subject
from benchmarks.peers.contest import Cell, Plan, Row
from benchmarks.peers.entrants import EVERY, LITSERVE
from catalog import ROOT, KilnError, Store

ZOO = Store(ROOT / "zoo")


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return serving.single(ZOO, "lenet", "onnx-int8", 1, 1, tmp_path / "scratch", tmp_path / "environments")


def enter(subject: Subject, *entered: Contender, seconds: float = 0.2) -> list[Row]:
    return contest.contest(Plan((2,), seconds, 1), subject, list(entered), lambda now, steps: None)


def test_ours_and_fastapi_are_measured_side_by_side_and_a_missing_peer_keeps_its_row(tmp_path: Path) -> None:
    out, environments = tmp_path / "reports" / "peers.json", tmp_path / "none"
    command = [sys.executable, "-m", "benchmarks.peers.serving", "--peers", "ray,fastapi", "--connections", "2"]
    command += ["--seconds", "0.3", "--rounds", "1", "--environments", str(environments), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    told, rows = serving.read(out)
    assert [row.name for row in rows] == ["modelkiln", "ray", "fastapi"]
    ours, ray, fastapi = rows
    assert not ray.cells and "ray is not installed in" in ray.reason and ray.install == "make peers-setup"
    for row in (ours, fastapi):
        assert not row.reason and [cell.way for cell in row.cells] == ["png", "tensor"]
        assert (row.memory_bytes or 0) > 30e6 and (row.ready_s or 0) > 0.2
        for cell in row.cells:
            assert cell.p50_ms and cell.p99_ms and 0 < cell.p50_ms <= cell.p99_ms
            assert cell.requests_per_s and cell.requests_per_s > 20
            assert cell.cpu_us_per_request and 20 < cell.cpu_us_per_request < 100_000
    assert told["sha256"] == ZOO.variants("lenet")[1].files["model.onnx"] and told["rows"][2]["version"]
    page = out.with_suffix(".md").read_text()
    assert "| Ray Serve |" in page and "make peers-setup" in page
    assert all(line in page and line in done.stdout for line in standings.verdicts(rows))
    section = load_page.beside(out)
    assert section.startswith("\n## lenet beside its peers\n") and "| Ray Serve |" in section


def test_a_peer_that_answers_wrongly_is_out(subject: Subject) -> None:
    other = ROOT / "zoo" / "simcnn" / "variants" / "onnx-int8" / "model.onnx"
    wrong = dataclasses.replace(FASTAPI, start=lambda subject: served.fastapi(other, 1))
    (row,) = enter(subject, wrong)
    assert not row.cells and "it answers image 0 wrongly" in row.reason


def test_a_peer_that_does_not_start_is_out_with_what_it_said(subject: Subject) -> None:
    def start(_: Subject) -> Any:
        return served.running("x", [sys.executable, "-c", "raise ValueError('no such licence')"], "/", {})

    (row,) = enter(subject, dataclasses.replace(FASTAPI, start=start))
    assert row.reason == "a server did not become ready; the end of its log: ValueError: no such licence"


def test_nothing_that_a_peer_started_is_left(subject: Subject) -> None:
    code = (
        "import subprocess, sys, http.server as h\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "h.HTTPServer(('127.0.0.1', int(sys.argv[1])), h.SimpleHTTPRequestHandler).serve_forever()"
    )

    def start(_: Subject) -> Any:
        return served.running("x", [sys.executable, "-c", code, "{port}"], "/", {})

    with processes.running(dataclasses.replace(FASTAPI, start=start), subject) as server:
        family = served.tree(server.process.pid)
        assert len(family) == 2 and processes.memory_bytes(family) > 5e6
    assert not any(psutil.pid_exists(process.pid) for process in family)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({0: 0.40000501}, ""),
        ({0: 0.4001}, "class 0 has 0.400100, and in process 0.400000"),
        ({0: None}, "the likeliest is 0"),
        ({1: None, 2: None}, "it names the classes"),
    ],
)
def test_an_answer_is_right_within_a_hundred_thousandth(change: dict[int, float | None], said: str) -> None:
    row = np.array([0.4, 0.2, 0.2, 0.1, 0.05, 0.05], np.float32)
    found = {**{index: float(value) for index, value in enumerate(row)}, **change}
    wrong = answers.difference({index: value for index, value in found.items() if value is not None}, row)
    assert (said in wrong) if said else not wrong


def test_every_way_of_every_peer_asks_for_the_same_pixels(subject: Subject) -> None:
    shown = answers.pictures(subject.height, subject.width)
    assert len({picture.png for picture in shown}) == len(shown) == answers.PICTURES
    pixels, png = shown[3].pixels, shown[3].png
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(png)))[None], pixels)
    for one in EVERY.values():
        upload, tensor = one.png.ask(subject, shown[3]), one.tensor.ask(subject, shown[3])
        assert png in upload or base64.b64encode(png) in upload, one.name
        assert pixels.tobytes() in tensor or json.dumps(pixels.tolist()).encode() in tensor, one.name
        head, _, body = upload.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head, one.name


def test_the_table_says_where_we_lose() -> None:
    def row(name: str, rate: float, p99: float, cpu: float, **more: Any) -> Row:
        cells = [
            Cell("png", 16, "PNG in a form", rate, 1.0, p99, cpu),
            Cell("tensor", 1, "JSON", 2 * rate, 1.0, p99, cpu),
        ]
        return Row(name, name.title(), "1", 1.0, 100_000_000, 1, cells, **more)

    rows = [row("modelkiln", 1000, 20.0, 500), row("quick", 1250, 10.0, 490), row("slow", 100, 90.0, 900)]
    slow = dataclasses.replace(rows[2].cells[1], requests_per_s=None, p50_ms=None, p99_ms=None, cpu_us_per_request=None)
    rows[2] = dataclasses.replace(rows[2], cells=[rows[2].cells[0], dataclasses.replace(slow, reason="it lost 3")])
    rows.append(
        Row("gone", "Gone", "", reason="gone is not installed; run: make peers-setup", install="make peers-setup")
    )
    quick, behind, gone = standings.verdicts(rows)
    assert quick.startswith(
        "Quick: we lose in 4 of 10 figures: requests/s (PNG, 16 connections) 1,000 against 1,250 (0.80"
    )
    assert "p99 (tensor, 1 connection) 20.0 against 10.0 ms (2.00 of theirs)" in quick
    assert "behind by less than 5%" in quick and "CPU a request (PNG, 16 connections) 500 against 490 µs" in quick
    assert behind.startswith("Slow: we lose in none of 6 figures.")
    assert behind.endswith("theirs failed and ours did not: tensor by 1 connection")
    assert gone == "Gone: no figures, because gone is not installed; run: make peers-setup"
    told = {
        "model": "lenet", "version": "onnx-int8", "sha256": "a" * 64, "threads": 1, "batch": 1,
        "commit": "c", "created": "now",
        "plan": {"rounds": 3, "seconds": 5.0}, "machine": {"cpu": "a processor", "logical_cores": 2},
        "load_before": [2.0, 1.0, 1.0], "load_after": [2.0, 1.0, 1.0],
    }  # fmt: skip
    lines = standings.markdown(told, rows).splitlines()
    assert any(line.startswith("| 16 | Quick |") and "0.80 ▼ we lose" in line for line in lines)
    assert any(line.startswith("| 16 | Slow |") and "| 10.00 |" in line for line in lines)
    assert any("| 1 | Slow |" in line and "failed" in line and "it lost 3" in line for line in lines)
    assert sum("Gone" in line for line in lines) == 4 and any("busy with other work" in line for line in lines)


def test_our_failure_where_theirs_held_is_a_loss() -> None:
    def cell(way: str, connections: int, why: str) -> Cell:
        return Cell(way, connections, "", reason=why) if why else Cell(way, connections, "", 100.0, 1.0, 2.0, 500.0)

    def row(name: str, png: str, tensor: str) -> Row:
        cells = [cell("png", 16, ""), cell("png", 1, png), cell("tensor", 1, tensor)]
        return Row(name, name.title(), "1", 1.0, 100_000_000, 1, cells)

    rows = [row("modelkiln", "it lost 3", "it lost 4"), row("peer", "", "it hung")]
    (told,) = standings.verdicts(rows)
    assert told.startswith("Peer: we lose where ours failed and theirs did not: PNG by 1 connection. ")
    assert "we lose in none of 6 figures that both have" in told
    assert told.endswith("both failed: tensor by 1 connection")
    assert "| 100 | ▼ we lose: ours failed |" in standings._loads(rows, "png")


def test_calls_over_grpc_carry_tensors_both_ways(subject: Subject) -> None:
    """Against gRPC's own server: more than one flow control window is sent, and an error is no answer."""
    grpc = pytest.importorskip("grpc")
    from concurrent.futures import ThreadPoolExecutor

    row = np.linspace(0, 1, 10, dtype=np.float32)
    asked: list[bytes] = []

    def infer(message: bytes, context: Any) -> bytes:
        asked.append(message)
        if b"refuse" in message:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")
        contents = bytes((6 << 3 | 2, 40)) + row.tobytes()
        tensor = b"\x0a\x01p" + bytes((5 << 3 | 2, len(contents))) + contents
        return b"\x0a\x01m" + bytes((5 << 3 | 2, len(tensor))) + tensor

    server = grpc.server(ThreadPoolExecutor(2))
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        running = served.Server("x", 0, subprocess.Popen(["true"]), Path("log"), 0.0, {"grpc": port})
        running.process.wait()
        way = EVERY["mlserver"].tensor
        shown = answers.pictures(subject.height, subject.width)
        contents = [way.ask(subject, picture) for picture in shown] * 3
        for body in answers.answers(running, way, contents):
            assert np.allclose(list(way.read(subject, body).values()), row)
        assert sum(map(len, asked)) > 2 * grpc_wire.WINDOW
        assert all(picture.pixels.tobytes() in message for picture, message in zip(shown, asked, strict=False))
        refused = grpc_wire.call("/inference.GRPCInferenceService/ModelInfer", b"\x0a\x06refuse")
        with pytest.raises(KilnError, match="x answered 500"):
            answers.answers(running, way, [refused])
    finally:
        server.stop(None).wait()
    with pytest.raises(KilnError, match="more than one frame"):
        grpc_wire.call("/x", bytes(20_000))


def test_mistakes_are_told() -> None:
    with pytest.raises(KilnError, match="there is no peer 'triton'; there are: modelkiln, fastapi, bentoml"):
        serving.chosen("fastapi,triton")
    assert [one.name for one in serving.chosen("ray,ray")] == ["modelkiln", "ray"]
    with pytest.raises(KilnError, match="takes numbers from 1 to 1024"):
        serving.counts("1,many")
    assert serving.counts("1, 16,16") == (1, 16)
    with pytest.raises(KilnError, match="no ONNX variant lenet/litert-fp32; there are: onnx-fp32, onnx-int8"):
        serving.single(ZOO, "lenet", "litert-fp32", 1, 1, Path("unused"), Path("unused"))
    with pytest.raises(KilnError, match="run: make peers-serving"):
        serving.read(Path("nowhere.json"))


def test_what_peers_share_needs_only_what_their_environments_have() -> None:
    code = (
        "import sys, benchmarks.peers.network; "
        "print([m for m in ('typer', 'rich', 'pydantic', 'psutil', 'bentoml', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
    assert LITSERVE.own_environment and not FASTAPI.own_environment


def test_the_summary_tells_each_part_or_how_to_run_it(tmp_path: Path) -> None:
    about = {"created": "2026-01-01", "commit": "abc"}
    lenet = {"ours": 900.0, "bare": 1000.0, "ratios": [0.9, 0.91, 0.89]}
    speed = {**about, "cpu": "a processor", "load_before": 0.1, "start_up_s": {"lenet": 9.9}, "lenet": lenet}
    (tmp_path / "training-speed.json").write_text(json.dumps(speed))
    export = {**about, "machine": {"cpu": "a processor"}, "load_before": [0.1], "load_after": [0.2], "threads": 2}
    figures = {"p50_ms": 0.05, "images_per_s": 20_000.0, "size_bytes": 80_000}
    rows: list[dict[str, Any]] = [
        {"model": "lenet", "name": "onnx-int8", "ours": True, "format": "onnx", **figures, "top1": 74.6},
        {"model": "lenet", "name": "olive", "ours": False, "format": "onnx", **figures, "top1": 74.8},
        {"model": "lenet", "name": "nncf-onnx", "ours": False, "format": "onnx", "reason": "it fell over"},
    ]
    (tmp_path / "peers-export.json").write_text(json.dumps({**export, "rows": rows}))
    summary.summarize(tmp_path)
    text = (tmp_path / "peers.md").read_text()
    assert "| lenet | **onnx-int8** | 74.60 | 0.050 | 20,000 | 80 |" in text
    assert "| lenet | nncf-onnx | failed |" in text and "2 threads, a processor, load average 0.1 before" in text
    with pytest.raises(KilnError, match=r"not published: .*peers-serving\.json cannot be read"):
        summary.summarize(tmp_path, publish=True)
    assert "lenet: olive 74.80%, 0.0500 ms, 20,000 images/s; our onnx-int8 74.60%" in text
    assert "images/s: we lose in accuracy\n" in text and "lenet: nncf-onnx: no figures, because it fell over" in text
    assert "peers-serving.json cannot be read" in text and "run: make peers-serving" in text
    assert "lenet: we lose: 900 images/s against 1,000 of a bare fit (0.900 times" in text
    assert "different commits" not in text


def test_the_summary_tells_nothing_of_before_it_began(tmp_path: Path) -> None:
    """What an earlier `make peers` left is no result of one whose part failed."""
    lenet = {"ours": 900.0, "bare": 1000.0, "ratios": [0.9]}
    about = {"cpu": "a processor", "load_before": 0.1, "lenet": lenet}
    path = tmp_path / "training-speed.json"
    path.write_text(json.dumps({**about, "created": "2026-01-01T10:00:00Z", "commit": "abc"}))
    summary.summarize(tmp_path, since="2026-01-01T10:00:00Z")
    assert "lenet: we lose: 900 images/s" in (tmp_path / "peers.md").read_text()
    summary.summarize(tmp_path, since="2026-01-01T10:00:01Z")
    text = (tmp_path / "peers.md").read_text()
    assert "900 images/s" not in text
    assert f"{path} is of 2026-01-01T10:00:00Z (commit abc, a processor), before this began" in text
    with pytest.raises(
        KilnError, match=r"not published: .*its part failed, and nothing of it is told; run: make peers"
    ):
        summary.summarize(tmp_path, publish=True, since="2026-01-02T00:00:00Z")


def test_parts_of_two_commits_or_machines_are_called_so(tmp_path: Path) -> None:
    figures = {"top1": 74.6, "p50_ms": 0.05, "images_per_s": 20_000.0, "size_bytes": 80_000}
    row = {"model": "lenet", "name": "onnx-int8", "ours": True, "format": "onnx", **figures}
    export = {"machine": {"cpu": "one"}, "load_before": [0.1], "load_after": [0.2], "threads": 2, "rows": [row]}
    speed = {"cpu": "one", "load_before": 0.1, "lenet": {"ours": 900.0, "bare": 1000.0, "ratios": [0.9]}}
    for commit, said in (("abc", False), ("def", True)):
        (tmp_path / "peers-export.json").write_text(json.dumps({**export, "created": "2026-01-01", "commit": "abc"}))
        (tmp_path / "training-speed.json").write_text(json.dumps({**speed, "created": "2026-01-02", "commit": commit}))
        summary.summarize(tmp_path)
        text = (tmp_path / "peers.md").read_text()
        told = "> The parts were measured at different commits or on different machines: Optimization at commit abc"
        assert (told in text) == said


def test_make_peers_sets_the_time_it_began() -> None:
    text = (ROOT / "Makefile").read_text()
    assert "\npeers: BEGAN := $(shell date -u +%Y-%m-%dT%H:%M:%SZ)\n" in text  # once, before any recipe
    assert "benchmarks.peers.summary --reports $(OUT) --since $(BEGAN)\n" in text
