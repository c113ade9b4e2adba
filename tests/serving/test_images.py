from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from serving import images
from serving.errors import RequestError
from tests.serving.pictures import BLUE, GREEN, RED, encode, noise, plain, png, png_header

LIMIT = 1_000_000


def decode(body: bytes, height: int = 32, width: int = 32) -> np.ndarray:
    return images.inspect(body, LIMIT).decode(height, width)


def refusal(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode(body)
    return caught.value


def test_a_machine_without_memory_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(images, "_fit", fails)
        decode(plain())
    monkeypatch.setattr(images, "_HEADERS", {kind: fails for kind in images._HEADERS})
    with pytest.raises(MemoryError):
        decode(plain())


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_image_of_the_right_size_passes_bit_for_bit(kind: str) -> None:
    pixels = noise(16, 24)
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode(encode(Image.fromarray(pixels), kind, **options), 16, 24)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


def test_a_jpeg_is_what_its_decoder_gives() -> None:
    body = encode(Image.fromarray(noise()), "JPEG", quality=90)
    np.testing.assert_array_equal(decode(body), np.asarray(Image.open(io.BytesIO(body))))


def test_sixteen_bits_keep_their_high_byte() -> None:
    values = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64
    grey = decode(png(png_header(32, 32, 16, 0), b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)))
    np.testing.assert_array_equal(grey, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, 2))
    colour = np.stack([values, values[::-1], values.T], 2)
    rgb = decode(png(png_header(32, 32, 16, 2), b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour)))
    np.testing.assert_array_equal(rgb, (colour >> 8).astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_every_mode_of_a_png_becomes_rgb(mode: str) -> None:
    white = Image.new("RGB", (32, 32), "white").convert(mode)
    np.testing.assert_array_equal(decode(encode(white)), np.full((32, 32, 3), 255, np.uint8))


def test_alpha_is_composited_over_white() -> None:
    body = encode(Image.new("RGBA", (32, 32), (200, 0, 100, 128)))
    share = 128 / 255
    wanted = [round(255 * (1 - share) + share * value) for value in (200, 0, 100)]
    assert np.abs(decode(body)[0, 0].astype(int) - wanted).max() <= 1
    assert (decode(encode(Image.new("RGBA", (32, 32), (9, 9, 9, 0)))) == 255).all()


@pytest.mark.parametrize(
    ("depth", "colour", "key", "pixel"),
    [
        (8, 0, b"\0\7", b"\7"),
        (8, 2, b"\0\1\0\2\0\3", b"\1\2\3"),
        (16, 0, b"\1\7", b"\1\7"),
        (16, 2, b"\1\0\2\0\3\0", b"\1\0\2\0\3\0"),
    ],
)
def test_the_transparent_colour_of_a_png_becomes_white(depth: int, colour: int, key: bytes, pixel: bytes) -> None:
    rows = (b"\0" + pixel * 32) * 32
    assert (decode(png(png_header(32, 32, depth, colour), rows, (b"tRNS", key))) == 255).all()


def test_cmyk_becomes_rgb() -> None:
    red, green, blue = decode(encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG"))[16, 16]
    assert red > 240 and green < 15 and blue < 15


def test_exif_orientation_is_applied() -> None:
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16] = 255  # bright above
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown by turning a quarter clockwise
    lying = Image.fromarray(np.rot90(upright).copy())
    for kind, options in (("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})):
        found = decode(encode(lying, kind, exif=exif, **options))
        assert found[:12].mean() > 250 and found[20:].mean() < 5, kind


def test_corrupt_exif_is_ignored() -> None:
    pixels = noise()
    body = encode(Image.fromarray(pixels), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode(body), pixels)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (GREEN, RED, BLUE)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    body = encode(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert (decode(body) == np.array(GREEN)).all()


def test_other_shapes_are_cut_around_the_centre() -> None:
    tall = np.zeros((96, 32, 3), np.uint8)
    tall[32:64] = 255
    assert (decode(encode(Image.fromarray(tall))) == 255).all()
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 24:72] = 255
    assert (decode(encode(Image.fromarray(wide)), 16, 24) == 255).all()


def test_shrinking_averages_over_the_area() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # nearest-neighbour sampling would see one colour only
    inner = decode(encode(Image.fromarray(stripes)))[1:-1, 1:-1]  # at the border the filter sees half a stripe more
    assert np.abs(inner.astype(int) - 127).max() <= 1


def test_resizing_is_golden() -> None:
    ramp = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)[..., None].repeat(3, 2)
    found = decode(encode(Image.fromarray(ramp)), 4, 4)[..., 0]
    np.testing.assert_array_equal(found, [[20, 31, 44, 55], [31, 42, 55, 66], [44, 55, 68, 79], [55, 66, 79, 90]])


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 700), (700, 1), (2, 3)])
def test_extreme_shapes_come_out_whole(width: int, height: int) -> None:
    assert (decode(plain(BLUE, (width, height))) == np.array(BLUE)).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncation_anywhere_is_undecodable(kind: str) -> None:
    body = encode(Image.fromarray(noise()), kind)
    for share in (0.01, 0.1, 0.3, 0.5, 0.8, 0.95):
        error = refusal(body[: max(1, int(len(body) * share))])
        assert (error.status, error.code) == (400, "image_undecodable")


