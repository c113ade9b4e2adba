"""From the bytes of an upload to the pixels a network takes, by one rule.

1. The leading bytes say what it is: PNG, JPEG or WebP. No content type, file name, path or URL is ever looked at.
2. Width and height are read from the header, and refused when too large, before anything is decoded; so is an image in
   more pieces, or in more passes over its pixels, than any that is meant well.
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
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from serving import image_headers
from serving.errors import RequestError
from serving.image_headers import Header, Unreadable

ALLOWED = "send a PNG, JPEG or WebP"
PIXELS_PER_MS, BYTES_PER_MS, PIECES_PER_MS = 20_000, 20_000, 100  # of decoding, on the slow side
_STRIP_PIXELS = 1 << 18  # that are composited at a time
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

    kind: str  # png, jpeg or webp
    header: Header

    @property
    def pixels(self) -> int:
        """How many there are to decode."""
        return self.header.width * self.header.height

    @property
    def ms(self) -> float:
        """Milliseconds that decoding is expected to take at most."""
        header = self.header
        return self.pixels / PIXELS_PER_MS + len(header.body) / BYTES_PER_MS + header.pieces / PIECES_PER_MS

    def decode(self, height: int, width: int) -> NDArray[np.uint8]:
        """uint8 `[height, width, 3]` RGB, by the rule above.

        Raises:
            RequestError: 400 `image_undecodable`; it is truncated or corrupt.
        """
        try:
            image: Image.Image = _open(self.kind, self.header.body)
            if image.size != (self.header.width, self.header.height):
                raise ValueError("the decoder sees another size")  # a second header, maybe, that nobody has checked
            image.load()
            exif = self.header.exif or _exif(image)
            image = _upright(_rgb(image), exif)
            return _fit(image, height, width)
        except MemoryError:
            raise  # the machine's fault, not the file's
        except Exception as error:  # decoders raise whatever a corrupt file makes them stumble over
            raise _undecodable(f"the {_NAMES[self.kind]} is truncated or corrupt") from error


def inspect(body: bytes, max_pixels: int) -> Upload:
    """Reads the header of an upload, stepping over some hundreds of its pieces at most.

    Raises:
        RequestError: 400 `image_undecodable` (empty, no image, or in too many pieces), 413 `image_too_large`, or 415
            `image_unsupported` (another format).
    """
    kind = _kind(body)
    try:
        header = _HEADERS[kind](body)
    except Unreadable as error:
        raise _undecodable(f"the {_NAMES[kind]} {error}") from None
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(f"the {_NAMES[kind]}'s header is truncated or corrupt") from error
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise _undecodable(f"the {_NAMES[kind]} is {width} x {height} pixels")
    if width * height > max_pixels:
        raise RequestError(
            413, "image_too_large", f"the image has {width} x {height} pixels; at most {max_pixels} in all are decoded"
        )
    return Upload(kind, header)


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


_HEADERS = {"png": image_headers.png, "jpeg": image_headers.jpeg, "webp": image_headers.webp}
_NAMES = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP"}


def _open(kind: str, body: bytes) -> ImageFile:
    stream = io.BytesIO(body)  # the class itself: Image.open() tries decoders in turn and warns by limits of its own
    if kind == "png":
        return PngImageFile(stream)
    return JpegImageFile(stream) if kind == "jpeg" else WebPImageFile(stream)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _grey16(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode == "RGB" and max(image.info["transparency"]) > 255:  # of a 16-bit image
            image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
        return _over_white(image)
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """Strip by strip: compositing takes three further images of the size that it is given."""
    opaque = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        opaque.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return opaque


def _grey16(image: Image.Image) -> Image.Image:
    values: NDArray[Any] = np.asarray(image)
    high = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        high[values == transparent] = 255
    return Image.fromarray(high).convert("RGB")


def _exif(image: Image.Image) -> bytes:
    """As the decoder gives it; some programs write it into the text of a PNG, in hexadecimal below three lines."""
    if "exif" in image.info:
        return bytes(image.info["exif"])
    try:
        return bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    except (KeyError, ValueError, AttributeError):
        return b""


def _upright(image: Image.Image, exif: bytes) -> Image.Image:
    method = _TURNS.get(image_headers.orientation(exif))
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
        if image.size != (cut_width, cut_height):
            image = image.crop((left, top, left + cut_width, top + cut_height))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels: NDArray[np.uint8] = np.asarray(image)
    return pixels
