"""The Open Inference Protocol V2 against a real server: by stock clients with their defaults, and by hand."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from catalog import ROOT
from serving.http import web
from serving.v2 import metadata
from tests.serving import processes
from tests.serving.pictures import BLUE, GREEN, RED, noise, plain, png, png_header
from tests.serving.processes import MAX_BODY_BYTES, MAX_PIXELS, Running

INFER = "/v2/models/colours/infer"
COLOURS = np.zeros((3, 32, 32, 3), np.uint8)
for _index in range(3):
    COLOURS[_index, ..., _index] = 255


@pytest.fixture(scope="module")
def triton(server: Running) -> Iterator[Any]:
    http = pytest.importorskip("tritonclient.http")
    with http.InferenceServerClient(server.url.removeprefix("http://"), concurrency=64) as client:
        yield client


def tensor(images: np.ndarray, name: str = "images", datatype: str = "UINT8", **options: Any) -> Any:
    import tritonclient.http

    return tritonclient.http.InferInput(name, list(images.shape), datatype).set_data_from_numpy(images, **options)


def best(result: Any) -> list[int]:
    rows: np.ndarray = result.as_numpy("probabilities")
    assert rows.dtype == np.float32 and np.allclose(rows.sum(axis=1), 1, atol=1e-5)
    return rows.argmax(axis=1).tolist()


def body(images: np.ndarray = COLOURS, **more: Any) -> bytes:
    made = {"name": "images", "datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
    return json.dumps({"inputs": [made], **more}).encode()


def refused(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    told = response.json()
    assert set(told) == {"error", "code"} and told["code"] == code, told
    assert not [word for word in ("Traceback", "/tmp", "/home", ".py") if word in response.text]
    return str(told["error"])


# --- tritonclient ----------------------------------------------------------------------------------------------------


def test_triton_health_and_metadata(triton: Any) -> None:
    assert triton.is_server_live() and triton.is_server_ready()
    assert triton.is_model_ready("colours") and triton.is_model_ready("colours", "onnx-fp32")
    assert not triton.is_model_ready("nothing") and not triton.is_model_ready("colours", "onnx-int4")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    server = triton.get_server_metadata()
    assert (server["name"], server["version"]) == (project["name"], project["version"])
    assert set(server["extensions"]) == set(metadata.EXTENSIONS)
    told = triton.get_model_metadata("colours")
    assert (told["name"], told["versions"]) == ("colours", ["onnx-fp32", "onnx-int8"])
    assert told["inputs"] == [
        {"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]},
        {"name": "encoded", "datatype": "BYTES", "shape": [-1]},
    ]
    assert told["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]
    assert told["parameters"]["default_version"] == "onnx-int8"
    assert triton.get_model_metadata("wide", "onnx-fp32")["inputs"][0]["shape"] == [-1, 16, 24, 3]
    config = triton.get_model_config("wide")
    assert config["input"][0]["dims"] == [16, 24, 3] and config["output"][0]["dims"] == [3]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_triton_infers(triton: Any, binary: bool, compression: str | None) -> None:
    import tritonclient.http

    inputs = [tensor(COLOURS, binary_data=binary)]
    result = triton.infer("colours", inputs, request_id="a b/é", request_compression_algorithm=compression)
    assert best(result) == [0, 1, 2]
    told = result.get_response()
    assert (told["id"], told["model_name"], told["model_version"]) == ("a b/é", "colours", "onnx-int8")
    wanted = [tritonclient.http.InferRequestedOutput("probabilities", binary_data=binary)]
    result = triton.infer("colours", inputs, model_version="onnx-fp32", outputs=wanted)
    assert best(result) == [0, 1, 2]
    told = result.get_response()
    assert "id" not in told and told["model_version"] == "onnx-fp32"
    assert ("data" in told["outputs"][0]) != binary
    np.testing.assert_allclose(result.as_numpy("probabilities")[0, 0], np.exp(10) / (np.exp(10) + 2), atol=1e-6)


def test_triton_sends_encoded_images(triton: Any) -> None:
    files = np.array([plain(GREEN), plain(BLUE, kind="JPEG"), plain(RED, (80, 50), "WEBP")], np.object_)
    result = triton.infer("colours", [tensor(files, "encoded", "BYTES")])
    assert best(result) == [1, 2, 0]


def test_triton_asks_for_classes(triton: Any) -> None:
    import tritonclient.http

    wanted = [tritonclient.http.InferRequestedOutput("probabilities", class_count=2)]
    found = triton.infer("wide", [tensor(np.full((1, 16, 24, 3), RED, np.uint8))], outputs=wanted)
    ((first, second),) = found.as_numpy("probabilities").tolist()
    assert first.split(b":")[1:] == [b"2", b"red"] and float(first.split(b":")[0]) > 0.99
    assert float(second.split(b":")[0]) < 0.01


def test_triton_is_told_what_is_wrong(triton: Any) -> None:
    import tritonclient.http
    from tritonclient.utils import InferenceServerException

    wrong: list[tuple[str, dict[str, Any]]] = [
        ("no model", {"model_name": "nothing", "inputs": [tensor(COLOURS)]}),
        ("no version", {"model_name": "colours", "model_version": "7", "inputs": [tensor(COLOURS)]}),
        ("'pixels'", {"model_name": "colours", "inputs": [tensor(COLOURS, "pixels")]}),
        ("UINT8", {"model_name": "colours", "inputs": [tensor(COLOURS.astype(np.float32), datatype="FP32")]}),
        ("[N, 16, 24, 3]", {"model_name": "wide", "inputs": [tensor(COLOURS)]}),
        ("undecodable", {"model_name": "wide", "inputs": [tensor(np.array([b"x"], object), "encoded", "BYTES")]}),
    ]
    outputs = [tritonclient.http.InferRequestedOutput("logits")]
    wrong.append(("'logits'", {"model_name": "colours", "inputs": [tensor(COLOURS)], "outputs": outputs}))
    for word, arguments in wrong:
        with pytest.raises(InferenceServerException) as caught:
            triton.infer(**arguments)
        assert caught.value.status() in ("400", "404")
        assert word == "undecodable" or word in caught.value.message()


def test_triton_reads_index_and_statistics(triton: Any) -> None:
    from tritonclient.utils import InferenceServerException

    index = {(entry["name"], entry["version"]): entry["state"] for entry in triton.get_model_repository_index()}
    assert index[("colours", "onnx-int8")] == index[("wide", "onnx-fp32")] == "READY"
    with pytest.raises(InferenceServerException, match="MODELKILN_CONTROL=on"):
        triton.unload_model("colours")
    assert triton.is_model_ready("colours")

    def counted() -> tuple[int, int]:
        (told,) = triton.get_inference_statistics("wide", "onnx-fp32")["model_stats"]
        batches = {entry["batch_size"]: entry["compute_infer"]["count"] for entry in told["batch_stats"]}
        assert told["execution_count"] == sum(batches.values())
        return told["inference_count"], told["inference_stats"]["success"]["count"]

    images, requests = counted()
    triton.infer("wide", [tensor(np.zeros((5, 16, 24, 3), np.uint8))])
    assert counted() == (images + 5, requests + 1)
    assert len(triton.get_inference_statistics()["model_stats"]) == 4


def test_triton_asks_asynchronously(triton: Any) -> None:
    handles = [triton.async_infer("colours", [tensor(COLOURS[[tag % 3]])], request_id=str(tag)) for tag in range(64)]
    for tag, handle in enumerate(handles):
        result = handle.get_result()
        assert best(result) == [tag % 3] and result.get_response()["id"] == str(tag)


# --- kserve ----------------------------------------------------------------------------------------------------------


def kserve_told(python: str, server: Running) -> dict[str, Any]:
    script = Path(__file__).with_name("kserve_client.py")
    manifest = ROOT / "deploy" / "kserve" / "inferenceservice.yaml"
    done = subprocess.run([python, str(script), server.url, str(manifest)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.slow
def test_kserve_drives_it(server: Running, tmp_path: Path) -> None:
    """In an environment of its own: kserve and the rest of the project ask for different versions of protobuf."""
    python = os.environ.get("MODELKILN_TEST_KSERVE_PYTHON", "")
    if not python:
        subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "kserve")], check=True, timeout=120)
        python = str(tmp_path / "kserve" / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", "kserve==0.21.0"]
        subprocess.run(install, check=True, capture_output=True, timeout=1200)
    told = kserve_told(python, server)
    assert told.pop("live") and told.pop("ready") and told.pop("model")
    assert told.pop("nothing") is False
    assert told.pop("refused") == []
    assert list(told.values()) == [["r-1", "colours", [0, 2]]] * 4


def test_requests_as_kserves_client_writes_them(client: httpx.Client) -> None:
    """As `InferRequest.to_rest` of kserve 0.21 has them: the model's name in the body, and an id of its own."""
    raw = COLOURS.tobytes()
    made: dict[str, Any] = {"name": "images", "shape": [3, 32, 32, 3], "datatype": "UINT8"}
    made["data"] = COLOURS.ravel().tolist()
    told = client.post(INFER, json={"id": "4c1a-9", "model_name": "colours", "inputs": [made]}).json()
    assert (told["id"], np.reshape(told["outputs"][0]["data"], (3, 3)).argmax(1).tolist()) == ("4c1a-9", [0, 1, 2])
    del made["data"]
    made["parameters"] = {"binary_data_size": len(raw)}
    header = json.dumps({"id": "x", "model_name": "colours", "inputs": [made]}).encode()
    headers = {"inference-header-content-length": str(len(header)), "content-type": "application/octet-stream"}
    answer = client.post(INFER, content=header + raw, headers=headers)
    assert np.reshape(answer.json()["outputs"][0]["data"], (3, 3)).argmax(1).tolist() == [0, 1, 2]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models").json() == {"models": ["brittle", "colours", "wide"]}


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_64_at_once_get_their_own_answers(client: httpx.Client, server: Running) -> None:
    """Each client's image has a colour of its own, and only its answer fits it."""

    async def ask(http: httpx.AsyncClient, tag: int) -> None:
        shade = np.full((1, 32, 32, 3), (4 * tag, 255 - 4 * tag, 128), np.uint8)
        logits = 8 * shade[0, 0, 0].astype(np.float64) / 255
        right = np.exp(logits) / np.exp(logits).sum()
        for turn in range(2):
            content = body(shade, id=f"{tag}-{turn}")
            while (answer := await http.post(INFER, content=content)).status_code != 200:
                assert answer.status_code in (408, 429, 503)  # this machine has too much to do; try again
            told = answer.json()
            assert told["id"] == f"{tag}-{turn}"
            np.testing.assert_allclose(told["outputs"][0]["data"], right, atol=1e-4)

    async def main() -> None:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as http:
            await asyncio.gather(*(ask(http, tag) for tag in range(64)))

    asyncio.run(main())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"inputs": NaN}', b"[" * 100_000, b"\x80" * 99])
