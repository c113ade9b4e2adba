"""The faults of a request (numbers as in the project's list of faults), against a real server."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.serving import processes
from tests.serving.pictures import BLUE, GREEN, RED, encode, noise, plain, png, png_header
from tests.serving.processes import MAX_BODY_BYTES, Running

ROUTES = [("POST", "/predict"), ("GET", "/models"), ("GET", "/models/colours")]


@pytest.fixture(autouse=True)
def still_well(client: httpx.Client, server: Running) -> Iterator[None]:
    """Whatever a test did, the same worker goes on and the next good request is answered."""
    before = [child.pid for child in psutil.Process(server.process.pid).children()]
    yield
    assert client.get("/readyz").status_code == 200
    assert classes(client.post("/predict", content=plain(GREEN)))[0] == "green"
    assert [child.pid for child in psutil.Process(server.process.pid).children()] == before


def classes(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [entry["class"] for entry in response.json()["predictions"]]


def refused(response: httpx.Response, status: int, code: str) -> str:
    """The sentence of an error body, which has one shape and tells nothing of the machine."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error", "code"} and body["code"] == code, body
    for secret in ("Traceback", "/tmp", "/home", "/work", "site-packages", ".py"):
        assert secret not in response.text
    return str(body["error"])


# --- good requests ---------------------------------------------------------------------------------------------------


def test_a_form_and_a_raw_body_get_the_same_answer(client: httpx.Client) -> None:
    body = plain(RED)
    form = client.post("/predict", files={"image": ("cat.png", body, "image/png")}).json()
    raw = client.post("/predict", content=body).json()
    assert form["predictions"] == raw["predictions"]
    assert (form["model"], form["version"]) == ("colours", "onnx-int8")
    low = 1 / (np.exp(8) + 2)
    assert [entry["class"] for entry in raw["predictions"]] == ["red", "green", "blue"]
    np.testing.assert_allclose([e["probability"] for e in raw["predictions"]], [1 - 2 * low, low, low], atol=1e-6)
    assert set(raw["milliseconds"]) == {"receive", "decode", "queue", "compute", "total"}
    assert raw["milliseconds"]["total"] >= raw["milliseconds"]["compute"] >= 0


def test_curl_as_the_readme_has_it(server: Running, tmp_path: Path) -> None:
    import shutil
    import subprocess

    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl here")
    (tmp_path / "cat.png").write_bytes(plain(BLUE))
    for arguments in (["-F", "image=@cat.png"], ["--data-binary", "@cat.png"], ["-T", "cat.png", "-X", "POST"]):
        command = [curl, "-sS", *arguments, f"{server.url}/predict"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=30)
        assert json.loads(done.stdout)["predictions"][0]["class"] == "blue"


@pytest.mark.parametrize(
    ("query", "version", "top"),
    [
        ("model=colours&version=onnx-fp32", "onnx-fp32", 3),
        ("version=onnx-fp32&top=1", "onnx-fp32", 1),
        ("model=wide&top=2", "onnx-fp32", 2),
        ("model=&version=&top=", "onnx-int8", 3),
        ("top=99", "onnx-int8", 3),
    ],
)
def test_the_query_chooses(client: httpx.Client, query: str, version: str, top: int) -> None:
    response = client.post(f"/predict?{query}", content=plain(BLUE))
    assert classes(response)[0] == "blue" and len(classes(response)) == top
    assert response.json()["version"] == version


def test_models_are_listed(client: httpx.Client) -> None:
    listed = {model["name"]: model for model in client.get("/models").json()["models"]}
    assert sorted(listed) == ["brittle", "colours", "wide"]
    colours = listed["colours"]
    assert colours["default"] and not listed["wide"]["default"]
    assert (colours["classes"], colours["input"]) == (["red", "green", "blue"], [32, 32, 3])
    assert [v["version"] for v in colours["versions"]] == ["onnx-fp32", "onnx-int8"]
    assert [v["top1"] for v in colours["versions"]] == [95.0, 94.2]
    one = client.get("/models/colours").json()
    assert one["card"]["weights_sha256"] == "a" * 64 and len(one["variants"]) == 2
    assert "/home" not in json.dumps(one)
    assert client.head("/models").status_code == 200


