"""The faults of requests (1 to 20, 39), each as what is sent and what may come back; run by a test and by `make chaos`.

What an answer must hold is checked for all of them alike: a status that is allowed, the one error body, no path or
traceback of the machine, within five seconds, and the next good request gets 200 from the same workers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image

from serving.http import auth
from tests.serving.pictures import BLUE, RED, encode, plain, png, png_header
from tests.serving.processes import MAX_BODY_BYTES

SETTINGS = {
    "MODELKILN_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
    "MODELKILN_MAX_PIXELS": "1000000",
    "MODELKILN_BODY_TIMEOUT_S": "1",
    "MODELKILN_HEADER_TIMEOUT_S": "1",
}
SECRETS = ("Traceback", "/tmp", "/home", "/work", "site-packages", ".py")
INFER = "/v2/models/colours/infer"


@dataclass(frozen=True)
class Seen:
    """What was sent, in a few words, and what came back."""

    sent: str
    status: int
    code: str = ""

    def __str__(self) -> str:
        return f"{self.sent}: {self.status} {self.code}".rstrip()


class Asker:
    """Sends what a fault needs and checks what every answer must hold."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=10)
        self.seen: list[Seen] = []

    def __call__(self, sent: str, method: str, path: str, **more: object) -> httpx.Response:
        begun = time.monotonic()
        response = self.http.request(method, path, **more)  # type: ignore[arg-type]
        assert time.monotonic() - begun < 5, sent
        code = ""
        if response.status_code >= 400:
            body = response.json()
            assert set(body) == {"error", "code"} and isinstance(body["error"], str), body
            code = body["code"]
        assert not [secret for secret in SECRETS if secret in response.text], response.text
        self.seen.append(Seen(sent, response.status_code, code))
        return response

    def image(self, sent: str, body: bytes, query: str = "", kind: str = "image/png") -> httpx.Response:
        return self(sent, "POST", f"/predict{query}", content=body, headers={"content-type": kind})

    def infer(self, sent: str, told: object, **headers: str) -> httpx.Response:
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        return self(sent, "POST", INFER, content=body, headers={"content-type": "application/json", **headers})

    def raw(self, sent: str, content: bytes, within_s: float = 5) -> None:
        """Sends bytes as they are; a connection that is closed without an answer is status 0."""
        address = httpx.URL(self.url)
        with socket.create_connection((address.host, address.port or 80), timeout=within_s) as connection:
            connection.sendall(content)
            try:
                answer = connection.recv(4096)
            except ConnectionError:
                answer = b""
        self.seen.append(Seen(sent, int(answer.split()[1]) if answer else 0, "" if answer else "closed"))


def tensor(
    shape: list[object], datatype: str = "UINT8", data: object = None, name: str = "images"
) -> dict[str, object]:
    return {"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": [] if data is None else data}]}


def fields(ask: Asker) -> None:
    ask.infer("broken JSON", b'{"inputs": [')
    ask.infer("missing field", {"id": "1"})
    ask.infer("unknown field", {**tensor([1, 32, 32, 3]), "colour": 1})
    ask.infer("mistyped field", {"inputs": "many"})
    ask("unknown form field", "POST", "/predict", files={"photo": plain()})
    ask.image("unknown query field", plain(), "?modle=colours")


def tensors(ask: Asker) -> None:
    pixels = [[[0, 0, 0]] * 32] * 32
    ask.infer("wrong shape", tensor([1, 8, 8, 3], data=[0] * 192))
    ask.infer("wrong dtype", tensor([1, 32, 32, 3], "FP32", [0.0] * 3072))
    ask.infer("ragged", tensor([1, 32, 32, 3], data=[[*pixels[:-1], [[0, 0]]]]))
    ask.infer("a string", tensor([1, 32, 32, 3], data="zeros"))
    for text in ("NaN", "Infinity", "1e999"):
        told = json.dumps(tensor([1, 32, 32, 3], data=[0] * 3071 + ["?"])).replace('"?"', text)
        ask.infer(text, told.encode())
    ask("batch of the wrong size", "POST", "/predict/batch?shape=1,8,8,3", content=bytes(192))
    ask("batch that is too short", "POST", "/predict/batch?shape=2,32,32,3", content=bytes(3072))


