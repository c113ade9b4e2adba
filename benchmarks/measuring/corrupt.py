"""Corrupted images, for seeing whether a smaller variant breaks sooner: six corruptions at three severities, seeded.

After Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(ICLR 2019), with the strengths they use for 32 x 32 images, severities 1, 3 and 5 of their five.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
SEVERITIES = (1, 3, 5)
STRENGTHS: dict[str, tuple[float, float, float]] = {
    "noise": (0.04, 0.08, 0.10),  # standard deviation of Gaussian noise, of a range of 1
    "blur": (0.4, 0.7, 1.0),  # standard deviation of a Gaussian, pixels of a 32 pixel side
    "jpeg": (80, 58, 40),  # quality
    "brightness": (0.05, 0.15, 0.30),  # added, of a range of 1
    "contrast": (0.75, 0.40, 0.15),  # kept share of the distance to the channel's mean
    "pixelation": (0.95, 0.85, 0.65),  # of the side that is kept
}
CORRUPTIONS = tuple(STRENGTHS)


def digest() -> str:
    """Twelve hexadecimal digits that change with the code of the corruptions and with their strengths."""
    return hashlib.sha256(f"{inspect.getsource(sys.modules[__name__])}{STRENGTHS}".encode()).hexdigest()[:12]


def subset(labels: NDArray[np.int64], images: int, seed: int = 0) -> NDArray[np.int64]:
    """Indices of `images` test images, drawn by the seed, ascending; all of them where there are no more."""
    chosen = np.random.default_rng(seed).permutation(len(labels))[:images]
    return np.sort(chosen).astype(np.int64)


def corrupt(images: Images, corruption: str, severity: int, seed: int = 0) -> Images:
    """The images, uint8 `[N, H, W, 3]`, after one corruption; the same seed gives the same pixels.

    Raises:
        KeyError: No such corruption.
        ValueError: `severity` is none of `SEVERITIES`.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity} is none of {SEVERITIES}")
    strength = STRENGTHS[corruption][SEVERITIES.index(severity)]
    rng = np.random.default_rng((seed, CORRUPTIONS.index(corruption), severity))
    return _WAYS[corruption](images, strength, rng)


def _bytes(pixels: NDArray[np.float32]) -> Images:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _noise(images: Images, strength: float, rng: np.random.Generator) -> Images:
    return _bytes(images + 255 * strength * rng.standard_normal(images.shape, np.float32))


def _blur(images: Images, strength: float, rng: np.random.Generator) -> Images:
    sigma = strength * images.shape[1] / 32
    radius = max(1, round(4 * sigma))
    at = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (at / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    pixels = images.astype(np.float32)
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = (radius, radius)
        padded, length = np.pad(pixels, padding, "reflect"), pixels.shape[axis]
        parts = [w * padded.take(np.arange(i, i + length), axis) for i, w in enumerate(weights)]
        pixels = np.sum(parts, axis=0, dtype=np.float32)
    return _bytes(pixels)


def _jpeg(images: Images, strength: float, rng: np.random.Generator) -> Images:
    from PIL import Image

    found = np.empty_like(images)
    for i, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(strength))
        found[i] = np.asarray(Image.open(file))
    return found


def _brightness(images: Images, strength: float, rng: np.random.Generator) -> Images:
    """Raises the value of HSV, which keeps the hue: every channel by the same factor."""
    pixels = images.astype(np.float32) / 255
    value = pixels.max(axis=3, keepdims=True)
    raised = np.minimum(value + np.float32(strength), 1)
    return _bytes(255 * np.where(value > 0, pixels * raised / np.maximum(value, 1e-6), raised))


def _contrast(images: Images, strength: float, rng: np.random.Generator) -> Images:
    means = images.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    return _bytes((images - means) * np.float32(strength) + means)


def _pixelation(images: Images, strength: float, rng: np.random.Generator) -> Images:
    from PIL import Image

    height, width = images.shape[1:3]
    small = (max(1, int(width * strength)), max(1, int(height * strength)))
    box, nearest = Image.Resampling.BOX, Image.Resampling.NEAREST
    resized = [Image.fromarray(x).resize(small, box).resize((width, height), nearest) for x in images]
    return np.stack([np.asarray(image) for image in resized])


_WAYS: dict[str, Callable[[Images, float, np.random.Generator], Images]] = {
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelation": _pixelation,
}