def test_health_and_metrics(client: httpx.Client, server: Running) -> None:
    for path in ("/livez", "/readyz", "/healthz"):
        answer = client.get(path)
        assert (answer.status_code, answer.text, answer.headers["content-type"][:10]) == (200, "\n", "text/plain")
        assert client.head(path).status_code == 200
    client.get("/models/none")
    text = processes.metrics(server.url)
    assert 'modelkiln_requests_total{code="404",route="/models/{model}"}' in text
    assert "modelkiln_request_seconds_bucket" in text
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_probes_leave_nothing_behind(client: httpx.Client, server: Running) -> None:
    """BentoML would keep a timer of a minute for each, and 5 kB with it."""
    (worker,) = psutil.Process(server.process.pid).children()
    for path in ("/livez", "/readyz", "/healthz", "/metrics") * 50:
        client.get(path)
    before = worker.memory_info().rss
    for path in ("/livez", "/readyz", "/healthz") * 500:
        client.get(path)
    assert worker.memory_info().rss < before + 2_000_000


def test_a_page_of_metrics_serves_all_who_ask_for_a_moment(client: httpx.Client, server: Running) -> None:
    processes.metrics(server.url)
    text = client.get("/metrics").text
    client.get("/models")
    assert client.get("/metrics").text == text != processes.metrics(server.url)


def test_every_line_of_the_log_is_json_and_a_request_that_is_none_gets_one(server: Running) -> None:
    before = len(server.log.read_text())
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
    (line,) = server.log.read_text()[before:].splitlines()
    assert json.loads(line)["code"] == "http_invalid"
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert any("Starting production" in line["message"] for line in lines)


def test_usage_is_not_tracked(client: httpx.Client, server: Running) -> None:
    assert "Tracking" not in server.log.read_text()


def test_a_stale_variant_is_told_of_once(client: httpx.Client, server: Running) -> None:
    assert server.log.read_text().count("colours/onnx-fp16 is not served") == 1


# --- bad requests ----------------------------------------------------------------------------------------------------


def test_01_fields(client: httpx.Client) -> None:
    image = plain()
    assert "'image'" in refused(client.post("/predict", files={"photo": image}), 400, "field_unknown")
    both = [("image", ("a.png", image)), ("image", ("b.png", image))]
    refused(client.post("/predict", files=both), 400, "field_repeated")
    mixed = client.post("/predict", files={"image": image}, data={"url": "http://x"})
    assert "'url'" in refused(mixed, 400, "field_unknown")
    empty = client.post("/predict", content=b"--e--", headers={"content-type": "multipart/form-data; boundary=e"})
    assert "'image'" in refused(empty, 400, "field_missing")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("modle=colours", "query_unknown"),
        ("model=colours&model=wide", "query_repeated"),
        ("top=0", "query_invalid"),
        ("top=-1", "query_invalid"),
        ("top=1e3", "query_invalid"),
        ("top=99999999999999999999999", "query_invalid"),
        ("top=%D9%A1", "query_invalid"),
        ("model=%FF", "query_invalid"),
        ("&".join(f"a{i}=1" for i in range(50)), "query_invalid"),
    ],
)
def test_01_queries(client: httpx.Client, query: str, code: str) -> None:
    refused(client.post(f"/predict?{query}", content=plain()), 400, code)


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-tar", "multipart/mixed", "nonsense"])
def test_03_content_types(client: httpx.Client, kind: str) -> None:
    response = client.post("/predict", content=b"{}", headers={"content-type": kind})
    assert "multipart/form-data" in refused(response, 415, "content_type_unsupported")


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=zz"])
def test_04_multipart(client: httpx.Client, kind: str) -> None:
    response = client.post("/predict", content=b"--aa\r\n\r\n", headers={"content-type": kind})
    refused(response, 400, "multipart_invalid")


@pytest.mark.parametrize("body", [b"", b"junk", plain()[:-30], plain(kind="JPEG")[:200], plain(kind="WEBP")[:20]])
def test_05_images(client: httpx.Client, body: bytes) -> None:
    refused(client.post("/predict", content=body), 400, "image_undecodable")
    refused(client.post("/predict", files={"image": body}), 400, "image_undecodable")


