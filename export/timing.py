"""How fast a variant answers, measured in a worker process of its own, so that no runtime disturbs another."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

WARM_SECONDS = 0.3
SECONDS = 1.0
LEAST = 20  # calls, however slow


@dataclass(frozen=True)
class Measure:
    """Times the variant in `folder` at one batch size, on noise of the model's image size."""

    folder: str
    file: str
    format: str
    height: int
    width: int
    batch: int
    threads: int

    @property
    def keras_path(self) -> str:
        """The file, where messages look for paths to leave out."""
        return str(Path(self.folder, self.file))


def measure(request: Measure) -> dict[str, float]:
    """Median milliseconds of a call, by batch size as text.

    Raises:
        KilnError: The variant cannot be loaded.
    """
    import numpy as np

    from catalog import plugin

    predict = plugin("export.formats", request.format).load(Path(request.folder, request.file), request.threads)
    shape = (request.batch, request.height, request.width, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    begun = time.perf_counter()
    while time.perf_counter() - begun < WARM_SECONDS:
        predict(images)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < LEAST or time.perf_counter() - begun < SECONDS:
        start = time.perf_counter()
        predict(images)
        times.append(1000 * (time.perf_counter() - start))
    return {str(request.batch): round(statistics.median(times), 5)}
