"""The rows of an overload: three times the capacity."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import Any

from benchmarks.load import wire
from benchmarks.load.contents import png
from benchmarks.load.held import hold, offer
from benchmarks.load.plan import Plan, Row

NEAR = (0.8, 0.9, 1.0, 1.1, 1.2)  # of the capacity, where the peak is looked for


def overload(plan: Plan) -> list[Row]:
    """Three times the capacity arrives, whatever the answers do.

    Capacity and peak are measured before each round: the one as 64 connections have it, the other as the most good
    answers where about as much arrives as that, by the same kind of load.
    """
    statuses: Counter[int] = Counter()
    rounds: list[dict[str, Any]] = []
    lost = 0
    with plan.service() as ours:
        content = png(plan.model)
        for _ in range(plan.rounds):
            full = hold(ours, [content], 64, plan.seconds)
            near = {share: offer(ours, [content], share * full.rate, 512, plan.seconds) for share in NEAR}
            seen = offer(ours, [content], 3 * full.rate, 512, plan.seconds)
            statuses, lost = statuses + seen.statuses, lost + seen.lost
            rounds.append(_overloaded(full, near, seen))
        time.sleep(1)
        after = hold(ours, [content], 1, plan.seconds)
    ratio, goodput, refusal = (_median(rounds, name) for name in ("p99_ratio", "goodput", "refusal_p99_ms"))
    accepted = [one["overload"] for one in rounds]
    slow = f"{_median(accepted, 'accepted_p99_ms'):.0f} and {_median(rounds, 'capacity_p99_ms'):.0f} ms"
    good = f"{_median(accepted, 'accepted_per_s'):,.0f} and {_median(rounds, 'peak_per_s'):,.0f} answers/s, while "
    good += f"{_median(accepted, 'offered_per_s'):,.0f} requests/s arrive"
    told = ", ".join(f"{count:,} with {status}" for status, count in sorted(statuses.items()))
    detail = {"rounds": rounds, "statuses": dict(statuses), "lost": lost, "p99_ms_afterwards": after.ms(99)}
    odd = lost + broken(statuses)
    return [
        Row("three times the capacity: accepted p99 to that at capacity", ratio, "x", "<= 2", ratio <= 2, detail, slow),
        Row("three times the capacity: goodput of the peak", goodput, "x", ">= 0.9", goodput >= 0.9, {}, good),
        Row("three times the capacity: refusals, p99", refusal, "ms", "<= 50", refusal <= 50, {}),
        Row("three times the capacity: 5xx but 503, or lost", float(odd), "requests", "0", not odd, {}, told),
    ]


def _median(rounds: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(one[name] for one in rounds))


def broken(statuses: Counter[int]) -> int:
    """Answers that say of the service that it failed: 5xx, but for 503, a refusal."""
    return sum(count for status, count in statuses.items() if status >= 500 and status != 503)


def _overloaded(full: wire.Seen, near: dict[float, wire.Seen], seen: wire.Seen) -> dict[str, Any]:
    """One round: what an overload made of the capacity, and the processor time that both sides took for it."""
    peak = max(one.rate for one in near.values())
    on_refusals = 1e6 * seen.cpu_s - len(seen.good) * full.cpu_us
    return {
        "capacity_per_s": full.rate,
        "capacity_p99_ms": full.ms(99),
        "near_capacity": [_told(one) for one in near.values()],
        "peak_per_s": peak,
        "overload": _told(seen),
        "refusal_p99_ms": seen.ms(99, seen.refused),
        "cpu_us_per_answer": full.cpu_us,
        "cpu_us_per_refusal": on_refusals / len(seen.refused) if seen.refused else None,
        "p99_ratio": seen.ms(99) / full.ms(99),
        "goodput": seen.rate / peak,
    }


def _told(seen: wire.Seen) -> dict[str, float]:
    """An open load: what was offered, what came of it, and how busy server and generator were with it."""
    return {
        "offered_per_s": seen.offered / seen.seconds,
        "accepted_per_s": seen.rate,
        "accepted_p99_ms": seen.ms(99),
        "server_cpu_s": seen.cpu_s,
        "generator_cpu_s": seen.own_s,
        "seconds": seen.seconds,
    }
