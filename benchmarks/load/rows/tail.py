"""The row of one connection's slowest answers."""

from __future__ import annotations

from benchmarks.load import served, wire
from benchmarks.load.contents import png, upload
from benchmarks.load.held import hold
from benchmarks.load.plan import Plan, Row


def tail(plan: Plan) -> Row:
    """One connection, PNG uploads: how far the slow answers are from the usual one.

    The hand-written application has its turn in each round: what the machine itself does to the slow ones is in both.
    """
    mine, other = wire.Seen(), wire.Seen()
    with plan.service() as ours, served.fastapi(plan.file(plan.model), plan.threads) as peer:
        for _ in range(plan.rounds):
            mine.good += hold(ours, [png(plan.model)], 1, plan.seconds).good
            other.good += hold(peer, [upload("/predict")], 1, plan.seconds).good
    ratio = mine.ms(99) / mine.ms(50)
    both = (("", mine), ("FastAPI_", other))
    detail = {f"{name}p{percent:g}_ms": seen.ms(percent) for name, seen in both for percent in (50, 99, 99.9)}
    detail |= {"requests": len(mine.good), "FastAPI_p99_to_p50": other.ms(99) / other.ms(50)}
    beside = f"{mine.ms(99):.2f} and {mine.ms(50):.2f} ms of {len(mine.good):,} requests; FastAPI's p99 is "
    beside += f"{detail['FastAPI_p99_to_p50']:.2f} times its p50"
    return Row("one connection, p99 to p50", ratio, "x", "<= 2", ratio <= 2, detail, beside)