def content_types(ask: Asker) -> None:
    for kind in ("text/plain", "application/x-tar", "nonsense"):
        ask.image(kind, plain(), kind=kind)
        ask(f"V2 {kind}", "POST", INFER, content=b"{}", headers={"content-type": kind})
        ask(f"batch {kind}", "POST", "/predict/batch", content=b"{}", headers={"content-type": kind})


def forms(ask: Asker) -> None:
    ask.image("no boundary", b"--a", kind="multipart/form-data")
    ask.image("another boundary", b"--a\r\n\r\n", kind="multipart/form-data; boundary=b")
    cut = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + plain()
    ask.image("cut off", cut, kind="multipart/form-data; boundary=b")


def broken_images(ask: Asker) -> None:
    bodies = {"empty": b"", "junk": b"junk", "PNG cut off": plain()[:-30], "JPEG cut off": plain(kind="JPEG")[:200]}
    for sent, body in bodies.items():
        ask.image(sent, body)


def labels(ask: Asker) -> None:
    for kind in ("image/jpg", "application/octet-stream", "image/x-what"):
        ask.image(f"PNG as {kind}", plain(BLUE), kind=kind)
    ask("PNG without a type", "POST", "/predict", content=plain(BLUE))


def odd_images(ask: Asker) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    odd = {
        "grey": encode(Image.new("L", (32, 32), 128)),
        "palette": encode(Image.new("RGB", (32, 32), RED).convert("P")),
        "alpha": encode(Image.new("RGBA", (32, 32), (*RED, 128))),
        "CMYK": encode(Image.new("CMYK", (50, 50), (0, 255, 255, 0)), "JPEG"),
        "16-bit": png(png_header(32, 32, 16), (b"\0" + b"\xff\xff\0\0\0\0" * 32) * 32),
        "turned by EXIF": encode(Image.new("RGB", (80, 20), RED), "JPEG", exif=exif),
        "300 x 7": plain(RED, (300, 7)),
    }
    for sent, body in odd.items():
        ask.image(sent, body)


def animated(ask: Asker) -> None:
    frames = [Image.new("RGB", (32, 32), BLUE)]
    body = encode(Image.new("RGB", (32, 32), RED), "WEBP", save_all=True, append_images=frames)
    first = ask.image("red, then blue", body).json()["predictions"][0]["class"]
    assert first == "red"


def unknown(ask: Asker) -> None:
    ask.image("model", plain(), "?model=none")
    ask.image("version", plain(), "?version=none")
    ask("V2 model", "GET", "/v2/models/none")
    ask("route", "GET", "/nothing")
    ask("method", "DELETE", "/predict")
    ask("method of V2", "GET", INFER)