@pytest.mark.parametrize("kind", ["image/jpg", "image/png", "application/octet-stream", "image/x-what", None])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_06_the_leading_bytes_decide(client: httpx.Client, kind: str | None, format: str) -> None:
    headers = {"content-type": kind} if kind else {}
    assert classes(client.post("/predict", content=plain(BLUE, kind=format), headers=headers))[0] == "blue"


def test_07_and_08_odd_images(client: httpx.Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    turned = encode(Image.new("RGB", (80, 20), RED), "JPEG", exif=exif)
    palette = encode(Image.new("RGB", (32, 32), RED).convert("P"))
    cmyk = encode(Image.new("CMYK", (50, 50), (0, 255, 255, 0)), "JPEG")
    deep = png(png_header(32, 32, 16), (b"\0" + b"\xff\xff\0\0\0\0" * 32) * 32)
    alpha = encode(Image.new("RGBA", (32, 32), (*RED, 128)))
    moving = encode(Image.new("RGB", (32, 32), RED), "WEBP", save_all=True, append_images=[Image.new("RGB", (32, 32))])
    for body in (turned, palette, cmyk, deep, alpha, moving, plain(RED, (300, 7))):
        assert classes(client.post("/predict", content=body))[0] == "red"
    grey = client.post("/predict", content=encode(Image.new("L", (32, 32), 128))).json()["predictions"]
    assert all(abs(entry["probability"] - 1 / 3) < 1e-5 for entry in grey)


def test_09_names_routes_and_methods(client: httpx.Client) -> None:
    known = "brittle, colours, wide"
    assert known in refused(client.post("/predict?model=no", content=plain()), 404, "model_unknown")
    assert known in refused(client.get("/models/no"), 404, "model_unknown")
    missing = client.post("/predict?version=onnx-int4", content=plain())
    assert "onnx-fp32, onnx-int8" in refused(missing, 404, "version_unknown")
    for path in ("/nothing", "/models/", "/models/a/b", "/predict/", "/v2/", "/docs.json", "/static_content/x"):
        assert "/predict" in refused(client.get(path), 404, "route_unknown")
    for method, path in (("GET", "/predict"), ("DELETE", "/models"), ("POST", "/livez"), ("PUT", "/metrics")):
        response = client.request(method, path)
        refused(response, 405, "method_not_allowed")
        assert response.headers["allow"]


# --- hostile requests ------------------------------------------------------------------------------------------------


def _chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 10_000):
        yield b"x" * 10_000


def test_10_bodies_over_the_limit(client: httpx.Client, server: Running) -> None:
    refused(client.post("/predict", content=b"x" * (MAX_BODY_BYTES + 1)), 413, "body_too_large")
    refused(client.post("/predict", content=_chunks(2 * MAX_BODY_BYTES)), 413, "body_too_large")
    refused(client.post("/predict", content=b"x" * MAX_BODY_BYTES), 400, "image_undecodable")  # just within
    (worker,) = psutil.Process(server.process.pid).children()
    before = worker.memory_info().rss
    for _ in range(50):
        refused(client.post("/predict", content=b"x" * 2 * MAX_BODY_BYTES), 413, "body_too_large")
        refused(client.post("/predict", content=_chunks(2 * MAX_BODY_BYTES)), 413, "body_too_large")
    assert worker.memory_info().rss - before < 1 << 20


def test_10_a_declared_length_is_refused_before_the_body(server: Running) -> None:
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {10**15}\r\n\r\n"
    assert _raw(server, head.encode()).startswith(b"HTTP/1.1 413 ")


def test_11_bombs(client: httpx.Client) -> None:
    bomb = png(png_header(30_000, 30_000), b"\0" * 100_000)
    assert "30000 x 30000" in refused(client.post("/predict", content=bomb), 413, "image_too_large")
    text = png(png_header(32, 32), b"\0" * 32 * 97, (b"zTXt", b"a\0\0" + __import__("zlib").compress(bytes(10**8))))
    refused(client.post("/predict", content=text), 400, "image_undecodable")


