"""Rows of requests/s: against the application one would write by hand, or the model called in process."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import numpy as np

import catalog
from benchmarks.load import served, wire
from benchmarks.load.contents import BYTES, noise, upload, v2
from benchmarks.load.held import hold
from benchmarks.load.plan import INT8, Plan, Row
from export.formats import Predict

BATCH_CLIENTS = 4  # two keep a thread and its next batch supplied, two are on their way


def predict(plan: Plan) -> Row:
    """PNG uploads as forms, 16 connections, one worker, against the hand-written application."""
    with plan.service() as ours, served.fastapi(plan.file(plan.model), plan.threads) as peer:
        mine = (ours, upload(f"/predict?model={plan.model}&version={INT8}"))
        ratio, detail, beside = against(plan, mine, (peer, upload("/predict")), 16)
    return Row("predict PNG, 16 connections, to FastAPI", ratio, "x", ">= 0.9", ratio >= 0.9, detail, beside)


def batches(plan: Plan) -> Row:
    """V2 binary of 32 images against the same session called in this process."""
    images = noise(32)
    load = catalog.plugin("export.formats", "onnx").load
    with plan.service() as ours:
        bare: Predict = load(plan.file(plan.deep), plan.threads, spinning=False)
        here, there = [], []
        for _ in range(plan.rounds):
            here.append(_called(bare, images, plan.seconds))
            there.append(32 * hold(ours, [v2(plan.deep, INT8, images)], BATCH_CLIENTS, plan.seconds).rate)
    mine, bare_rate = statistics.median(there), statistics.median(here)
    share, beside = mine / bare_rate, f"{mine:,.0f} and {bare_rate:,.0f} images/s"
    detail = {"images_per_s": there, "in_process_images_per_s": here, "connections": BATCH_CLIENTS}
    return Row(f"V2 binary, batch 32, {plan.deep}, of in process", share, "x", ">= 0.85", share >= 0.85, detail, beside)


def singles(plan: Plan) -> Row:
    """Single images as V2 binary over 64 connections, against the application's raw tensors."""
    image = noise(1)
    with plan.service() as ours, served.fastapi(plan.file("mobilenetv2"), plan.threads) as peer:
        raw = wire.request("/tensor", image.tobytes(), BYTES)
        ratio, detail, beside = against(plan, (ours, v2("mobilenetv2", INT8, image)), (peer, raw), 64)
    name = "V2 binary singles, 64 connections, mobilenetv2, to FastAPI"
    return Row(name, ratio, "x", ">= 1.3", ratio >= 1.3, detail, beside)


def alone(plan: Plan) -> Row:
    """One connection, single images: what batching costs whoever has nobody to share a batch with."""
    content = v2(plan.model, INT8, noise(1))
    with plan.service() as ours, plan.service(batch_images="1") as single:
        other = dataclasses.replace(single, name="unbatched")
        ratio, detail, beside = against(plan, (ours, content), (other, content), 1)
    return Row("one connection, to the service without batching", ratio, "x", ">= 0.95", ratio >= 0.95, detail, beside)


def against(
    plan: Plan, ours: tuple[served.Server, bytes], theirs: tuple[served.Server, bytes], clients: int
) -> tuple[float, dict[str, Any], str]:
    """Requests/s of both, turn by turn: the ratio of their medians, all figures, and these in words."""
    rates: list[list[float]] = [[], []]
    costs: list[list[float]] = [[], []]
    for _ in range(plan.rounds):
        for rate, cost, (server, content) in zip(rates, costs, (ours, theirs), strict=True):
            seen = hold(server, [content], clients, plan.seconds)
            rate.append(seen.rate)
            cost.append(seen.cpu_us)
    mine, other = (statistics.median(rate) for rate in rates)
    detail = {"requests_per_s": mine, f"{theirs[0].name}_requests_per_s": other, "rounds": rates}
    names = ("cpu_us_per_request", f"{theirs[0].name}_cpu_us_per_request")  # of use where other work disturbs
    detail |= {name: statistics.median(cost) for name, cost in zip(names, costs, strict=True)}
    return mine / other, detail, f"{mine:,.0f} and {other:,.0f} requests/s"


def _called(bare: Predict, images: np.ndarray[Any, Any], seconds: float) -> float:
    calls, begun = 0, time.perf_counter()
    while time.perf_counter() < begun + seconds:
        bare(images)
        calls += 1
    return len(images) * calls / (time.perf_counter() - begun)
