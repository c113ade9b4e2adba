"""The pictures beside a trained model, each a function from figures to the bytes of a PNG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

INK, SOFT, PALE = "#22303c", "#5b6b78", "#d5dde3"
TRAIN, VALIDATION = "#0072b2", "#d55e00"  # Okabe and Ito's colour-blind-safe blue and vermilion


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # the object interface: no pyplot, no global state, no display

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _literal(text: str) -> str:
    """The text as it is: matplotlib takes what stands between two dollar signs for a formula."""
    return text.replace("$", r"\$")


def _bare(axes: Any) -> None:
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def curves(history: list[dict[str, float]]) -> bytes:
    """Loss and accuracy over the epochs, training and, where there is one, validation."""
    figure = _figure(9, 3.4)
    for axes, key, label, scale in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("loss", "top-1 accuracy in %"), (1, 100), strict=True
    ):
        for name, colour, word in ((key, TRAIN, "training"), (f"val_{key}", VALIDATION, "validation")):
            if name not in history[0]:
                continue
            values = [scale * row[name] for row in history]
            label_text = f"{word}, last {values[-1]:.{2 if scale == 1 else 1}f}"
            epochs = [row["epoch"] for row in history]
            axes.plot(
                epochs, values, color=colour, linewidth=1.8, marker="o" if len(epochs) < 3 else "", label=label_text
            )
        axes.set(xlabel="epoch", ylabel=label)
        axes.legend(frameon=False, labelcolor="linecolor", fontsize=9)
        axes.margins(x=0.02)
        _bare(axes)
    return _png(figure)


def confusion(counts: NDArray[np.int64], classes: list[str]) -> bytes:
    """The confusion matrix as a heat map of each true class's shares, with the counts where they can be read."""
    side = 2.2 + 0.5 * len(classes)
    figure = _figure(side, side)
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [_literal(name) for name in classes]
    axes.set_xticks(range(len(classes)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), names)
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if share[row, column] > 0.55 else INK if count else PALE
            axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    return _png(figure)


def reliability(
    counts: NDArray[np.int64], confidence: NDArray[np.float64], accuracy: NDArray[np.float64], error: float
) -> bytes:
    """Accuracy of each bin of confidence beside the diagonal of perfect calibration, and how full the bins are."""
    figure = _figure(5, 5.2)
    upper, lower = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    filled = counts > 0
    edges = np.linspace(0, 1, len(counts) + 1)
    upper.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle="--", label="perfectly calibrated")
    upper.bar(
        edges[:-1][filled], accuracy[filled], 1 / len(counts), align="edge", color=TRAIN, alpha=0.35, edgecolor=TRAIN
    )
    upper.plot(confidence[filled], accuracy[filled], "o", color=TRAIN, markersize=4, label="accuracy of the bin")
    upper.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1), title=f"expected calibration error {100 * error:.1f} points")
    upper.legend(frameon=False, loc="upper left")
    lower.bar(edges[:-1], counts, 1 / len(counts), align="edge", color=SOFT)
    lower.set(xlabel="confidence of the answer", ylabel="images")
    _bare(upper)
    _bare(lower)
    return _png(figure)


def grid(images: list[tuple[NDArray[np.uint8], str]], columns: int) -> bytes:
    """Images `[H, W, 3]` in rows with a caption over each; a sentence where there are none.

    Drawn as one picture: a panel for each image costs matplotlib seconds.
    """
    rows = max(1, -(-len(images) // columns))
    lines = 1 + max((text.count("\n") for _, text in images), default=0)
    cell, head, gap = 112, 18 * lines, 14  # pixels
    canvas = np.full((rows * (cell + head + gap), columns * (cell + gap), 3), 255, np.uint8)
    figure = _figure(canvas.shape[1] / 100, canvas.shape[0] / 100)
    axes = figure.subplots()
    axes.axis("off")
    for number, (image, text) in enumerate(images):
        top, left = (number // columns) * (cell + head + gap) + head, (number % columns) * (cell + gap)
        nearest = [np.arange(cell) * side // cell for side in image.shape[:2]]
        canvas[top : top + cell, left : left + cell] = image[np.ix_(*nearest)]
        axes.text(left, top - 4, _literal(text), fontsize=7.5, color=INK, va="bottom", linespacing=1.15)
    if not images:
        axes.text(4, cell / 2, "none", color=SOFT)
    axes.imshow(canvas, interpolation="nearest")
    return _png(figure)


def sweep(trials: list[tuple[dict[str, Any], list[float]]], title: str) -> bytes:
    """A sweep: every trial's validation accuracy over its epochs, and what each value of each factor came to.

    `trials` has what was varied and the accuracies in 0..1, the best trial first; factors with many values are left out
    of the right-hand panel.
    """
    factors = {name: sorted({varied[name] for varied, _ in trials}) for name in trials[0][0]}
    shown = [(name, value) for name, values in factors.items() if 2 <= len(values) <= 4 for value in values]
    figure = _figure(10, max(3.6, 1.2 + 0.28 * len(shown)))
    left, right = figure.subplots(1, 2)
    for rank, (_, accuracies) in reversed(list(enumerate(trials))):
        epochs = range(1, len(accuracies) + 1)
        colour, width = (VALIDATION, 2.0) if rank == 0 else (SOFT if rank < 4 else PALE, 1.0)
        marker = "o" if len(accuracies) == 1 else ""
        left.plot(epochs, [100 * a for a in accuracies], color=colour, linewidth=width, marker=marker, markersize=3)
    left.set(xlabel="epoch", ylabel="validation accuracy in %")
    left.set_title(f"best {100 * trials[0][1][-1]:.2f}% of {len(trials)} trials", fontsize=10, color=VALIDATION)
    for row, (name, value) in enumerate(reversed(shown)):
        reached = [100 * accuracies[-1] for varied, accuracies in trials if varied[name] == value]
        right.plot(reached, [row] * len(reached), "o", color=TRAIN, alpha=0.45, markersize=4, markeredgewidth=0)
        right.plot(np.mean(reached), row, "|", color=INK, markersize=12, markeredgewidth=2)
    right.set_yticks(range(len(shown)), [f"{name} {value}" for name, value in reversed(shown)])
    right.set(xlabel="validation accuracy in %, each trial; the bar is the mean")
    for axes in (left, right):
        _bare(axes)
    figure.suptitle(title, fontsize=11, color=INK)
    return _png(figure)
