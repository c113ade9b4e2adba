"""The test splits a run needs, as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring.corrupt import CORRUPTIONS, SEVERITIES, corrupt, subset
from benchmarks.results import Settings
from catalog import Card, KilnError

LEAST_ROBUST = 40  # images that are corrupted, however slow the network is


def robust_images(settings: Settings, macs: int) -> int:
    """How many test images are corrupted for a network of so many multiply-accumulates: fewer where it is a slow one.

    By default 300 for MobileNetV2 of 44 million, 100 for ResNet50 of 324 million.
    """
    fitting = int(settings.robust_macs / (max(1, macs) * len(CORRUPTIONS) * len(SEVERITIES)))
    return min(settings.robust_images, max(LEAST_ROBUST, fitting // 50 * 50))


class Splits:
    """Test splits, read once each and laid down as files that every process maps, so that none reads the whole set.

    Some of them are laid down corrupted as well, as many as `settings` ask for.
    """

    def __init__(self, scratch: Path, load: Callable[..., Any], settings: Settings) -> None:
        self._scratch, self._load, self._settings = scratch, load, settings
        self._folders: dict[tuple[str, int], Path] = {}
        self._models: dict[str, Path] = {}

    def folder(self, card: Card) -> Path:
        """Where the test split of a model's data set lies.

        Raises:
            KilnError: The data cannot be read, or is not what the model was trained on.
        """
        info, robust = card.dataset, robust_images(self._settings, card.macs)
        if (info.sha256, robust) not in self._folders:
            data = self._load(info.name, root=info.root or None)
            if data.sha256 != info.sha256:
                raise KilnError(
                    f"the data set {info.name} is not the one {card.model} was trained on (sha256 {data.sha256[:12]}, "
                    f"its card says {info.sha256[:12]}); train again: python -m training {card.model} --force"
                )
            folder = self._scratch / f"data{len(self._folders)}"
            folder.mkdir()
            np.save(folder / "images.npy", data.x_test)
            np.save(folder / "labels.npy", data.y_test)
            self._corrupted(folder, data.x_test, data.y_test, robust)
            self._folders[info.sha256, robust] = folder
        self._models[card.model] = self._folders[info.sha256, robust]
        return self._models[card.model]

    def _corrupted(self, folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], robust: int) -> None:
        chosen = subset(labels, robust)
        np.save(folder / "subset.npy", chosen)
        if len(chosen):
            spoilt = [[corrupt(images[chosen], name, severity) for severity in SEVERITIES] for name in CORRUPTIONS]
            np.save(folder / "corrupted.npy", np.asarray(spoilt))

    def subset(self, model: str) -> NDArray[np.int64]:
        """Indices of the images that were corrupted."""
        chosen: NDArray[np.int64] = np.load(self._models[model] / "subset.npy")
        return chosen

    def labels(self, model: str) -> NDArray[np.int64]:
        """The test labels of a model that was measured."""
        labels: NDArray[np.int64] = np.load(self._models[model] / "labels.npy")
        return labels
