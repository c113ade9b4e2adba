"""How a trained network did, as pictures: curves over the epochs and the confusion matrix on the test split."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import write_atomic
from training.data import Dataset

INK, PALE = "#22303c", "#c9d3dc"
TRAIN, VALIDATION = "#0072b2", "#d55e00"  # Okabe and Ito's colour-blind-safe blue and vermilion


def write_plots(
    folder: Path, history: list[dict[str, float]], data: Dataset, probabilities: NDArray[np.float32], title: str
) -> None:
    """Writes `curves.png` and `confusion.png`.

    Args:
        folder: Where to; made if need be.
        history: The rows of history.csv.
        data: The data set; its test labels are the truth.
        probabilities: float32 `[N, classes]` on the test split.
        title: The model's name.
    """
    confusion = np.zeros((len(data.classes),) * 2, np.int64)
    np.add.at(confusion, (data.y_test, probabilities.argmax(axis=1)), 1)
    write_atomic(folder / "curves.png", _png(_curves(history, title)))
    write_atomic(folder / "confusion.png", _png(_confusion(confusion, data.classes, title)))


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # the object interface: no pyplot, no global state, no display

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _curves(history: list[dict[str, float]], title: str) -> Any:
    figure = _figure(9, 3.6)
    epochs = [row["epoch"] for row in history]
    for axes, key, label, scale in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("cross-entropy", "top-1 accuracy in %"), (1, 100), strict=True
    ):
        for name, colour in ((key, TRAIN), (f"val_{key}", VALIDATION)):
            if name not in history[0]:
                continue
            values = [scale * row[name] for row in history]
            axes.plot(epochs, values, color=colour, linewidth=1.8, marker="o" if len(epochs) < 3 else "")
            word = "validation" if name.startswith("val_") else "training"
            axes.annotate(
                f"{word} {values[-1]:.{2 if scale == 1 else 1}f}",
                (epochs[-1], values[-1]),
                xytext=(6, 0),
                textcoords="offset points",
                color=colour,
                va="center",
                fontsize=9,
            )
        axes.set(xlabel="epoch", ylabel=label)
        axes.margins(x=0.02)
        axes.set_xlim(right=epochs[-1] + 0.32 * max(epochs[-1] - epochs[0], 1))
        axes.grid(color=PALE, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, color=INK, fontsize=11)
    return figure


def _confusion(counts: NDArray[np.int64], classes: list[str], title: str) -> Any:
    side = 2.4 + 0.5 * len(classes)
    figure = _figure(side, side)
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if share[row, column] > 0.55 else INK if count else PALE
            axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=8)
    top1 = 100 * np.trace(counts) / counts.sum()
    axes.set(xlabel="predicted", ylabel="true", title=f"{title}: {top1:.2f}% of {counts.sum():,} test images")
    return figure