def test_01_and_16_bodies(client: httpx.Client, content: bytes) -> None:
    response = client.post(INFER, content=content)
    assert response.status_code == 400 and set(response.json()) == {"error", "code"}


def test_03_and_14_content_types(client: httpx.Client) -> None:
    for kind in ("text/plain", "image/png", "multipart/form-data; boundary=e", "application/x-pickle"):
        refused(client.post(INFER, content=body(), headers={"content-type": kind}), 415, "content_type_unsupported")
    for kind in ("application/json; charset=utf-8", "application/octet-stream", "application/x-www-form-urlencoded"):
        assert client.post(INFER, content=body(), headers={"content-type": kind}).status_code == 200
    encodings = {"content-encoding": "br"}
    assert "gzip" in refused(client.post(INFER, content=body(), headers=encodings), 415, "content_encoding_unsupported")


def test_09_and_15_names_and_methods(client: httpx.Client) -> None:
    assert "brittle, colours, wide" in refused(client.post("/v2/models/no/infer", content=body()), 404, "model_unknown")
    missing = client.get("/v2/models/colours/versions/1")
    assert "onnx-fp32, onnx-int8" in refused(missing, 404, "version_unknown")
    refused(client.get(INFER), 405, "method_not_allowed")
    refused(client.get("/v2/nothing"), 404, "route_unknown")
    for name in ("..%2F..%2Fetc", "%2e%2e", "a%00b", "%0d%0a", "x" * 3000):
        for path in (f"/v2/models/{name}", f"/v2/models/colours/versions/{name}/infer", f"/v2/models/{name}/ready"):
            assert client.request("POST" if path.endswith("infer") else "GET", path).status_code == 404