def test_random_damage_never_escapes_as_another_error() -> None:
    generator = np.random.default_rng(1)
    originals = [encode(Image.fromarray(noise()), kind) for kind in ("PNG", "JPEG", "WEBP")]
    originals.append(encode(Image.fromarray(noise()).convert("P"), transparency=3))
    for _ in range(400):
        body = bytearray(originals[generator.integers(len(originals))])
        for at in generator.integers(8, len(body), generator.integers(1, 8)):
            body[at] = generator.integers(256)
        try:
            assert decode(bytes(body)).shape == (32, 32, 3)
        except RequestError as error:
            assert error.status in (400, 413, 415)


@pytest.mark.parametrize("body", [b"", b"x", b"\0" * 100, b"http://127.0.0.1/cat.png", b"/etc/passwd", b"\x89PNG\r\n"])
def test_junk_is_undecodable(body: bytes) -> None:
    assert (refusal(body).status, refusal(body).code) == (400, "image_undecodable")


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PDF", "EPS", "ICO", "JPEG2000"])
def test_other_formats_are_unsupported(kind: str) -> None:
    error = refusal(encode(Image.new("RGB", (32, 32)), kind))
    assert (error.status, error.code) == (415, "image_unsupported")
    assert "PNG, JPEG or WebP" in error.error


@pytest.mark.parametrize("body", [b"<svg xmlns='x'/>", b"\n <?xml version='1.0'?><svg/>", b"<!DOCTYPE html>"])
def test_markup_is_unsupported(body: bytes) -> None:
    assert refusal(body).status == 415


def test_dimensions_are_refused_before_decoding() -> None:
    bombs = [
        png(png_header(50_000, 50_000), b""),
        b"RIFF\x1e\0\0\0WEBPVP8X\n\0\0\0\0\0\0\0" + b"\xff\xff\x3f" * 2,
        b"RIFF\x1e\0\0\0WEBPVP8L\x12\0\0\0\x2f" + struct.pack("<I", 0x0FFFFFFF) + bytes(9),
        b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", 60_000, 60_000) + bytes(20),
    ]
    for bomb in bombs:
        with pytest.raises(RequestError) as caught:
            images.inspect(bomb, LIMIT)
        assert (caught.value.status, caught.value.code) == (413, "image_too_large")


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})])
def test_the_header_tells_the_size(kind: str, options: dict[str, bool]) -> None:
    upload = images.inspect(encode(Image.new("RGB", (37, 53)), kind, **options), LIMIT)
    assert (upload.header.width, upload.header.height) == (37, 53)


def test_the_header_tells_the_canvas_of_a_webp_with_alpha() -> None:
    upload = images.inspect(encode(Image.new("RGBA", (37, 53), (1, 2, 3, 4)), "WEBP"), LIMIT)
    assert (upload.header.width, upload.header.height) == (37, 53)


