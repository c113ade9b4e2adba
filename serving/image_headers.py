"""What the headers of a PNG, a JPEG and a WebP say, read in bounded time.

Pillow steps over chunks and segments in Python, one at a time, and reads metadata that nobody asked for: a megabyte of
empty segments takes it seconds, and an EXIF of a few kilobytes gigabytes. So the pieces are counted here first, and of
a JPEG only those are handed on that its pixels need.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAX_PIECES, PIECE_BYTES = 512, 1024  # so many chunks or segments are read, and one more for every so many bytes
MAX_SCANS = 64  # of a JPEG; progressive ones have about ten, each of which takes a pass over all pixels
_CHANCE_BYTES = 65_536  # in which two given bytes come about by chance, as in the film that follows a telephone's photo
_ORIENTATION, _SHORT, _LONG = 0x0112, 3, 4
_MAX_TAGS = 512
_EXIF = b"Exif\0\0"
_TABLE_BYTES = 65

_TABLES, _SCAN, _APP0, _APP1 = 0xDB, 0xDA, 0xE0, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NEEDED = _FRAMES | {0xC4, 0xCC, _TABLES, 0xDD, _APP0, 0xEE}  # tables, restarts, and the two that tell the colours
_SEGMENTS = _NEEDED | {0xDC, 0xFE} | frozenset(range(0xE0, 0xF0))


class Unreadable(Exception):
    """What is the matter with an image, as the end of a sentence about it."""


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded."""

    body: bytes  # for the decoder
    width: int
    height: int
    pieces: int = 0  # that the decoder steps over in Python
    exif: bytes = b""  # where it is not the decoder that tells


def _most(body: bytes) -> int:
    return MAX_PIECES + len(body) // PIECE_BYTES


def png(body: bytes) -> Header:
    """From the first chunk; the others are counted.

    Raises:
        Unreadable: There are too many.
        ValueError, struct.error: The first chunk is not what it must be.
    """
    if body[12:16] != b"IHDR":
        raise ValueError("no IHDR")
    width, height = struct.unpack_from(">II", body, 16)
    pieces, at, most = 0, 8, _most(body)
    while at + 8 <= len(body):
        pieces += 1
        if pieces > most:
            raise Unreadable(f"has more than {most} chunks")
        length, kind = struct.unpack_from(">I4s", body, at)
        if kind == b"IEND":
            break
        at += 12 + length
    return Header(body, width, height, pieces)


def jpeg(body: bytes) -> Header:
    """From the one frame header, which lies among the segments before the first scan.

    Raises:
        Unreadable: There are too many segments, or too many scans.
        ValueError, IndexError, struct.error: It is no JPEG that any decoder takes.
    """
    segments = list(_segments(body))
    frames = [at for marker, at, _ in segments if marker in _FRAMES]
    if len(frames) != 1:
        raise ValueError("no frame, or two")
    height, width = struct.unpack_from(">HH", body, frames[0] + 5)
    end = segments[-1][2]
    if body.count(b"\xff\xda", end) > (scans := MAX_SCANS + len(body) // _CHANCE_BYTES):
        raise Unreadable(f"has more than {scans} scans")
    exifs = [body[at + 4 : end] for marker, at, end in segments if marker == _APP1 and body.startswith(_EXIF, at + 4)]
    kept = [body[:2], *(body[at:end] for marker, at, end in segments if marker in _NEEDED)]
    whole = sum(map(len, kept)) == end
    pieces = sum(_steps(*segment) for segment in segments)
    return Header(body if whole else b"".join((*kept, body[end:])), width, height, pieces, exifs[0] if exifs else b"")


def _segments(body: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment before the first scan."""
    taken, at, most = 0, 2, _most(body)
    while at + 4 <= len(body) and taken <= most:
        marker = body[at + 1]
        if body[at] != 0xFF or marker in (0x00, 0xFF):  # padding, and what decoders forgive
            taken, at = taken + 1, at + 1
            continue
        if marker == _SCAN:
            return
        end = at + 2 + int.from_bytes(body[at + 2 : at + 4], "big")
        if marker not in _SEGMENTS or end < at + 4:
            raise ValueError("no segment")
        yield marker, at, end
        taken, at = taken + _steps(marker, at, end), end
    if taken > most:
        raise Unreadable(f"has more than {most} segments before its pixels")


def _steps(marker: int, at: int, end: int) -> int:
    """That a decoder takes over a segment: it reads every table."""
    return max(1, (end - at) // _TABLE_BYTES) if marker == _TABLES else 1


def webp(body: bytes) -> Header:
    """The canvas: Pillow's decoder allocates it on opening, so that its word for it comes too late.

    Raises:
        ValueError, IndexError, struct.error: The first chunk is not what it must be.
    """
    chunk = body[12:16]
    if chunk == b"VP8X":
        return Header(body, int.from_bytes(body[24:27], "little") + 1, int.from_bytes(body[27:30], "little") + 1)
    if chunk == b"VP8L" and body[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", body, 21)
        return Header(body, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if chunk == b"VP8 " and body[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 26)
        return Header(body, width & 0x3FFF, height & 0x3FFF)
    raise ValueError("no frame header")


def orientation(exif: bytes) -> int:
    """1 to 8, as EXIF has it; 1, which is upright, where it does not say or cannot be read."""
    tiff = exif.removeprefix(_EXIF)
    order = ">" if tiff.startswith(b"MM") else "<"
    try:
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (tags,) = struct.unpack_from(order + "H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * min(tags, _MAX_TAGS), 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == _ORIENTATION and kind in (_SHORT, _LONG):
                (turned,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), tiff, entry + 8)
                return int(turned)
    except struct.error:
        pass
    return 1
