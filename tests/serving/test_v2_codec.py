"""What a V2 request may be, byte by byte, without a server."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest

from serving.errors import RequestError
from serving.v2 import inputs as v2_inputs
from serving.v2.codec import Inference, decompress, encode, parse
from serving.v2.fields import Expected
from tests.serving.pictures import noise, plain

CLASSES = ["red", "green", "blue"]
EXPECTED = Expected(4, 4, len(CLASSES), max_images=8)
LARGE = Expected(32, 32, len(CLASSES), max_images=256)
PIXELS = noise(8, 4).reshape(2, 4, 4, 3)


def tensor(**changes: Any) -> dict[str, Any]:
    made = {"name": "images", "datatype": "UINT8", "shape": [2, 4, 4, 3], "data": PIXELS.tolist(), **changes}
    return {key: value for key, value in made.items() if value is not ...}


def asked(inputs: Any = None, **more: Any) -> bytes:
    return json.dumps({"inputs": [tensor()] if inputs is None else inputs, **more}).encode()


def binary(raw: bytes, **changes: Any) -> tuple[bytes, str]:
    made = tensor(data=..., parameters={"binary_data_size": len(raw)}) | changes
    header = asked([made])
    return header + raw, str(len(header))


def refused(body: bytes, header_length: str = "", status: int = 400, expected: Expected = EXPECTED) -> str:
    with pytest.raises(RequestError) as caught:
        parse(body, header_length, expected)
    assert caught.value.status == status
    assert len(caught.value.error) < 400
    return caught.value.error


# --- what is understood ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [PIXELS.tolist(), PIXELS.ravel().tolist()], ids=["nested as the shape says", "flat in row-major order"]
)
def test_pixels_in_json(data: Any) -> None:
    found = parse(asked([tensor(data=data)]), "", EXPECTED)
    assert found.images is not None
    np.testing.assert_array_equal(found.images, PIXELS)
    assert [(output.name, output.binary) for output in found.outputs] == [("probabilities", False)]


def test_pixels_in_binary() -> None:
    found = parse(*binary(PIXELS.tobytes()), EXPECTED)
    assert found.images is not None
    np.testing.assert_array_equal(found.images, PIXELS)


def test_a_body_that_is_nothing_but_the_input() -> None:
    found = parse(PIXELS.tobytes(), "0", EXPECTED)
    assert found.images is not None
    np.testing.assert_array_equal(found.images, PIXELS)
    assert parse(plain(), "0", EXPECTED).encoded == [plain()]
    assert "multiple of 48" in refused(PIXELS.tobytes()[:-1], "0")
    refused(b"", "0")


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_encoded_images(shape: list[int]) -> None:
    files = [plain(), plain(kind="WEBP")]
    raw = b"".join(struct.pack("<I", len(file)) + file for file in files)
    assert parse(*binary(raw, name="encoded", datatype="BYTES", shape=shape), EXPECTED).encoded == files
    texts = [base64.b64encode(file).decode() for file in files]
    data = texts if len(shape) == 1 else [[text] for text in texts]
    told = tensor(name="encoded", datatype="BYTES", shape=shape, data=data)
    assert parse(asked([told]), "", EXPECTED).encoded == files


def test_the_fields_that_clients_add() -> None:
    found = parse(
        asked(id="a-1", model_name="m", model_version=None, outputs=[], parameters={"priority": 1}), "", EXPECTED
    )
    assert (found.id, found.timeout_s) == ("a-1", None)
    assert parse(asked(parameters={"timeout": 2500}), "", EXPECTED).timeout_s == 0.0025
    wanted = [{"name": "probabilities", "parameters": {"classification": 9, "binary_data": True}}]
    (output,) = parse(asked(outputs=wanted), "", EXPECTED).outputs
    assert (output.binary, output.classification) == (True, 3)
    (output,) = parse(asked(parameters={"binary_data_output": True}), "", EXPECTED).outputs
    assert output.binary


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON: line 1 column 2"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[]", "no JSON object"),
        (b"{}", "lacks inputs"),
        (asked({}), "inputs that are no list"),
        (asked([]), "0 inputs"),
        (asked([tensor(), tensor()]), "2 inputs"),
        (asked(["images"]), "an input is no JSON object"),
        (asked(colour="red"), "'colour'"),
        (asked([tensor(what=1)]), "'what'"),
        (asked([tensor(name=...)]), "'name'"),
        (asked([tensor(shape=...)]), "'shape'"),
        (asked([tensor(datatype=...)]), "'datatype'"),
        (asked([tensor(name="pixels")]), "'pixels'"),
        (asked([tensor(name=["images"])]), "no input a list"),
        (asked([tensor(data=...)]), "lacks data"),
        (asked(id=7), "id"),
        (asked(id="x" * 300), "256 characters"),
        (asked(parameters=[]), "parameters"),
        (asked(parameters={"timeout": "soon"}), "timeout"),
        (asked(parameters={"timeout": True}), "timeout"),
        (asked(parameters={"binary_data_output": 1}), "binary_data_output"),
        (asked(outputs={}), "outputs"),
        (asked(outputs=[{"name": "logits"}]), "'logits'"),
        (asked(outputs=[{}]), "'None'"),
        (asked(outputs=[{"name": "probabilities"}] * 2), "2 outputs"),
        (asked(outputs=[{"name": "probabilities", "parameters": {"classification": "all"}}]), "classification"),
        (asked(outputs=[{"name": "probabilities", "parameters": {"binary_data": "yes"}}]), "binary_data"),
        (asked([tensor(parameters={"shared_memory_region": "r"})]), "shared memory"),
    ],
)
def test_01_fields(body: bytes, named: str) -> None:
    assert named in refused(body)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"shape": [4, 4, 3]}, "[N, 4, 4, 3]"),
        ({"shape": [0, 4, 4, 3], "data": []}, "[N, 4, 4, 3]"),
        ({"shape": [2, 3, 4, 4]}, "[N, 4, 4, 3]"),
        ({"shape": "2,4,4,3"}, "whole numbers"),
        ({"shape": [2, 4, 4, True]}, "whole numbers"),
        ({"shape": [-1, 4, 4, 3]}, "whole numbers"),
        ({"shape": [2.0, 4, 4, 3]}, "whole numbers"),
        ({"shape": [1] * 100}, "whole numbers"),
        ({"datatype": "FP32"}, "UINT8"),
        ({"datatype": None}, "UINT8"),
        ({"data": PIXELS.tolist()[:1]}, "nested"),
        ({"data": PIXELS.ravel().tolist()[:-1]}, "96 numbers, not 95"),
        ({"data": [PIXELS[0].tolist(), PIXELS[1, :3].tolist()]}, "nested"),
        ({"data": [[1, 2], 3]}, "nested"),
        ({"data": "red"}, "no list"),
        ({"data": ["1"] * 96}, "whole numbers from 0 to 255"),
        ({"data": [1.0] * 96}, "whole numbers from 0 to 255"),
        ({"data": [True] * 96}, "whole numbers from 0 to 255"),
        ({"data": [None] * 96}, "whole numbers from 0 to 255"),
        ({"data": [256] * 96}, "whole numbers from 0 to 255"),
        ({"data": [-1] * 96}, "whole numbers from 0 to 255"),
        ({"data": [10**30] * 96}, "whole numbers from 0 to 255"),
        ({"data": [float("nan")] * 96}, "NaN is no number"),
        ({"data": [float("inf")] * 96}, "Infinity is no number"),
    ],
)
def test_02_tensors(changes: dict[str, Any], named: str) -> None:
    assert named in refused(asked([tensor(**changes)]))


@pytest.mark.parametrize(
    "text", ["http://127.0.0.1/cat.png", "file:///etc/passwd", "/etc/passwd", "iVBORw0KGgo", "é", "", 7, None]
)
def test_13_references_are_not_images(text: Any) -> None:
    body = asked([tensor(name="encoded", datatype="BYTES", shape=[1], data=[text])])
    if text == "":  # an empty image, which decoding refuses
        assert parse(body, "", EXPECTED).encoded == [b""]
    else:
        assert "base64" in refused(body)


def test_16_bodies_that_lie() -> None:
    raw = PIXELS.tobytes()
    body, length = binary(raw)
    for lie in ("-1", "x", "1e3", "٣", "9" * 40, str(len(body) + 1)):
        refused(body, lie)
    assert "not JSON" in refused(body, str(int(length) - 1))
    assert "not JSON" in refused(body, str(int(length) + 1))
    assert "not JSON" in refused(body)  # without the header all of it is JSON
    for size in (len(raw) - 1, len(raw) + 1, 10**18):
        wrong = asked([tensor(data=..., parameters={"binary_data_size": size})])
        refused(wrong + raw, str(len(wrong)))
    for odd in ("96", -96, 96.0, True):
        wrong = asked([tensor(data=..., parameters={"binary_data_size": odd})])
        assert "binary_data_size" in refused(wrong + raw, str(len(wrong)))
    both = asked([tensor(parameters={"binary_data_size": len(raw)})])
    assert "both" in refused(both + raw, str(len(both)))
    assert "follow the JSON" in refused(asked() + raw, str(len(asked())))
    short = binary(raw[:48])
    assert "takes 96 bytes, not 48" in refused(*short)
    assert refused(*binary(raw, shape=[2**62, 4, 4, 3]))
    lying = struct.pack("<I", 2**32 - 1) + b"x"
    assert "do not hold" in refused(*binary(lying, name="encoded", datatype="BYTES", shape=[1]))
    assert "within the length" in refused(*binary(b"\0\0", name="encoded", datatype="BYTES", shape=[1]))
    one = struct.pack("<I", 1) + b"x"
    assert "has 3 elements" in refused(*binary(one * 3, name="encoded", datatype="BYTES", shape=[2]))


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"inputs":' * 50_000,
        b'{"inputs": ' + b"[" * 50_000 + b"1" + b"]" * 50_000 + b"}",
        b'{"id": ' + b"9" * 100_000 + b"}",
        asked([tensor(data=[[[[["x"] * 100] * 100] * 10] * 2])]),
        asked([tensor(data=["x" * 1_000_000] + ["y"] * 1000)]),
        asked([tensor(shape=[2**40] * 4, data=[1])]),
        asked([tensor(data=[[]] * 100_000)]),
    ],
    ids=[
        "deep lists",
        "deep objects",
        "closed deep lists",
        "a long number",
        "a wide tensor",
        "a long string",
        "a huge shape",
        "empty lists",
    ],
)
def test_16_bodies_that_blow_up_are_refused_in_bounded_time(body: bytes) -> None:
    begun = time.process_time()  # of this process alone: the machine may be busy
    refused(body)
    assert time.process_time() - begun < 1


def test_16_what_is_just_not_too_deep_is_refused_like_anything_else() -> None:
    for depth in range(700, 1010, 9):
        deep = "[" * depth + "]" * depth
        refused(b'{"inputs": [], "parameters": {"timeout": %b}}' % deep.encode(), expected=LARGE)
        refused(asked([tensor(name="DEEP")]).replace(b'"DEEP"', deep.encode()), expected=LARGE)
    assert "too deeply" in refused(b"[" * 100_000, expected=LARGE)


@pytest.mark.parametrize("piece", ["[],", "{},", "0,", '"a":0,', '"abc",', "[0],"])
def test_16_many_small_things_are_refused_before_they_are_read(piece: str) -> None:
    """Each would take the event loop up to a second, and up to twenty times its bytes of memory."""
    body = b'{"inputs": [{"data": [%s]}]}' % (piece * (8_000_000 // len(piece))).strip(",").encode()
    tracemalloc.start()
    told = refused(body, expected=LARGE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "more than" in told and peak < 2 * len(body)


def test_as_many_images_as_are_taken_are_read_however_they_are_written() -> None:
    largest = np.full((LARGE.max_images, 32, 32, 3), 255, np.uint8)
    for data in (largest.tolist(), largest.ravel().tolist()):
        found = parse(asked([tensor(shape=list(largest.shape), data=data)], id='["{:'), "", LARGE)
        assert found.images is not None and len(found.images) == LARGE.max_images
    files = [base64.b64encode(plain()).decode()] * LARGE.max_images
    told = tensor(name="encoded", datatype="BYTES", shape=[LARGE.max_images], data=files)
    assert len(parse(asked([told]), "", LARGE).encoded) == LARGE.max_images


def test_too_many_images() -> None:
    assert "at most 8" in refused(*binary(bytes(9 * 48), shape=[9, 4, 4, 3]))


# --- compression -----------------------------------------------------------------------------------------------------


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("X-GZIP", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)],
)
def test_compressed_bodies(encoding: str, pack: Any) -> None:
    body = PIXELS.tobytes() * 10
    assert decompress(pack(body), encoding, len(body)) == body
    assert decompress(body, "identity", 1) == body
    for packed, limit, status in (
        (pack(body), len(body) - 1, 413),
        (pack(bytes(10**7)), 10**6, 413),
        (pack(body)[:-5], 10**6, 400),
        (pack(body) + b"more", 10**6, 400),
        (b"junk" * 9, 10**6, 400),
        (b"", 10**6, 400),
    ):
        with pytest.raises(RequestError) as caught:
            decompress(packed, encoding, limit)
        assert caught.value.status == status, packed[:20]


def test_a_gzip_body_of_several_members() -> None:
    body = PIXELS.tobytes() * 10
    members = b"".join(gzip.compress(body[at : at + 9999]) for at in range(0, len(body), 9999))
    assert decompress(members, "gzip", len(body)) == body
    for packed, limit, status in (
        (members, len(body) - 1, 413),
        (members[:-9], 10**6, 400),
        (members + b"more", 10**6, 400),
        (gzip.compress(b"") * 10_000, 10**6, 400),  # each costs something, and holds nothing
    ):
        with pytest.raises(RequestError) as caught:
            decompress(packed, "gzip", limit)
        assert caught.value.status == status


def test_an_unknown_encoding() -> None:
    with pytest.raises(RequestError, match="gzip") as caught:
        decompress(b"", "br", 10)
    assert (caught.value.status, caught.value.headers["accept-encoding"]) == (415, "gzip, x-gzip, deflate, identity")


# --- responses -------------------------------------------------------------------------------------------------------

ROWS = np.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0]], np.float32)


def answered(**request: Any) -> tuple[dict[str, Any], bytes]:
    inference: Inference = parse(asked(**request), "", EXPECTED)
    content, header = encode(inference, "m", "onnx-fp32", CLASSES, ROWS)
    size = len(content) if header is None else header
    return json.loads(content[:size]), content[size:]


def test_a_json_response() -> None:
    told, rest = answered(id="é\ud800\n")
    assert rest == b"" and told["id"] == "é\ud800\n"
    assert (told["model_name"], told["model_version"]) == ("m", "onnx-fp32")
    assert told["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [2, 3], "data": ROWS.ravel().tolist()}
    ]
    assert "id" not in answered()[0]


def test_a_binary_response() -> None:
    told, rest = answered(parameters={"binary_data_output": True})
    assert told["outputs"][0]["parameters"] == {"binary_data_size": 24} and "data" not in told["outputs"][0]
    np.testing.assert_array_equal(np.frombuffer(rest, "<f4").reshape(2, 3), ROWS)


def test_a_classification() -> None:
    wanted = {"name": "probabilities", "parameters": {"classification": 2}}
    (output,) = answered(outputs=[wanted])[0]["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert output["data"] == ["0.700000:1:green", "0.200000:2:blue", "0.500000:0:red", "0.500000:1:green"]
    wanted["parameters"]["binary_data"] = True  # type: ignore[index]
    told, rest = answered(outputs=[wanted])
    assert v2_inputs._elements(memoryview(rest)) == [text.encode() for text in output["data"]]
    assert told["outputs"][0]["parameters"]["binary_data_size"] == len(rest)


# --- anything at all -------------------------------------------------------------------------------------------------

ODD: list[Any] = [None, True, False, 0, -1, 3, 2**63, 1.5, "", "images", "x" * 100, [], [[]], {}, {"name": 1}, [1, [2]]]


def warped(value: Any, random: np.random.Generator) -> Any:
    """The value with one thing in it replaced, dropped or added."""
    if isinstance(value, dict) and value and random.random() < 0.8:
        key = str(random.choice(sorted(value)))
        if random.random() < 0.2:
            return {other: item for other, item in value.items() if other != key}
        if random.random() < 0.1:
            return {**value, "more": ODD[random.integers(len(ODD))]}
        return {**value, key: warped(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.7:
        at = int(random.integers(len(value)))
        return [*value[:at], warped(value[at], random), *value[at + 1 :]]
    return ODD[random.integers(len(ODD))]


def test_whatever_is_sent_is_understood_or_refused() -> None:
    random = np.random.default_rng(1)
    files = base64.b64encode(plain()).decode()
    whole: list[dict[str, Any]] = [
        json.loads(asked(id="i", parameters={"timeout": 5, "binary_data_output": True})),
        json.loads(asked(outputs=[{"name": "probabilities", "parameters": {"classification": 2}}])),
        {"inputs": [tensor(name="encoded", datatype="BYTES", shape=[2, 1], data=[[files], [files]])]},
        json.loads(binary(PIXELS.tobytes())[0][:-96]),
    ]
    counts = {True: 0, False: 0}
    for turn in range(1500):
        body = json.dumps(warped(whole[turn % len(whole)], random)).encode()
        length = str(len(body)) if turn % 3 else ""
        body += PIXELS.tobytes() if turn % 4 == 3 else b""
        if turn % 5 == 0:
            cut = int(random.integers(len(body)))
            body = (
                body[:cut] + bytes(random.integers(0, 256, 3, dtype=np.uint8)) + body[cut + int(random.integers(9)) :]
            )
        try:
            found = parse(body, length, EXPECTED)
        except RequestError as error:
            assert error.status in (400, 413), error
            counts[False] += 1
        else:
            assert (found.images is None) != (found.encoded == [])
            encode(found, "m", "v", CLASSES, ROWS)
            counts[True] += 1
    assert min(counts.values()) > 25, counts