# --- what is cheap to send and dear to read --------------------------------------------------------------------------


def _behind_the_first(body: bytes, kind: str, more: bytes) -> bytes:
    """An image with `more` behind a PNG's first chunk, or behind a JPEG's or WebP's first two bytes."""
    at = 33 if kind == "PNG" else 2
    return body[:at] + more + body[at:]


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("kind", "piece"),
    [
        ("JPEG", b"\xff\xe0\0\2"),
        ("JPEG", b"\xff\xfe\0\2"),
        ("JPEG", b"\xff"),
        ("JPEG", b"\xff\xdb\xff\xf6" + b"\0".ljust(65, b"\1") * 1008),
        ("PNG", _chunk(b"abCd")),
        ("PNG", _chunk(b"IDAT")),
    ],
)
def test_a_million_pieces_are_not_walked_over(kind: str, piece: bytes) -> None:
    error = refusal(_behind_the_first(plain(kind=kind), kind, piece * (1_000_000 // len(piece))))
    assert (error.status, error.code) == (400, "image_undecodable") and "more than" in error.error


def test_what_cameras_write_about_a_photo_is_not_too_much() -> None:
    """Some hundred segments of metadata, and a film behind the image."""
    pixels = Image.fromarray(noise(64, 64))
    body = encode(pixels, "JPEG", quality=90, icc_profile=noise(1000, 1000).tobytes(), comment=b"c" * 60_000)
    film = np.random.default_rng(2).bytes(2_000_000)
    upload = images.inspect(body + film, LIMIT)
    assert len(upload.header.body) < len(body) + len(film) - 3_000_000  # metadata do not reach the decoder
    np.testing.assert_array_equal(upload.decode(64, 64), np.asarray(Image.open(io.BytesIO(body))))
    progressive = encode(pixels, "JPEG", progressive=True)
    np.testing.assert_array_equal(decode(progressive, 64, 64), np.asarray(Image.open(io.BytesIO(progressive))))


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    body = encode(Image.fromarray(noise()), "JPEG", progressive=True)
    last = body.rindex(b"\xff\xda")
    error = refusal(body[:-2] + body[last:-2] * 1000 + body[-2:])
    assert error.status == 400 and "scans" in error.error


def test_another_size_behind_the_header_is_not_believed() -> None:
    """Neither of a second IHDR nor of a second frame header, which Pillow takes for the image's size."""
    twice = _behind_the_first(plain(), "PNG", _chunk(b"IHDR", png_header(9000, 9000)))
    assert "another size" in str(refusal(twice).__cause__)  # before there was room for it
    body = plain(kind="JPEG")
    frame = body.index(b"\xff\xc0")
    second = body[frame : frame + 5] + struct.pack(">HH", 9000, 9000) + body[frame + 9 : frame + 19]
    with pytest.raises(RequestError, match="header"):
        images.inspect(body[: frame + 19] + second + body[frame + 19 :], LIMIT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_that_unpacks_to_gigabytes_is_not_unpacked(kind: str) -> None:
    """Four thousand tags, each of which is all of the file: nobody reads them but for the orientation."""
    tags = b"".join(struct.pack("<HHII", 0x9000 + tag, 7, 40_000, 0) for tag in range(4000))
    bomb = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 4000) + tags + bytes(4)
    tracemalloc.start()
    try:
        assert decode(encode(Image.new("RGB", (32, 32)), kind, exif=bomb)).shape == (32, 32, 3)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_compositing_in_strips_changes_no_pixel(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (50, 40, 4), dtype=np.uint8)).convert(mode)
    body = encode(image, transparency=7) if mode == "P" else encode(image.convert("LA" if mode == "PA" else mode))
    whole = decode(body, 50, 40)
    monkeypatch.setattr(images, "_STRIP_PIXELS", 40 * 7)
    np.testing.assert_array_equal(decode(body, 50, 40), whole)
    with Image.open(io.BytesIO(body)) as opened:
        opaque = opened.convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    np.testing.assert_array_equal(whole, np.asarray(white.convert("RGB")))