def test_10_bodies_over_the_limit(client: httpx.Client) -> None:
    refused(client.post(INFER, content=b"x" * (MAX_BODY_BYTES + 1)), 413, "body_too_large")
    bomb = gzip.compress(bytes(50 * MAX_BODY_BYTES))
    begun = time.monotonic()
    for _ in range(20):
        refused(client.post(INFER, content=bomb, headers={"content-encoding": "gzip"}), 413, "body_too_large")
    assert time.monotonic() - begun < 5


def test_11_and_12_images(client: httpx.Client) -> None:
    import base64

    def encoded(*files: bytes) -> bytes:
        data = [base64.b64encode(file).decode() for file in files]
        return json.dumps(
            {"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [len(files)], "data": data}]}
        ).encode()

    bomb = png(png_header(30_000, 30_000), b"\0" * 1000)
    refused(client.post(INFER, content=encoded(bomb)), 413, "image_too_large")
    large = plain(size=(999, 999))
    assert MAX_PIXELS > 999 * 999
    assert client.post(INFER, content=encoded(large)).status_code == 200
    refused(client.post(INFER, content=encoded(large, large)), 413, "image_too_large")
    refused(client.post(INFER, content=encoded(b"GIF89a" + bytes(20))), 415, "image_unsupported")
    refused(client.post(INFER, content=encoded(plain()[:-30])), 400, "image_undecodable")


def test_39_output_that_is_not_finite(client: httpx.Client) -> None:
    bright = np.full((1, 32, 32, 3), 255, np.uint8)
    refused(client.post("/v2/models/brittle/infer", content=body(bright)), 500, "model_output_invalid")
    assert 'modelkiln_errors_total{code="model_output_invalid"}' in processes.metrics(str(client.base_url))
    assert client.post("/v2/models/brittle/infer", content=body(bright // 3)).status_code == 200


def test_a_timeout_that_cannot_be_kept_is_refused_or_kept(client: httpx.Client) -> None:
    """One microsecond: a request alone is computed at once, one that waits is turned away without being computed."""
    with ThreadPoolExecutor(16) as pool:
        hurried = body(noise(32, 32)[None], parameters={"timeout": 1})
        answers = list(pool.map(lambda _: client.post(INFER, content=hurried), range(64)))
    assert {answer.status_code for answer in answers} <= {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            refused(answer, 503, "deadline_passed")
            assert int(answer.headers["retry-after"]) >= 1


def test_the_router_remembers_a_bounded_number_of_paths() -> None:
    async def handler(request: web.Request) -> web.Answer:
        return web.Answer(request.params)

    async def main() -> None:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        router = web.Router([web.Route("GET", "/v2/models/{model}", handler)])
        for name in [*(f"m{number % 700}" for number in range(1400)), "x" * 5000]:
            scope = {"type": "http", "method": "GET", "path": f"/v2/models/{name}", "query_string": b"", "headers": []}
            await router(scope, receive, send)
            assert json.loads(sent[-1]["body"]) == {"model": name}
        assert 0 < len(router._found) <= web.MAX_PATHS

    asyncio.run(main())
