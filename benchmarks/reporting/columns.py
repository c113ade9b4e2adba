"""The figures of a row by name, unit and direction: what the CSV lists, the tables show and the plot is drawn over."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.judging.compare import Group, Line
from benchmarks.judging.speed import Speed
from benchmarks.reporting import words
from benchmarks.results import Detail, Tax

Figure = float | int | str | None


@dataclass(frozen=True)
class Column:
    """One figure. `better` is empty for what is no merit; `axis` says whether the plot offers it.

    Those of `TABLE` have a heading there, `text` for the figure, the `span` in which it lies, and what else stands
    `beside` it in small print.
    """

    name: str
    title: str
    unit: str
    better: Literal["less", "more", ""]
    of: Callable[[Line], Figure]
    axis: bool = False
    head: str = ""
    text: Callable[[float | None], str] = words.about
    span: Callable[[Line], str] = lambda line: ""
    beside: Callable[[Line], str] = lambda line: ""

    def shown(self, line: Line) -> str:
        """The figure as a table has it."""
        value = self.of(line)
        return self.text(value) if isinstance(value, int | float) else words.NONE

    def notes(self, line: Line) -> list[str]:
        """The small print under a figure."""
        return [note for note in (self.span(line), self.beside(line)) if note]


def _detail(of: Callable[[Detail], Figure]) -> Callable[[Line], Figure]:
    return lambda line: None if line.detail is None else of(line.detail)


def _top1(line: Line) -> Figure:
    return line.row.accuracy.top1 if line.row.accuracy else None


def _per(number: float | None, divisor: float, digits: int = 3) -> float | None:
    return None if number is None else round(number / divisor, digits)


def _end(line: Line, which: int) -> float | None:
    return None if line.change_span is None else round(line.change_span[which], 4)


def _robust(line: Line) -> Figure:
    return None if line.robust_top1 is None else round(line.robust_top1, 2)


def _tax(of: Callable[[Tax], Figure]) -> Callable[[Line], Figure]:
    return lambda line: of(line.detail.tax) if line.detail and line.detail.tax else None


def _low_to_high(line: Line) -> str:
    tax = line.detail.tax if line.detail else None
    rates = [one.images_per_s for one in tax.rounds if one.images_per_s is not None] if tax else []
    return words.span(min(rates), max(rates), words.digits) if rates else ""


def _gmacs(line: Line) -> Figure:
    return _per(line.offline.macs_per_s, 1e9) if line.offline else None


def _peak(line: Line) -> Figure:
    return _per(line.offline.compute, 0.01, 2) if line.offline else None


def _interval(line: Line) -> str:
    accuracy = line.row.accuracy
    return words.span(accuracy.low, accuracy.high, words.percent) if accuracy else ""


def _change_interval(line: Line) -> str:
    """Nothing where every answer is the same."""
    return words.span(*line.change_span, words.points) if line.change_span and _images(line) else ""


def _medians(line: Line) -> str:
    return words.span(line.detail.p50_low_ms, line.detail.p50_high_ms, words.about) if line.detail else ""


def speed_span(line: Line) -> str:
    """What the speed-up lies between, where that is far enough from it to be told."""
    speed = line.speed
    return words.span(speed.low, speed.high, words.about) if speed and speed.wide else ""


def _speed(of: Callable[[Speed], Figure]) -> Callable[[Line], Figure]:
    return lambda line: of(line.speed) if line.speed else None


def _rates(line: Line) -> str:
    passes = line.detail.passes if line.detail else []
    rates = [one.images_per_s_in(line.row.offline_batch) for one in passes]
    return words.span(min(rates), max(rates), words.about) if len(rates) > 1 else ""


def _images(line: Line) -> str:
    detail = line.detail
    if detail is None or not (detail.lost or detail.won):
        return ""
    return f"\N{MINUS SIGN}{detail.lost} +{detail.won} images"


def _p99_held(line: Line) -> str:
    detail = line.detail
    if detail is None or detail.server_rate is None:
        return ""
    if detail.server_p99_ms:
        return f"p99 {words.about(detail.server_p99_ms)} ms"
    return "" if detail.server_rate else "over the limit"


COLUMNS = (
    Column("p50_ms", "Latency, p50", "ms an image", "less", lambda x: x.row.p50_ms, True, "p50 ms",
           span=_medians),
    Column("p90_ms", "Latency, p90", "ms an image", "less", lambda x: x.row.p90_ms),
    Column("p99_ms", "Latency, p99", "ms an image", "less", lambda x: x.row.p99_ms, True, "p99",
           beside=lambda x: f"p90 {words.about(x.row.p90_ms)}"),
    Column("speed_up", "Speed-up, one by one", "times", "", lambda x: x.speed_up, head="speed-up",
           text=words.about_times, span=speed_span),
    Column("speed_up_low", "Speed-up, lower end", "times", "", _speed(lambda s: round(s.low, 4))),
    Column("speed_up_high", "Speed-up, upper end", "times", "", _speed(lambda s: round(s.high, 4))),
    Column("size_kb", "Size", "kB on disk", "less", lambda x: _per(x.row.size_bytes, 1e3), True, "kB", words.digits),
    Column("gzip_kb", "Size, gzipped", "kB", "less", lambda x: _per(x.row.gzip_bytes, 1e3), True, "gzip", words.digits),
    Column("size_ratio", "Ratio of size", "times", "", lambda x: x.size_ratio, head="ratio", text=words.about_times),
    Column("images_per_s", "Throughput, Offline", "images/s", "more", lambda x: x.row.images_per_s, True, "images/s",
           span=_rates, beside=lambda x: f"batch {x.row.offline_batch}"),
    Column("offline_batch", "Best batch", "images", "", lambda x: x.row.offline_batch),
    Column("server_rate", "Load held, Server", "images/s", "more", _detail(lambda d: d.server_rate), True, "held/s",
           beside=_p99_held),
    Column("server_p99_ms", "p99 at that load", "ms", "", _detail(lambda d: d.server_p99_ms)),
    Column("http_ms", "Latency over HTTP, p50", "ms an image", "less", _tax(lambda t: t.http_ms), True),
    Column("http_low_ms", "Over HTTP, quickest round's p50", "ms", "", _tax(lambda t: t.low_ms), head="low"),
    Column("http_high_ms", "Over HTTP, slowest round's p50", "ms", "", _tax(lambda t: t.high_ms), head="high"),
    Column("http_p90_ms", "Latency over HTTP, p90", "ms an image", "less", _tax(lambda t: t.p90_ms), head="p90"),
    Column("http_p99_ms", "Latency over HTTP, p99", "ms an image", "less", _tax(lambda t: t.p99_ms), True, "p99"),
    Column("http_images_per_s", "Throughput over HTTP", "images/s", "more", _tax(lambda t: t.images_per_s), True,
           "images/s", beside=_low_to_high),
    Column("http_server_rate", "Load held over HTTP, Server", "images/s", "more", _tax(lambda t: t.server_rate), True,
           "held/s"),
    Column("rss_mb", "Memory, peak", "MB", "less", lambda x: _per(x.row.peak_rss_bytes, 1e6, 1), True, "RSS MB"),
    Column("load_ms", "Time to load", "ms", "less", _detail(lambda d: d.load_ms), True),
    Column("energy_mj", "Energy, Offline", "mJ an image", "less", _detail(lambda d: d.package_mj), True),
    Column("top1", "Accuracy, top-1", "%", "more", _top1, True, "top-1, %", words.percent, _interval),
    Column("top1_low", "Accuracy, lower end", "%", "", lambda x: x.row.accuracy.low if x.row.accuracy else None),
    Column("top1_high", "Accuracy, upper end", "%", "", lambda x: x.row.accuracy.high if x.row.accuracy else None),
    Column("change_points", "Change of top-1", "points", "more", lambda x: x.change_points, True, "change",
           words.points, _change_interval, _images),
    Column("change_low", "Change, lower end", "points", "", lambda x: _end(x, 0)),
    Column("change_high", "Change, upper end", "points", "", lambda x: _end(x, 1)),
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
    Column("pareto_ties", "Of these by a tie", "", "", lambda x: "; ".join(x.ties)),
)  # fmt: skip
TABLE = (
    "top1", "change_points", "size_kb", "gzip_kb", "size_ratio", "p50_ms", "p99_ms", "speed_up", "images_per_s",
    "server_rate", "rss_mb",
)  # fmt: skip
BRIEF = ("top1", "change_points", "size_kb", "p50_ms", "images_per_s")  # of these, what is published


def of_table(groups: list[Group]) -> list[Column]:
    """The columns of the table of all variants, from left to right; `held/s` only where Server was measured."""
    served = any(line.detail and line.detail.server_rate is not None for group in groups for line in group.lines)
    return named(name for name in TABLE if served or name != "server_rate")


def named(names: Iterable[str]) -> list[Column]:
    """The columns of these names, in their order."""
    known = {column.name: column for column in COLUMNS}
    return [known[name] for name in names]


def further(groups: list[Group]) -> list[Column]:
    """Those of the table that are not among the `BRIEF` ones."""
    return [column for column in of_table(groups) if column.name not in BRIEF]


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
