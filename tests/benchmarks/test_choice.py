"""Choosing by budgets from results, and the policy that comes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import catalog
from benchmarks.__main__ import application
from benchmarks.judging import choose
from benchmarks.results import Results
from catalog import KilnError, Policy, Store, Variant, from_json


@pytest.fixture
def shelf(tiny_store: Store, golden: Results, tmp_path: Path) -> Store:
    """A store that holds the golden run's mobilenetv2, by its cards."""
    import json

    card = json.loads((tiny_store.model_dir("tiny") / catalog.CARD).read_text())
    rows = [row for row in golden.rows if row.variant.model == "mobilenetv2" and row.status == "ok"]
    folder = tmp_path / "mobilenetv2"
    catalog.write_atomic(
        folder / catalog.CARD,
        json.dumps({**card, "model": "mobilenetv2", "weights_sha256": rows[0].parent_sha256}),
    )
    variant = json.loads((tiny_store.variant_dir(Variant("tiny", "onnx")) / catalog.CARD).read_text())
    for row in rows:
        told = {**variant, "variant": dataclasses.asdict(row.variant), "parent_sha256": row.parent_sha256}
        catalog.write_atomic(folder / "variants" / row.variant.version / catalog.CARD, json.dumps(told))
    return Store(tmp_path)


@pytest.mark.parametrize(
    ("asked", "version"),
    [
        ({}, "onnx-int8"),
        ({"max_accuracy_drop": 0.1}, "litert-fp32"),
        ({"max_accuracy_drop": 0.1, "objective": "size"}, "onnx-fp32"),
        ({"objective": "accuracy"}, "litert-fp32"),
        ({"objective": "accuracy", "max_size_bytes": 3_000_000}, "onnx-int8"),
        ({"objective": "throughput"}, "onnx-int8"),
    ],
)
def test_the_best_within_the_budgets(shelf: Store, golden: Results, asked: dict[str, Any], version: str) -> None:
    choice = choose.choose(golden, Policy("mobilenetv2", **{"max_accuracy_drop": 0.5, **asked}), shelf)
    assert choice.taken.variant.version == version and choice.why.startswith(f"{version} is the ")
    reasons = {row.variant.version: why for row, why in choice.others}
    assert reasons["keras-fp32"] == "keras is not served"
    assert reasons["litert-int8"].startswith("the converter refused")
    assert "agrees with its parent" in reasons["prune80-onnx-int8"]


def test_the_reason_counts_those_that_may_be_served(shelf: Store, golden: Results) -> None:
    only = choose.choose(golden, Policy("mobilenetv2", max_accuracy_drop=0.5, max_size_bytes=3_000_000), shelf)
    assert only.why.startswith(
        "onnx-int8 is the only one of 6 variants that can be served within 0.5 points of accuracy and 3,000"
    )
    several = choose.choose(golden, Policy("mobilenetv2", max_accuracy_drop=0.5), shelf)
    assert several.why.startswith(
        "onnx-int8 is the fastest of the 3 variants (of 6) that can be served within 0.5 points"
    )


@pytest.mark.parametrize("objective", ["latency", "throughput", "accuracy"])
def test_what_the_run_cannot_tell_from_the_best_is_said(shelf: Store, golden: Results, objective: Any) -> None:
    near, name = dict(golden.details), "mobilenetv2/onnx-int8"
    slow = dataclasses.replace(near[name].passes[0], images_per_s_at={"128": 700.0})
    passes = [slow, *near[name].passes[1:]]
    near[name] = dataclasses.replace(near[name], p50_high_ms=2.0, passes=passes)
    found = dataclasses.replace(golden, details=near)
    drop = 0.1 if objective == "accuracy" else 0.5
    choice = choose.choose(found, Policy("mobilenetv2", objective=objective, max_accuracy_drop=drop), shelf)
    reasons = {row.variant.version: why for row, why in choice.others}
    if objective == "accuracy":  # both are the parent's answers
        assert choice.why.endswith(" This run cannot tell onnx-fp32 from it in that.")
    else:
        assert choice.why.endswith(" This run cannot tell litert-fp32 and onnx-fp32 from it in that.")
        assert reasons["onnx-fp32"].startswith("perhaps slower")
        sure = choose.choose(golden, Policy("mobilenetv2", objective=objective, max_accuracy_drop=0.5), shelf)
        assert "cannot tell" not in sure.why and not any("perhaps" in why for _, why in sure.others)


def test_what_serving_could_not_take_is_not_chosen(shelf: Store, golden: Results) -> None:
    (shelf.model_dir("mobilenetv2") / "variants" / "onnx-int8" / catalog.CARD).unlink()
    choice = choose.choose(golden, Policy("mobilenetv2", max_accuracy_drop=0.5), shelf)
    assert choice.taken.variant.version == "litert-fp32"
    rows = [dataclasses.replace(row, parent_sha256="f" * 64) for row in golden.rows]
    with pytest.raises(KilnError, match="other weights than the model has now"):
        choose.choose(dataclasses.replace(golden, rows=rows), Policy("mobilenetv2"), shelf)


