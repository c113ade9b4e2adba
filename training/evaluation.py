"""How a trained network did on the test split: figures from its probabilities, and the folder of plots and page.

Figures are pure functions of probabilities `[N, classes]` and labels `[N]`; `training/plots.py` draws them.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from catalog import Accuracy, write_atomic
from training import plots
from training.data import Dataset

Probabilities = NDArray[np.float32]
Labels = NDArray[np.int64]
BINS = 15  # of the reliability diagram, as in Guo et al. (2017)


@dataclass(frozen=True)
class ClassScore:
    """One class: precision, recall and F1 in 0..1; 0 where nothing was predicted or nothing is there."""

    name: str
    images: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy over equal-width bins; `error` is the expected calibration error in 0..1."""

    counts: NDArray[np.int64]  # [BINS]
    confidence: NDArray[np.float64]  # [BINS], mean of the bin; NaN where it is empty
    accuracy: NDArray[np.float64]  # [BINS]
    error: float


def confusion(probabilities: Probabilities, labels: Labels) -> NDArray[np.int64]:
    """Counts `[true class, predicted class]`."""
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_scores(counts: NDArray[np.int64], names: list[str]) -> list[ClassScore]:
    """Precision, recall and F1 of every class of a confusion matrix."""
    hits, predicted, there = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(there, 1)
    f1 = 2 * hits / np.maximum(predicted + there, 1)
    rows = zip(names, there, precision, recall, f1, strict=True)
    return [ClassScore(name, int(n), float(p), float(r), float(f)) for name, n, p, r, f in rows]


def reliability(probabilities: Probabilities, labels: Labels) -> Reliability:
    """Expected calibration error over `BINS` equal-width bins of the top probability (Naeini et al., 2015)."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bins, confidence, BINS) / counts
        accuracy = np.bincount(bins, right, BINS) / counts
    gaps = np.abs(np.nan_to_num(mean_confidence) - np.nan_to_num(accuracy))
    return Reliability(counts, mean_confidence, accuracy, float((counts / max(len(labels), 1) * gaps).sum()))


def worst_mistakes(probabilities: Probabilities, labels: Labels, most: int = 24) -> NDArray[np.int64]:
    """Indices of the wrong answers given with the greatest confidence, the most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return wrong[order[:most]]


def write_evaluation(
    folder: Path, history: list[dict[str, float]], data: Dataset, probabilities: Probabilities, title: str
) -> None:
    """Writes `plots/*.png` and `index.html`, one page with all of them and the table of classes.

    Args:
        folder: The model's folder.
        history: The rows of history.csv; none where nobody knows them, and no curves then.
        data: The data set; its test labels are the truth.
        probabilities: float32 `[N, classes]` on the test split.
        title: The model's name.
    """
    labels = data.y_test
    counts = confusion(probabilities, labels)
    calibration = reliability(probabilities, labels)
    wrong = worst_mistakes(probabilities, labels)
    captions = {
        int(i): f"{data.classes[int(labels[i])]}\nsaid {data.classes[int(probabilities[i].argmax())]} "
        f"{100 * probabilities[i].max():.0f}%"
        for i in wrong
    }
    chosen = np.concatenate([np.flatnonzero(data.y_train == k)[:8] for k in range(min(len(data.classes), 12))])
    drawn = {
        **({"curves": plots.curves(history)} if history else {}),
        "confusion": plots.confusion(counts, data.classes),
        "reliability": plots.reliability(
            calibration.counts, calibration.confidence, calibration.accuracy, calibration.error
        ),
        "mistakes": plots.grid([(data.x_test[i], text) for i, text in captions.items()], columns=8),
        "samples": plots.grid([(data.x_train[i], data.classes[int(data.y_train[i])]) for i in chosen], columns=8),
    }
    for name, png in drawn.items():
        write_atomic(folder / "plots" / f"{name}.png", png)
    accuracy = Accuracy.of(int(counts.trace()), len(labels))
    scores = class_scores(counts, data.classes)
    write_atomic(folder / "index.html", _page(title, data, accuracy, calibration, scores, [*drawn]))


_FIGURES = {
    "curves": "Loss and accuracy over the epochs",
    "confusion": "Which class is taken for which, on the test split",
    "reliability": "Is it as sure as it is right? On the diagonal it is",
    "mistakes": "The wrong answers it was surest of, with the true class on top",
    "samples": "Training images, eight of each class",
}

_STYLE = """
:root{color-scheme:light dark;--ink:#22303c;--soft:#5b6b78;--line:#d5dde3;--page:#fff}
@media (prefers-color-scheme:dark){:root{--ink:#e3e9ee;--soft:#9fb0bd;--line:#34424d;--page:#141a1f}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page)}
body{max-width:60rem;margin:2rem auto;padding:0 1rem}
figure{margin:2rem 0}img{max-width:100%;background:#fff;border-radius:6px}figcaption{color:var(--soft)}
table{border-collapse:collapse}td,th{padding:.25rem .8rem;border-bottom:1px solid var(--line);text-align:right}
td:first-child,th:first-child{text-align:left}
"""


def _page(
    title: str, data: Dataset, a: Accuracy, calibration: Reliability, scores: list[ClassScore], drawn: list[str]
) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(s.name)}</td><td>{s.images}</td><td>{s.precision:.3f}</td><td>{s.recall:.3f}</td>"
        f"<td>{s.f1:.3f}</td></tr>"
        for s in scores
    )
    figures = "".join(
        f'<figure><img src="plots/{name}.png" alt="{words}"><figcaption>{words}</figcaption></figure>'
        for name, words in _FIGURES.items()
        if name in drawn
    )
    epochs = ', its epochs in <a href="history.csv">history.csv</a>' if "curves" in drawn else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>"
        f"<p><b>{a.top1:.2f}%</b> of {a.images:,} test images of {html.escape(data.name)} (95% interval {a.low:.2f} to "
        f"{a.high:.2f}); expected calibration error {100 * calibration.error:.1f} points. The run's settings are in "
        f'<a href="card.json">card.json</a>{epochs}.</p>'
        f"<table><tr><th>class</th><th>images</th><th>precision</th><th>recall</th><th>F1</th></tr>{rows}</table>{figures}</html>\n"
    )
