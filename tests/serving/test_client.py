"""The client and the command against a real server, and their retries against one that refuses."""

from __future__ import annotations

import asyncio
import csv
import email.utils
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest

from catalog import ROOT
from serving.client import Answer, AsyncClient, Client, Retries, ServiceError
from tests.serving.pictures import BLUE, GREEN, RED, plain
from tests.serving.processes import Running, free_port

QUICK = Retries(attempts=3, longest_pause_s=0.05)


class Refusing(BaseHTTPRequestHandler):
    """Answers what `script` says, then a prediction."""

    script: ClassVar[list[tuple[int, dict[str, str]]]] = []
    seen: ClassVar[list[tuple[float, str]]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((time.monotonic(), self.headers.get("authorization", "")))
        status, headers = self.script.pop(0) if self.script else (200, {})
        good = {"model": "m", "version": "v", "predictions": [], "milliseconds": {}}
        body = json.dumps(good if status == 200 else {"error": "no", "code": "overloaded"}).encode()
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def refusing() -> Iterator[str]:
    Refusing.script, Refusing.seen = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_one_image_and_many(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "blue.png"
    path.write_bytes(plain(BLUE))
    with Client(server.url) as client:
        assert client.ready()
        answer = client.predict(plain(RED), model="colours", version="onnx-fp32", top=1)
        assert (answer.model, answer.version, len(answer.predictions)) == ("colours", "onnx-fp32", 1)
        assert answer.predictions[0].name == "red" and answer.predictions[0].probability > 0.99
        assert client.predict(path).predictions[0].name == "blue"
        files = client.predict_batch([plain(RED), path, plain(GREEN)])
        assert [answer.predictions[0].name for answer in files] == ["red", "blue", "green"]
        tensor = np.zeros((4, 32, 32, 3), np.uint8)
        tensor[range(4), :, :, [0, 1, 2, 0]] = 255
        colours = [answer.predictions[0].name for answer in client.predict_batch(tensor)]
        assert colours == ["red", "green", "blue", "red"]
        assert [model["name"] for model in client.models()] == ["brittle", "colours", "wide"]
        assert client.model("wide")["input"] == [16, 24, 3]
        with pytest.raises(ValueError, match="uint8"):
            client.predict_batch(tensor.astype(np.float32))


def test_the_async_client_does_the_same(server: Running) -> None:
    async def scenario() -> list[Answer]:
        async with AsyncClient(server.url) as client:
            assert await client.ready()
            assert len(await client.models()) == 3
            assert (await client.model("wide"))["name"] == "wide"
            assert len(await client.predict_batch([plain(RED)] * 2)) == 2
            return await asyncio.gather(*(client.predict(plain(colour)) for colour in (RED, GREEN, BLUE) * 3))

    answers = asyncio.run(scenario())
    assert [answer.predictions[0].name for answer in answers] == ["red", "green", "blue"] * 3


def test_errors_are_the_services_words(server: Running) -> None:
    with Client(server.url) as client:
        with pytest.raises(ServiceError) as caught:
            client.predict(b"junk")
        assert (caught.value.status, caught.value.code) == (400, "image_undecodable")
        with pytest.raises(ServiceError, match="brittle, colours, wide") as caught:
            client.predict(plain(), model="none")
        assert caught.value.code == "model_unknown"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_refusal_that_passes_is_tried_again_after_what_it_names(
    refusing: str, status: int, asynchronous: bool
) -> None:
    Refusing.script = [(status, {"retry-after": "0.2"}), (status, {})]
    patient = Retries(attempts=3, longest_pause_s=5)
    if asynchronous:

        async def ask() -> Answer:
            async with AsyncClient(refusing, token="t", retries=patient) as client:
                return await client.predict(b"x")

        assert asyncio.run(ask()).model == "m"
    else:
        with Client(refusing, token="t", retries=patient) as client:
            assert client.predict(b"x").model == "m"
    times = [at for at, _ in Refusing.seen]
    assert len(times) == 3 and 0.2 <= times[1] - times[0] < 1.5
    assert {token for _, token in Refusing.seen} == {"Bearer t"}


def test_a_date_is_a_retry_after_too_and_a_long_one_is_cut(refusing: str) -> None:
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    Refusing.script = [(503, {"retry-after": date})]
    with Client(refusing, retries=QUICK) as client:
        assert client.predict(b"x").model == "m"
    Refusing.script = [(503, {"retry-after": "soon"}), (429, {}), (429, {"retry-after": "0"})]
    with Client(refusing, retries=QUICK) as client, pytest.raises(ServiceError) as caught:
        client.predict(b"x")
    assert (caught.value.status, caught.value.retry_after_s) == (429, 0.0)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500, 504])
def test_other_errors_are_not_tried_again(refusing: str, status: int) -> None:
    Refusing.script = [(status, {})]
    with Client(refusing, retries=QUICK) as client, pytest.raises(ServiceError) as caught:
        client.predict(b"x")
    assert caught.value.status == status and len(Refusing.seen) == 1


def test_a_service_that_is_not_there() -> None:
    with Client(f"http://127.0.0.1:{free_port()}", retries=QUICK) as client:
        assert not client.ready()
        with pytest.raises(ServiceError, match="cannot be reached") as caught:
            client.predict(b"x")
    assert caught.value.code == "unreachable"


# --- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "serving", "predict", *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in {"a": RED, "b": GREEN, "c": BLUE}.items():
        (tmp_path / f"{name}.png").write_bytes(plain(colour))
    return tmp_path


def test_csv_of_a_folder(server: Running, folder: Path) -> None:
    done = command(str(folder), "--url", server.url, "--top", "2")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["class_1"] for row in rows] == ["red", "green", "blue"]
    assert [Path(row["file"]).name for row in rows] == ["a.png", "b.png", "c.png"]
    assert float(rows[0]["probability_1"]) > 0.9 > float(rows[0]["probability_2"]) and float(rows[0]["total_ms"]) > 0
    assert "3/3" in done.stderr


def test_json_of_files_one_of_them_broken(server: Running, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"junk")
    out = folder / "out.jsonl"
    files = [str(folder / "broken.png"), str(folder / "b.png")]
    done = command(*files, "--url", server.url, "--model", "colours", "--format", "json", "--out", str(out))
    assert done.returncode == 1 and "1 of the files" in done.stderr
    broken, good = map(json.loads, out.read_text().splitlines())
    assert "no image" in broken["error"] and good["predictions"][0]["class"] == "green"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nothing.png"], "not there"), ([str(ROOT / "docs")], "holds no PNG"), (["--format", "xml", "x"], "csv, json")],
)
def test_mistakes_are_one_sentence(arguments: list[str], said: str) -> None:
    from catalog import KilnError
    from serving import ask

    format = "xml" if "xml" in arguments else "csv"
    with pytest.raises(KilnError, match=said):
        ask.run([Path(arguments[-1])], "http://127.0.0.1:1", "", "", "", 1, format, None, 1)


def test_a_service_that_cannot_be_asked_ends_the_command(server: Running, folder: Path) -> None:
    done = command(str(folder / "a.png"), "--url", server.url, "--model", "none")
    assert done.returncode == 1 and done.stderr.count("error: ") == 1 and "there is no model 'none'" in done.stderr
    assert "Traceback" not in done.stderr


def test_httpx_is_all_the_client_needs() -> None:
    code = "import sys, serving.client; print([m for m in ('bentoml', 'PIL', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n" and httpx.__version__
