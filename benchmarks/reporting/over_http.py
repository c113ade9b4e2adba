"""What the report says of the figures over HTTP: how they came about, and which columns a run has."""

from __future__ import annotations

import statistics

from benchmarks.measuring.bisection import HEADROOM
from benchmarks.measuring.http_server import RULE
from benchmarks.reporting import words
from benchmarks.reporting.columns import Column, named
from benchmarks.results import Results, Tax

COLUMNS = ("http_low_ms", "http_high_ms", "http_p90_ms", "http_p99_ms", "http_images_per_s", "http_server_rate")


def columns(results: Results) -> list[Column]:
    """Those beside the stages; older runs, of one round, have none."""
    return named(COLUMNS) if any(detail.tax and detail.tax.rounds for detail in results.details.values()) else []


def method(results: Results) -> list[str]:
    """How the tax was measured, a sentence or two a point."""
    s, taxes = results.settings, [detail.tax for detail in results.details.values() if detail.tax]
    if not taxes:
        return []
    rounds = max(len(tax.rounds) for tax in taxes)
    turns = f"in {rounds} rounds over all variants, each in a new order, " if rounds else ""
    said = [
        f"Serving tax: the service of this project, started by bentoml serve with {results.threads} threads, "
        f"asked {s.http_requests} times {turns}over one connection with a PNG of the data set's size. Decoding, "
        "queueing and computing are what its answers say; transport is what the client waited beyond the service's own "
        "time."
    ]
    if rounds:
        said.append(_spread(taxes))
    if any(tax.images_per_s is not None for tax in taxes):
        said.append(_load(results))
    if results.http_others_percent is not None:
        said.append(
            f"Meanwhile other processes took {results.http_others_percent:.0f}% of the processors' time and other "
            f"guests of the host {results.http_steal_percent or 0.0:.0f}%; the load average before was "
            f"{results.http_load_before[0]:g}."
        )
    return said


def _spread(taxes: list[Tax]) -> str:
    """How far apart the rounds are, and the same work done for different variants."""
    apart = [tax.high_ms / tax.low_ms for tax in taxes if tax.high_ms and tax.low_ms]
    decoding = sorted(tax.decode_ms for tax in taxes)
    return (
        "Low and high are the medians of the quickest and the slowest round, in the middle "
        f"{words.digits(statistics.median(apart))} times apart. All variants of a data set decode the same PNG, which "
        f"took {words.digits(decoding[0])} to {words.digits(decoding[-1])} ms: differences of that size say nothing."
    )


def _load(results: Results) -> str:
    s = results.settings
    told = (
        f"Offline over HTTP: {s.http_connections} connections on this machine, each asking again as soon as it was "
        f"answered, {s.http_seconds:g} s in each round; the median, with the lowest and the highest. "
    )
    if any(detail.tax and detail.tax.server_rate is not None for detail in results.details.values()):
        told += (
            "Server over HTTP: Poisson arrivals of single PNGs, the highest rate whose p99 at the client stays under "
            f"{s.server_p99_ms:g} ms, found to about {100 * HEADROOM / 2**RULE.steps:.0f}% of that."
        )
    return told.rstrip()
