"""From the bytes of an upload to the pixels a network takes, by one rule.

1. The leading bytes say what it is: PNG, JPEG or WebP. No content type, file name, path or URL is ever looked at.
2. Width and height are read from the header, and refused when too large, before anything is decoded.
3. Of an animation the first frame counts (of an animated PNG the image that plain decoders show).
4. 16-bit channels keep their high byte. Palette, bilevel, grey, CMYK and YCCK become RGB; colour profiles are ignored.
5. Transparency is composited over white.
6. An EXIF orientation is applied; EXIF that cannot be read is ignored.
7. An image of exactly the network's size passes bit for bit. Any other is cut around its centre to the largest piece of
   the network's aspect ratio (whole pixels; the odd one is lost at the right and below) and resized by Pillow's bicubic
   filter, which averages over the area when it shrinks (antialiasing).
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from serving.errors import RequestError

ALLOWED = "send a PNG, JPEG or WebP"
_ORIENTATION = 0x0112
_LEADING_BYTES = 12  # that tell any format; fewer are no image of any
_OTHERS = {  # formats worth an answer of their own: leading bytes, at which offset, name
    (b"GIF8", 0): "a GIF",
    (b"BM", 0): "a BMP",
    (b"II*\0", 0): "a TIFF",
    (b"MM\0*", 0): "a TIFF",
    (b"II+\0", 0): "a TIFF",
    (b"MM\0+", 0): "a TIFF",
    (b"%PDF", 0): "a PDF",
    (b"%!PS", 0): "PostScript",
    (b"\xc5\xd0\xd3\xc6", 0): "PostScript",
    (b"8BPS", 0): "a Photoshop file",
    (b"\0\0\1\0", 0): "an icon",
    (b"ftyp", 4): "an ISO media file (HEIC, AVIF or MP4)",
    (b"\0\0\0\x0cjP  ", 0): "a JPEG 2000",
    (b"\xff\x4f\xff\x51", 0): "a JPEG 2000",
    (b"PK\3\4", 0): "a ZIP archive",
    (b"\x1f\x8b", 0): "gzip data",
    (b"RIFF", 0): "a RIFF file other than WebP",
    (b"\x93NUMPY", 0): "a NumPy array",
}


@dataclass(frozen=True)
class Upload:
    """An image whose header has been read and found to be within the limits; nothing is decoded yet."""

    body: bytes
    kind: str  # png, jpeg or webp
    width: int
    height: int

    @property
    def pixels(self) -> int:
        """How many there are to decode."""
        return self.width * self.height

    def decode(self, height: int, width: int) -> NDArray[np.uint8]:
        """uint8 `[height, width, 3]` RGB, by the rule above.

        Raises:
            RequestError: 400 `image_undecodable`; it is truncated or corrupt.
        """
        try:
            image = _open(self.kind, self.body)
            image.load()
            return _fit(_upright(_rgb(image), image), height, width)
        except Exception as error:  # decoders raise whatever a corrupt file makes them stumble over
            raise _undecodable(f"the {_NAMES[self.kind]} is truncated or corrupt") from error


def inspect(body: bytes, max_pixels: int) -> Upload:
    """Reads the header of an upload: a few hundred bytes of work whatever its size.

    Raises:
        RequestError: 400 `image_undecodable` (empty or no image), 413 `image_too_large`, or 415 `image_unsupported`
            (another format).
    """
    kind = _kind(body)
    try:
        width, height = _SIZES[kind](body)
    except Exception as error:
        raise _undecodable(f"the {_NAMES[kind]}'s header is truncated or corrupt") from error
    if width < 1 or height < 1:
        raise _undecodable(f"the {_NAMES[kind]} is {width} x {height} pixels")
    if width * height > max_pixels:
        raise RequestError(
            413, "image_too_large", f"the image has {width} x {height} pixels; at most {max_pixels} in all are decoded"
        )
    return Upload(body, kind, width, height)


def _kind(body: bytes) -> str:
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if body.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return "webp"
    if not body:
        raise _undecodable("the image is empty")
    for (leading, offset), name in _OTHERS.items():
        if body.startswith(leading, offset) and len(body) >= _LEADING_BYTES:
            raise RequestError(415, "image_unsupported", f"the image is {name}; {ALLOWED}")
    start = body[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<svg", b"<?xml", b"<!doctype", b"<html")):
        raise RequestError(415, "image_unsupported", f"the image is SVG, XML or HTML; {ALLOWED}")
    raise _undecodable("these bytes are no image")


def _undecodable(what: str) -> RequestError:
    return RequestError(400, "image_undecodable", f"{what}; {ALLOWED}")


def _png_size(body: bytes) -> tuple[int, int]:
    if body[12:16] != b"IHDR":
        raise ValueError("no IHDR")
    width, height = struct.unpack_from(">II", body, 16)
    return width, height


def _jpeg_size(body: bytes) -> tuple[int, int]:
    """From the first frame header; Pillow, which forgives more, is asked where this walk over the segments stumbles."""
    at = 2
    while body[at : at + 1] == b"\xff" and at + 9 <= len(body):
        marker, length, height, width = struct.unpack_from(">xBHxHH", body, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return width, height
        at += 2 + length
    width, height = JpegImageFile(io.BytesIO(body)).size  # reads markers only
    return width, height


def _webp_size(body: bytes) -> tuple[int, int]:
    """The canvas: Pillow's decoder allocates it on opening, so that its word for it comes too late."""
    chunk = body[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(body[24:27], "little") + 1, int.from_bytes(body[27:30], "little") + 1
    if chunk == b"VP8L" and body[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", body, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and body[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no frame header")


_SIZES = {"png": _png_size, "jpeg": _jpeg_size, "webp": _webp_size}
_NAMES = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP"}


def _open(kind: str, body: bytes) -> ImageFile:
    stream = io.BytesIO(body)  # the class itself: Image.open() tries decoders in turn and warns by limits of its own
    if kind == "png":
        return PngImageFile(stream)
    return JpegImageFile(stream) if kind == "jpeg" else WebPImageFile(stream)


def _rgb(image: ImageFile) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _grey16(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode == "RGB" and max(image.info["transparency"]) > 255:  # of a 16-bit image
            image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


def _grey16(image: ImageFile) -> Image.Image:
    values: NDArray[Any] = np.asarray(image)
    high = (values.astype(np.uint32) >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        high[values == transparent] = 255
    return Image.fromarray(high).convert("RGB")


def _upright(image: Image.Image, source: ImageFile) -> Image.Image:
    if "exif" not in source.info and "Raw profile type exif" not in source.info:
        return image
    try:
        turned = source.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF is a TIFF of its own, with as many ways to be corrupt; the pixels are not concerned
        return image
    method = _TURNS.get(turned)
    return image if method is None else image.transpose(method)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _fit(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    if image.size != (width, height):
        scale = min(image.width / width, image.height / height)
        cut_width, cut_height = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (image.width - cut_width) // 2, (image.height - cut_height) // 2
        image = image.crop((left, top, left + cut_width, top + cut_height))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels: NDArray[np.uint8] = np.asarray(image)
    return pixels