@pytest.mark.parametrize(
    "body", [b"<svg xmlns='x'/>", b"%PDF-1.7 " * 9, b"%!PS-Adobe-3.0 EPSF-3.0", b"II*\0" + bytes(60)]
)
def test_12_other_formats(client: httpx.Client, body: bytes) -> None:
    assert "PNG, JPEG or WebP" in refused(client.post("/predict", content=body), 415, "image_unsupported")


def test_13_urls_and_paths_are_not_followed(client: httpx.Client, store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.3)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/cat.png"
        for reference in (url, f"file://{store}/cat.png", str(store / "colours/card.json"), "../../etc/passwd"):
            refused(client.post("/predict", content=reference.encode()), 400, "image_undecodable")
            refused(client.post("/predict", files={"image": reference.encode()}), 400, "image_undecodable")
            refused(client.post("/predict", data={"image": reference}), 400, "image_undecodable")
        with pytest.raises(TimeoutError):
            trap.accept()


@pytest.mark.parametrize(
    "kind", ["application/vnd.bentoml+pickle", "application/python-pickle", "application/x-pickle"]
)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_14_pickles(client: httpx.Client, method: str, path: str, kind: str) -> None:
    response = client.request(method, path, content=b"cos\nsystem\n.", headers={"content-type": kind})
    refused(response, 415, "content_type_unsupported")


@pytest.mark.parametrize(
    "name", ["..%2F..%2Fetc", "%2e%2e", "colours%2Fvariants", "a%00b", "%0d%0a", "x" * 3000, "%ff"]
)
def test_15_names_like_paths(client: httpx.Client, name: str) -> None:
    assert client.get(f"/models/{name}").status_code == 404
    response = client.post(f"/predict?model={name}", content=plain())
    assert response.status_code in (400, 404)
    assert len(response.content) < 1000 and b"\r" not in response.content


def test_16_lying_lengths(server: Running) -> None:
    for length in ("-1", "abc", "1, 2", "18446744073709551617"):
        head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
        assert _raw(server, head.encode() + plain()).split()[1] in (b"400", b"413")


def test_17_many_parts_and_headers(client: httpx.Client) -> None:
    parts = b"".join(b'--e\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n' for _ in range(3000))
    response = client.post(
        "/predict", content=parts + b"--e--", headers={"content-type": "multipart/form-data; boundary=e"}
    )
    refused(response, 400, "multipart_invalid")
    response = client.post("/predict", content=plain(), headers={f"x-{i}": "y" for i in range(1000)})
    refused(response, 400, "headers_too_many")


def test_18_a_slow_body_times_out_while_others_are_served(client: httpx.Client, server: Running) -> None:
    with socket.create_connection(_address(server), timeout=10) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nonly this")
        for _ in range(5):
            assert client.post("/predict", content=plain()).status_code == 200
        begun = time.monotonic()
        answer = slow.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ") and time.monotonic() - begun < 8


def test_26_a_client_that_leaves(client: httpx.Client, server: Running) -> None:
    for _ in range(20):
        with socket.create_connection(_address(server), timeout=10) as leaving:
            leaving.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nonly this")
    assert client.get("/models").status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_39_output_that_is_not_finite(client: httpx.Client) -> None:
    assert classes(client.post("/predict?model=brittle", content=plain((100, 0, 0))))[0] == "red"
    response = client.post("/predict?model=brittle", content=plain((255, 255, 255)))
    refused(response, 500, "model_output_invalid")


def test_large_images_are_decoded_off_the_event_loop(client: httpx.Client) -> None:
    body = encode(Image.fromarray(noise(900, 900) // 64), "JPEG", quality=30)
    assert len(body) < MAX_BODY_BYTES
    answer: dict[str, Any] = client.post("/predict", content=body).json()
    assert answer["milliseconds"]["decode"] > 0


def _address(server: Running) -> tuple[str, int]:
    url = httpx.URL(server.url)
    assert url.port is not None
    return url.host, url.port


def _raw(server: Running, request: bytes) -> bytes:
    with socket.create_connection(_address(server), timeout=10) as connection:
        connection.sendall(request)
        return connection.recv(4096)