def too_large(ask: Asker) -> None:
    ask.image("by its length", b"x" * (MAX_BODY_BYTES + 1))
    ask("in chunks", "POST", "/predict", content=(b"x" * 50_000 for _ in range(6)))
    ask.raw("declared only", f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {10**15}\r\n\r\n".encode())


def bombs(ask: Asker) -> None:
    ask.image("30,000 x 30,000", png(png_header(30_000, 30_000), b"\0" * 100_000))
    ask.image("a WebP of 16,000 x 16,000", b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x7f\x3e\0\x7f\x3e\0" + bytes(40))
    import gzip

    squeezed = gzip.compress(bytes(50_000_000))
    ask("50 MB in gzip", "POST", INFER, content=squeezed, headers={"content-encoding": "gzip"})
    pieces = plain(kind="JPEG").replace(b"\xff\xd8", b"\xff\xd8" + b"\xff\xe0\0\2" * 40_000, 1)
    ask.image("a JPEG of 40,000 segments", pieces)
    body = encode(Image.new("RGB", (900, 900)), "JPEG", progressive=True)
    ask.image("a JPEG of 1,000 scans", body[:-2] + body[body.rindex(b"\xff\xda") : -2] * 1000 + body[-2:])


def other_formats(ask: Asker) -> None:
    bodies = {"SVG": b"<svg xmlns='x'/>", "PDF": b"%PDF-1.7 " * 9, "EPS": b"%!PS-Adobe-3.0 EPSF-3.0"}
    for sent, body in {**bodies, "TIFF": b"II*\0" + bytes(60), "GIF": b"GIF89a" + bytes(20)}.items():
        ask.image(sent, body)


def references(ask: Asker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/cat.png"
        for sent, text in {"URL": url, "path": "/etc/passwd", "file URL": "file:///etc/passwd"}.items():
            ask.image(sent, text.encode())
            ask(f"{sent} in a form", "POST", "/predict", files={"image": (None, text)})
            ask.infer(f"{sent} in V2", tensor([1], "BYTES", [text], "encoded"))
        with contextlib.suppress(TimeoutError):
            trap.accept()
            raise AssertionError("a connection left")
    with tempfile.TemporaryDirectory() as folder:
        pipe = Path(folder) / "image.png"
        os.mkfifo(pipe)
        for sent, text in {"a file that is there": str(pipe), "its URL": pipe.as_uri()}.items():
            ask.image(sent, text.encode())
            ask(f"{sent} in a form", "POST", "/predict", files={"image": (None, text)})
            ask.infer(f"{sent} in V2", tensor([1], "BYTES", [text], "encoded"))
            assert _openers(pipe) == 0


def _openers(pipe: Path) -> int:
    """Whether somebody has opened a named pipe to read it: then it can be opened to write without waiting."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        assert error.errno == errno.ENXIO
        return 0
    return 1


def pickles(ask: Asker) -> None:
    headers = {"content-type": "application/vnd.bentoml+pickle"}
    asked = [("POST", path) for path in ("/predict", "/predict/batch", INFER, "/v2/repository/index")]
    asked += [("GET", path) for path in ("/", "/models", "/v2", "/openapi.json", *auth.PROBES)]
    for method, path in asked:
        ask(f"{method} {path}", method, path, content=b"cos\nsystem\n.", headers=headers)


def names_like_paths(ask: Asker) -> None:
    for name in ("..%2F..%2Fetc", "%2e%2e", "a%00b", "%0d%0a", "x" * 3000):
        ask(name[:20], "GET", f"/models/{name}")
        ask(f"V2 {name[:20]}", "GET", f"/v2/models/{name}")


def huge(ask: Asker) -> None:
    ask.infer("deep JSON", b'{"inputs":' + b"[" * 90_000)
    ask.infer("deep object", b'{"a":' * 30_000)
    ask.infer("many lists", b'{"inputs":[' + b"[]," * 60_000 + b"[]]}")
    ask.infer("huge shape", tensor([2**40, 32, 32, 3]))
    ask.infer("shape x size overflows", tensor([2**62, 2**62, 32, 3]))
    ask.infer("negative shape", tensor([-1, 32, 32, 3]))
    ask.infer("huge number", json.dumps(tensor([1])).replace("[1]", f"[{'9' * 5000}]").encode())
    binary = {"name": "images", "shape": [1, 32, 32, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 3072}}
    ask.infer("a header's length that lies", {"inputs": [binary]}, **{"inference-header-content-length": "999999"})
    ask.infer("a tensor's length that lies", {"inputs": [binary]})
    ask("a batch too large", "POST", "/predict/batch?shape=999999,32,32,3", content=b"")


def many_parts(ask: Asker) -> None:
    parts = b"".join(b'--e\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n' for _ in range(3000))
    for path in ("/predict", "/predict/batch"):
        headers = {"content-type": "multipart/form-data; boundary=e"}
        ask(f"3,000 parts to {path}", "POST", path, content=parts + b"--e--", headers=headers)
    ask("1,000 headers", "GET", "/models", headers={f"x-{i}": "y" for i in range(1000)})
    ask.raw("a header without end", b"GET /models HTTP/1.1\r\nhost: x\r\nx-long: " + b"y" * 100_000)


def slow(ask: Asker) -> None:
    ask.raw("body", b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nonly this", 10)
    ask.raw("header", b"POST /predict HTTP/1.1\r\nhost: x\r\nx-slow: ", 10)
    ask.raw("nothing", b"", 10)


def log_lines(ask: Asker) -> None:
    ask("line breaks and escapes", "GET", "/models/a%0d%0aforged%1b[31m%22")


def not_finite(ask: Asker) -> None:
    ask.image("/predict", plain((255, 255, 255)), "?model=brittle")


@dataclass(frozen=True)
class Fault:
    """A row of the table: what happens, what must come of it, and which statuses may be seen."""

    number: int
    case: str
    wanted: str
    allowed: tuple[int, ...]
    make: Callable[[Asker], None]


FAULTS = (
    Fault(1, "broken JSON; a missing, unknown or mistyped field", "400, names the field", (400,), fields),
    Fault(2, "wrong shape, dtype, ragged array, NaN or infinity", "400, says which is allowed", (400,), tensors),
    Fault(3, "unknown content type", "415", (415,), content_types),
    Fault(4, "broken multipart, no boundary", "400", (400,), forms),
    Fault(5, "empty, truncated or junk image", "400 `image_undecodable`", (400,), broken_images),
    Fault(6, "PNG labelled otherwise, or not at all", "200: the leading bytes decide", (200,), labels),
    Fault(7, "grey, palette, alpha, CMYK, 16-bit, rotated, non-square", "200 by a written rule", (200,), odd_images),
    Fault(8, "animated image", "first frame", (200,), animated),
    Fault(9, "unknown model, version or route; wrong method", "404 with the known names; 405", (404, 405), unknown),
    Fault(10, "body over the limit", "413, before reading it or at the limit", (413,), too_large),
    Fault(11, "decompression bomb, oversize dimensions", "400 or 413 after the header", (400, 413), bombs),
    Fault(12, "SVG, EPS, TIFF, PDF and other formats", "415", (415,), other_formats),
    Fault(
        13, "a URL or a path where an image belongs", "400; no connection leaves, no file is opened", (400,), references
    ),
    Fault(14, "pickle content type", "415, on every route", (415,), pickles),
    Fault(15, "model name like a path", "400 or 404", (400, 404), names_like_paths),
    Fault(16, "deep JSON, huge shapes, overflow, lengths that lie", "400 in bounded time", (400,), huge),
    Fault(17, "thousands of parts or headers, a header without end", "400, 431", (400, 431), many_parts),
    Fault(18, "slow header or body", "closed or 408 at a deadline", (0, 408), slow),
    Fault(20, "line breaks or escapes in names that reach the log", "escaped", (404,), log_lines),
    Fault(39, "a model that yields NaN", "500 `model_output_invalid`, counted", (500,), not_finite),
)


def made(fault: Fault, url: str) -> list[Seen]:
    """What was seen of a fault.

    Raises:
        AssertionError: An answer is not as it must be, or the service is not well afterwards.
    """
    ask = Asker(url)
    with ask.http:
        fault.make(ask)
        seen = list(ask.seen)
        assert seen and {one.status for one in seen} <= set(fault.allowed), [str(one) for one in seen]
        well = ask.http.post("/predict", content=plain(RED))
        assert well.status_code == 200 and ask.http.get("/readyz").status_code == 200
    return seen


def in_words(seen: list[Seen]) -> Iterator[str]:
    """Each status and code once, with how often."""
    kinds: dict[str, int] = {}
    for one in seen:
        word = f"{one.status or ''} {f'`{one.code}`' if one.code else ''}".strip()
        kinds[word] = kinds.get(word, 0) + 1
    return (word if count == 1 else f"{count} x {word}" for word, count in kinds.items())
