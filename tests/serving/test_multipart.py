from __future__ import annotations

import httpx
import numpy as np
import pytest

from serving.errors import RequestError
from serving.http import multipart
from serving.http.multipart import Part

FORM = "multipart/form-data; boundary=edge"


def body(*parts: bytes, end: bytes = b"--edge--\r\n") -> bytes:
    return b"".join(b"--edge\r\n" + part + b"\r\n" for part in parts) + end


def part(content: bytes = b"x", headers: bytes = b'Content-Disposition: form-data; name="image"') -> bytes:
    return headers + b"\r\n\r\n" + content


def test_what_httpx_sends_is_read_back() -> None:
    generator = np.random.default_rng(0)
    for size in (0, 1, 5000):
        content = generator.bytes(size) + b"\r\n--\r\n"
        request = httpx.Request(
            "POST", "http://x", data={"note": "käse"}, files={"image": ('a "b".png', content, "image/png")}
        )
        found = multipart.parse(request.headers["content-type"], request.read())
        assert found == [Part("note", "käse".encode()), Part("image", content)]


@pytest.mark.parametrize(
    "disposition",
    [
        "form-data; name=image; filename=a.png; filename*=utf-8''a.png",
        'form-data; filename="; name=x"; name=image',
        'FORM-DATA; NAME="image"; filename=""',
        "form-data ;name = image",
        "form-data; name=image; name=other",
    ],
)
def test_names_are_tokens_or_quoted(disposition: str) -> None:
    """The first is what .NET sends."""
    headers = f"Content-Type: image/png\r\nContent-Disposition: {disposition}\r\nX: y".encode()
    assert multipart.parse(FORM, body(part(headers=headers))) == [Part("image", b"x")]


@pytest.mark.parametrize(
    "content_type",
    [FORM, 'multipart/form-data; boundary="edge"', "Multipart/Form-Data; charset=utf-8; BOUNDARY=edge ; x=y"],
)
def test_the_boundary_is_found(content_type: str) -> None:
    assert multipart.parse(content_type, body(part())) == [Part("image", b"x")]


def test_liberties_of_the_standard_are_taken() -> None:
    loose = b'content-type: image/png\r\ncontent-disposition:form-data; filename="name=\\"no\\""; name="image"'
    assert multipart.parse(FORM, b"preamble\r\n" + body(part(b"x--edge", loose), end=b"--edge--")) == [
        Part("image", b"x--edge")
    ]
    assert multipart.parse(FORM, body(end=b"--edge--")) == []
    padded = body(part()).replace(b"--edge\r\n", b"--edge \t\r\n", 1)
    assert multipart.parse(FORM, padded) == [Part("image", b"x")]


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("multipart/form-data", body(part())),
        ("multipart/form-data; boundary=", body(part())),
        (f"multipart/form-data; boundary={'e' * 71}", body(part())),
        (FORM, b""),
        (FORM, b"--edge"),
        (FORM, b"--edge\r\n"),
        (FORM, b"--other\r\n" + part()),
        (FORM, body(part(), end=b"")),
        (FORM, body(b"no headers")),
        (FORM, body(part(headers=b"X: y"))),
        (FORM, body(part(headers=b"X: " + b"y" * 5000))),
        (FORM, body(*[part()] * (multipart.MAX_PARTS + 1))),
        (FORM, b"--edgeless\r\n\r\n"),
    ],
)
def test_a_broken_body_is_refused(content_type: str, content: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        multipart.parse(content_type, content)
    assert (caught.value.status, caught.value.code) == (400, "multipart_invalid")


def test_damage_never_escapes_as_another_error() -> None:
    generator = np.random.default_rng(1)
    whole = body(part(generator.bytes(40)), part())
    for _ in range(2000):
        damaged = bytearray(whole)
        for at in generator.integers(0, len(damaged), 3):
            damaged[at] = generator.choice([13, 10, 45, 0, 101])
        try:
            multipart.parse(FORM, bytes(damaged[: generator.integers(1, len(damaged) + 1)]))
        except RequestError as error:
            assert error.status == 400