def test_budgets_that_nothing_meets_say_what_misses_them(shelf: Store, golden: Results) -> None:
    with pytest.raises(KilnError, match=r"onnx-int8: loses 0\.38 points, 0\.1 are allowed") as caught:
        choose.choose(golden, Policy("mobilenetv2", max_accuracy_drop=0.1, max_size_bytes=3_000_000), shelf)
    assert "onnx-fp32: 9,080 kB, 3,000 are allowed" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"), [("3MB", 3_000_000), ("300 kB", 300_000), ("2.5MiB", 2_621_440), ("4096", 4096), ("1gb", 10**9)]
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert choose.size_of(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "3 apples", "0", "1e3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(KilnError, match="is no size"):
        choose.size_of(text)


def test_the_last_run_comes_before_committed_ones_and_the_newest_of_those(
    shelf: Store, tmp_path: Path, golden: Results
) -> None:
    card, last, root = shelf.card("mobilenetv2"), tmp_path / "reports.json", tmp_path / "root"
    old, new = (dataclasses.replace(golden, created=f"2026-01-0{day}T00:00:00Z") for day in (1, 2))
    new.write(root / "results" / "a.json")
    old.write(root / "results" / "b.json")
    assert choose.measured(card, None, last, root)[0] == new
    old.write(last)
    assert choose.measured(card, None, last, root)[1] == last
    assert choose.measured(card, root / "results" / "b.json", last, root)[0] == old
    unknown = dataclasses.replace(card, model="vgg16")
    with pytest.raises(KilnError, match=r"no results of 'vgg16' \(there: lenet, mobilenetv2, simcnn\)"):
        choose.measured(unknown, None, last, root)
    with pytest.raises(KilnError, match=r"reports.json has no 'vgg16' \(there: lenet, mobilenetv2, simcnn\)"):
        choose.measured(unknown, last, last, root)


def test_results_of_other_weights_are_passed_over(shelf: Store, tmp_path: Path, golden: Results) -> None:
    card, last, root = shelf.card("mobilenetv2"), tmp_path / "reports.json", tmp_path / "root"
    rows = [dataclasses.replace(row, parent_sha256="f" * 64) for row in golden.rows]
    other = dataclasses.replace(golden, rows=rows, created="2027-01-01T00:00:00Z")
    other.write(last)
    other.write(root / "results" / "newer.json")
    with pytest.raises(KilnError, match=r"weights now than .*reports\.json, .*newer\.json measured; measure again"):
        choose.measured(card, None, last, root)
    golden.write(root / "results" / "fitting.json")
    assert choose.measured(card, None, last, root) == (golden, root / "results" / "fitting.json")
    with pytest.raises(KilnError, match="measure again: make benchmark"):
        choose.measured(card, last, last, root)


@pytest.mark.parametrize("drop", ["nan", "inf", "-inf", "-0.1", "101"])
def test_a_budget_that_is_none_is_refused(drop: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(application, ["choose", "lenet", f"--max-accuracy-drop={drop}", "--store", str(tmp_path)])
    assert isinstance(done.exception, KilnError)
    assert f"--max-accuracy-drop {float(drop):g} is no number of points from 0 to 100" in str(done.exception)


def test_the_command_writes_the_policy_serving_reads(
    shelf: Store, golden: Results, benchmarks_command, tmp_path: Path
) -> None:
    details = {name: dataclasses.replace(d, settled="litert" not in name) for name, d in golden.details.items()}
    dataclasses.replace(golden, quick=True, details=details).write(tmp_path / "run.json")
    kept = Policy("mobilenetv2", canary="onnx-fp32", canary_share=0.25)
    catalog.write_atomic(shelf.model_dir("mobilenetv2") / catalog.POLICY, catalog.to_json(kept))
    arguments = ["choose", "mobilenetv2", "--max-accuracy-drop", "0.5", "--max-size", "3MB", "--store", shelf.root]
    done = benchmarks_command(*arguments, "--objective", "latency", "--results", tmp_path / "run.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "mobilenetv2/onnx-int8"
    assert "not onnx-fp32: 9,080 kB, 3,000 are allowed" in done.stdout
    assert "This was a quick run" in done.stdout
    assert "The latency of litert-fp32 had not settled" in done.stdout
    policy = shelf.policy("mobilenetv2")
    assert policy is not None and policy.objective == "latency" and policy.max_size_bytes == 3_000_000
    assert (policy.canary, policy.canary_share) == ("onnx-fp32", 0.25) and "choose mobilenetv2" in policy.command
    best = min((row for row in policy.rows if policy.allows(row, 90.12)), key=lambda row: policy.rank(row) or (9e9, ""))
    assert best.variant.version == "onnx-int8"
    assert from_json(Policy, __import__("json").loads(catalog.to_json(policy))) == policy
