"""The figures of a row by name, unit and direction: what the CSV lists and the report's plot can be drawn over."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.judging.compare import Group, Line
from benchmarks.results import Detail

Figure = float | int | str | None


@dataclass(frozen=True)
class Column:
    """One figure. `better` is empty for what is no merit; `axis` says whether the plot offers it."""

    name: str
    title: str
    unit: str
    better: Literal["less", "more", ""]
    of: Callable[[Line], Figure]
    axis: bool = False


def _detail(of: Callable[[Detail], Figure]) -> Callable[[Line], Figure]:
    return lambda line: None if line.detail is None else of(line.detail)


def _top1(line: Line) -> Figure:
    return line.row.accuracy.top1 if line.row.accuracy else None


def _per(number: float | None, divisor: float, digits: int = 3) -> float | None:
    return None if number is None else round(number / divisor, digits)


def _robust(line: Line) -> Figure:
    return None if line.robust_top1 is None else round(line.robust_top1, 2)


def _http(line: Line) -> Figure:
    return line.detail.tax.http_ms if line.detail and line.detail.tax else None


def _gmacs(line: Line) -> Figure:
    return _per(line.offline.macs_per_s, 1e9) if line.offline else None


def _peak(line: Line) -> Figure:
    return _per(line.offline.compute, 0.01, 2) if line.offline else None


COLUMNS = (
    Column("p50_ms", "Latency, p50", "ms an image", "less", lambda x: x.row.p50_ms, True),
    Column("p90_ms", "Latency, p90", "ms an image", "less", lambda x: x.row.p90_ms),
    Column("p99_ms", "Latency, p99", "ms an image", "less", lambda x: x.row.p99_ms, True),
    Column("size_kb", "Size", "kB on disk", "less", lambda x: _per(x.row.size_bytes, 1e3), True),
    Column("gzip_kb", "Size, gzipped", "kB", "less", lambda x: _per(x.row.gzip_bytes, 1e3), True),
    Column("images_per_s", "Throughput, Offline", "images/s", "more", lambda x: x.row.images_per_s, True),
    Column("offline_batch", "Best batch", "images", "", lambda x: x.row.offline_batch),
    Column("server_rate", "Load held, Server", "images/s", "more", _detail(lambda d: d.server_rate), True),
    Column("server_p99_ms", "p99 at that load", "ms", "", _detail(lambda d: d.server_p99_ms)),
    Column("http_ms", "Latency over HTTP, p50", "ms an image", "less", _http, True),
    Column("rss_mb", "Memory, peak", "MB", "less", lambda x: _per(x.row.peak_rss_bytes, 1e6, 1), True),
    Column("load_ms", "Time to load", "ms", "less", _detail(lambda d: d.load_ms), True),
    Column("energy_mj", "Energy, Offline", "mJ an image", "less", _detail(lambda d: d.package_mj), True),
    Column("top1", "Accuracy, top-1", "%", "more", _top1, True),
    Column("top1_low", "Accuracy, lower end", "%", "", lambda x: x.row.accuracy.low if x.row.accuracy else None),
    Column("top1_high", "Accuracy, upper end", "%", "", lambda x: x.row.accuracy.high if x.row.accuracy else None),
    Column("change_points", "Change", "points", "more", lambda x: x.change_points, True),
    Column("lost", "Answers lost", "images", "", _detail(lambda d: d.lost)),
    Column("won", "Answers won", "images", "", _detail(lambda d: d.won)),
    Column("mcnemar_p", "McNemar's p", "", "", _detail(lambda d: d.mcnemar_p)),
    Column("mcnemar_holm", "McNemar's p after Holm", "", "", _detail(lambda d: d.mcnemar_holm)),
    Column("calibration_error", "Calibration error", "%", "less", _detail(lambda d: d.calibration_error), True),
    Column("robust_top1", "Accuracy, corrupted images", "%", "more", _robust, True),
    Column("robust_change", "Change, corrupted images", "points", "more", lambda x: x.robust_change),
    Column("gmacs_per_s", "Arithmetic, Offline", "GMAC/s", "more", _gmacs),
    Column("peak_percent", "Share of the peak, Offline", "%", "more", _peak, True),
    Column("bound_single", "Bound, one by one", "", "", lambda x: x.single.by if x.single else None),
    Column("bound_offline", "Bound, in batches", "", "", lambda x: x.offline.by if x.offline else None),
    Column("settled", "Settled", "", "", _detail(lambda d: "yes" if d.settled else "no")),
    Column("verdict", "Verdict", "", "", lambda x: x.verdict),
    Column("pareto", "Pareto-optimal in", "", "", lambda x: "; ".join(x.pareto)),
)  # fmt: skip


def table(groups: list[Group]) -> str:
    """All figures of all rows as CSV, RFC 4180, with a header; an unmeasured figure is empty."""
    file = io.StringIO()
    writer = csv.writer(file)
    identity = ["dataset", "model", "version", "format", "precision", "transform", "status", "reason", "chosen"]
    writer.writerow([*identity, *(column.name for column in COLUMNS)])
    for group in groups:
        for line in group.lines:
            v, row = line.row.variant, line.row
            told = [v.model, v.version, v.format, v.precision, v.transform, row.status, row.reason]
            figures = [column.of(line) for column in COLUMNS]
            writer.writerow(
                [group.dataset, *told, "yes" if line.chosen else "", *("" if f is None else f for f in figures)]
            )
    return file.getvalue()
