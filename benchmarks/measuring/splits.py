"""The test splits a run needs, as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring.corrupt import CORRUPTIONS, SEVERITIES, corrupt, subset
from catalog import Card, KilnError


class Splits:
    """Test splits, read once each and laid down as files that every process maps, so that none reads the whole set.

    With `robust_images`, so many of them are laid down corrupted as well.
    """

    def __init__(self, scratch: Path, load: Callable[..., Any], robust_images: int = 0) -> None:
        self._scratch, self._load, self._robust_images = scratch, load, robust_images
        self._folders: dict[str, Path] = {}
        self._models: dict[str, Path] = {}

    def folder(self, card: Card) -> Path:
        """Where the test split of a model's data set lies.

        Raises:
            KilnError: The data cannot be read, or is not what the model was trained on.
        """
        info = card.dataset
        if info.sha256 not in self._folders:
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
            self._corrupted(folder, data.x_test, data.y_test)
            self._folders[info.sha256] = folder
        self._models[card.model] = self._folders[info.sha256]
        return self._models[card.model]

    def _corrupted(self, folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        chosen = subset(labels, self._robust_images)
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
