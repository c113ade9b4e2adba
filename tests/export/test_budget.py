"""The best variant under a budget: who may race, who wins, what is written down, and layers given back for real."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import catalog
import console
from catalog import CARD, KilnError, Store, Variant, VariantCard
from export import __main__ as command
from export import budget, pages, pipeline, process
from export.options import Options
from export.timing import Measure, measure
from export.verdict import within
from export.worker import Reply
from tests.export.conftest import Run

FAST = Variant("tiny", "openvino", "int8")
INT8 = Variant("tiny", "onnx", "int8")
MIXED = Variant("tiny", "onnx", "mixed")


@pytest.fixture
def copied(store: Store, tmp_path: Path) -> Store:
    copy = Store(tmp_path / "store")
    shutil.copytree(store.model_dir("tiny"), copy.model_dir("tiny"))
    for card in copy.variants("tiny"):
        file(copy, dataclasses.replace(card, validation_drop=0.1))
    return copy


def file(store: Store, card: VariantCard) -> None:
    catalog.write_atomic(store.variant_dir(card.variant) / CARD, catalog.to_json(card))


def card_of(store: Store, variant: Variant) -> VariantCard:
    return catalog.read_card(VariantCard, store.variant_dir(variant) / CARD)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Measure]:
    """Stands in for the stopwatch: OpenVINO's int8 takes 1 ms, everything else 2."""
    asked: list[Measure] = []

    def ask(request: Any, *_: Any) -> Reply:
        assert isinstance(request, Measure), "nothing had to be made"
        asked.append(request)
        fast = Path(request.folder).name == FAST.version
        return Reply(times_ms={str(request.batch): 1.0 if fast else 2.0})

    monkeypatch.setattr(process, "ask", ask)
    return asked


def race(store: Store, objective: budget.Objective, allowed: float | None = 0.3) -> budget.Race:
    options = Options(allowed_drop=allowed)
    variants = pipeline.wanted("tiny", ["onnx", "openvino"], [])
    return budget.find(store, variants, options, objective, lambda _: None, lambda: None)


def test_the_fastest_within_the_budget_wins_and_says_what_was_tried(copied: Store, timed: list[Measure]) -> None:
    raced = race(copied, "latency")
    assert raced.winner.variant == FAST and raced.winner == card_of(copied, FAST)
    log = [step for step in raced.winner.search if "candidate" in step]
    assert {step["candidate"] for step in log} == {card.variant.version for card in copied.variants("tiny")}
    assert log[0] == {"objective": "latency", "candidate": FAST.version, "validation_drop": 0.1, "p50_ms": 1.0}
    left_out = {step["candidate"]: step["left_out"] for step in log if "left_out" in step}
    assert set(left_out) == {"keras-fp32", "savedmodel-fp32"}
    assert any("damage" in step for step in raced.winner.search)  # the search for its calibration is kept
    assert {request.batch for request in timed} == {1}
    turns = [Path(request.folder).name for request in timed]
    assert turns[: len(turns) // 3] == turns[len(turns) // 3 : 2 * len(turns) // 3][::-1]  # there and back
    again = race(copied, "throughput")
    assert [step["objective"] for step in again.winner.search if "candidate" in step] == ["throughput"] * len(log)
    assert again.entries[0].figure == 32_000


def test_over_budget_does_not_race(copied: Store, timed: list[Measure]) -> None:
    file(copied, dataclasses.replace(card_of(copied, FAST), validation_drop=0.31))
    raced = race(copied, "latency")
    assert raced.winner.variant != FAST
    verdicts = {entry.card.variant: entry.verdict for entry in raced.entries}
    assert verdicts[FAST] == "over budget: drops by 0.31 points"
    assert FAST.version not in {Path(request.folder).name for request in timed}
    assert card_of(copied, FAST).status == "ok"  # being left out of a race is no fault


def test_a_winner_that_was_over_an_earlier_budget_is_offered_again(copied: Store, timed: list[Measure]) -> None:
    strict = dataclasses.replace(card_of(copied, FAST), status="below-floor", reason="over budget", allowed_drop=0.05)
    file(copied, strict)
    won = race(copied, "latency").winner
    assert (won.variant, won.status, won.reason, won.allowed_drop) == (FAST, "ok", "", 0.3)


def test_what_is_damaged_or_cannot_be_timed_is_left_out(copied: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    litert = Variant("tiny", "litert", "fp32")
    model = copied.variant_dir(litert) / card_of(copied, litert).file
    model.write_bytes(model.read_bytes() + b" ")

    def ask(request: Any, *_: Any) -> Reply:
        error = "the runtime is gone" if Path(request.folder).name == FAST.version else ""
        return Reply(error, times_ms={str(request.batch): 1.0})

    monkeypatch.setattr(process, "ask", ask)
    raced = race(copied, "latency")
    verdicts = {entry.card.variant: entry.verdict for entry in raced.entries}
    assert verdicts[FAST] == "cannot be timed: the runtime is gone" and "is corrupt" in verdicts[litert]
    assert raced.winner.variant not in (FAST, litert) and raced.entries[0].figure == 1.0


def test_mixed_that_was_asked_for_gets_its_budget(copied: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[Variant, float | None] = {}

    def export(store: Store, variants: list[Variant], options: Options, *_: Any) -> list[VariantCard]:
        asked.update(dict.fromkeys(variants, options.allowed_drop))
        return []

    monkeypatch.setattr(pipeline, "export", export)
    options = Options(allowed_drop=0.3)
    variants = pipeline.wanted("tiny", ["onnx"], ["int8", "mixed"])
    budget.find(copied, variants, options, "size", lambda _: None, lambda: None)
    assert asked == {INT8: None, MIXED: 0.3}


def test_a_race_takes_a_transform_as_it_is(copied: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant of a transform that is no more does not race, and giving layers back does not fine-tune anew."""
    pruned = dataclasses.replace(INT8, transform="prune80")
    shutil.copytree(copied.variant_dir(INT8), copied.variant_dir(pruned))
    card = dataclasses.replace(card_of(copied, INT8), variant=pruned, validation_drop=1.5)
    file(copied, dataclasses.replace(card, settings={**card.settings, "transform_sha256": "of the one before"}))
    made = copied.transform_dir("tiny", "prune80") / CARD
    catalog.write_atomic(made, json.dumps({"weights_sha256": "of this one"}))
    assert pruned not in {entry.card.variant for entry in race(copied, "size").entries}
    catalog.write_atomic(made, json.dumps({"weights_sha256": "of the one before"}))
    asked: list[tuple[list[Variant], bool, bool]] = []

    def export(store: Store, variants: list[Variant], options: Options, *_: Any) -> list[VariantCard]:
        asked.append((variants, options.as_it_is, options.force))
        return []

    monkeypatch.setattr(pipeline, "export", export)
    options = Options(allowed_drop=0.3, force=True)
    budget.find(copied, [FAST], options, "size", lambda _: None, lambda: None)
    assert asked == [([FAST], False, True), ([dataclasses.replace(pruned, precision="mixed")], True, False)]


def test_a_card_that_cannot_be_read_takes_no_part_and_stops_nothing(copied: Store, timed: list[Measure]) -> None:
    litert, pruned = Variant("tiny", "litert", "fp32"), dataclasses.replace(INT8, transform="prune80")
    (copied.variant_dir(litert) / CARD).write_text("{ cut off")
    shutil.copytree(copied.variant_dir(INT8), copied.variant_dir(pruned))
    file(copied, dataclasses.replace(card_of(copied, INT8), variant=pruned))
    catalog.write_atomic(copied.transform_dir("tiny", "prune80") / CARD, "{ cut off")
    raced = race(copied, "latency")
    assert raced.winner.variant == FAST and set(raced.aside) == {"litert-fp32", "prune80-onnx-int8"}
    assert "litert-fp32/card.json cannot be read as a card" in raced.aside["litert-fp32"]
    assert not {litert, pruned} & {entry.card.variant for entry in raced.entries}
    with console.out.capture() as shown:
        console.out.print(pages.race(raced))
    assert "litert-fp32 took no part: " in shown.get()
    with console.out.capture() as shown:  # nor does it stop the page of another
        command.inspect("tiny/onnx-int8", copied.root)
    assert "tiny/onnx-int8" in shown.get()
    with pytest.raises(KilnError, match="cannot be read as a card"):
        command.inspect("tiny/litert-fp32", copied.root)
    with pytest.raises(KilnError, match="cannot be read as a card"):
        copied.variants("tiny")


def test_what_could_not_even_get_a_card_is_left_out_with_its_reason(
    copied: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = dataclasses.replace(card_of(copied, INT8), variant=MIXED, status="failed", reason="No space left")
    monkeypatch.setattr(pipeline, "export", lambda *_: [failed])
    verdicts = {entry.card.variant: entry.verdict for entry in race(copied, "size").entries}
    assert verdicts[MIXED] == "failed: No space left"


def test_the_command_in_the_card_makes_what_is_in_the_card(copied: Store, timed: list[Measure]) -> None:
    before = card_of(copied, FAST).command
    assert before == "python -m export tiny --formats openvino --precisions int8 --force"
    made = before.removesuffix(" --force")
    won = race(copied, "throughput").winner
    assert won.command == f"{made} --max-accuracy-drop 0.3 --objective throughput --force"
    assert race(copied, "latency", 5.0).winner.command == f"{made} --max-accuracy-drop 5.0 --objective latency --force"
    held = within(card_of(copied, FAST), 0.05, copied.variant_dir(FAST))
    assert held and held.command == f"{made} --max-accuracy-drop 0.05 --force" and held.status == "below-floor"
    assert held.search and not any("candidate" in step for step in held.search) and held == card_of(copied, FAST)


def test_size_needs_no_stopwatch(copied: Store, timed: list[Measure]) -> None:
    raced = race(copied, "size")
    sizes = [card.size_bytes for card in copied.variants("tiny") if card.variant.format not in ("keras", "savedmodel")]
    assert raced.winner.size_bytes == min(sizes) and not timed


def test_int8_over_the_budget_asks_for_layers_back(copied: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    file(copied, dataclasses.replace(card_of(copied, INT8), validation_drop=1.5))
    asked = []
    true = pipeline.export

    def export(store: Store, variants: list[Variant], options: Options, *rest: Any) -> Any:
        if variants != [MIXED]:
            assert options.allowed_drop is None
            return true(store, variants, options, *rest)
        asked.append(options.allowed_drop)
        return []

    monkeypatch.setattr(pipeline, "export", export)
    race(copied, "size")
    assert asked == [0.3]
    file(copied, dataclasses.replace(card_of(copied, INT8), validation_drop=0.2))
    race(copied, "size")
    assert asked == [0.3]  # int8 keeps the budget by itself


def test_nothing_within_the_budget_says_what_comes_nearest(copied: Store, timed: list[Measure]) -> None:
    for card in copied.variants("tiny"):
        failed = card.variant == INT8  # so that there is no mixed one to be made
        drop = 2.0 if card.variant == FAST else 3.0
        file(copied, dataclasses.replace(card, validation_drop=drop, status="failed" if failed else "ok"))
    options = Options(allowed_drop=0.3)
    with pytest.raises(
        KilnError, match=r"by 0\.3 points at most and be served; nearest comes openvino-int8 with 2\.00"
    ):
        budget.find(copied, [FAST], options, "latency", lambda _: None, lambda: None)
    assert not timed


def test_an_objective_needs_a_budget(run: Run, store: Store) -> None:
    for words in (["--objective", "latency"], ["--precisions", "mixed"]):
        done = run("export", "tiny", *words, "--store", store.root)
        assert done.returncode == 1 and "--max-accuracy-drop" in done.stderr and "Traceback" not in done.stderr


def test_the_stopwatch_runs_the_variant(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.timing.SECONDS", 0.05)
    monkeypatch.setattr("export.timing.WARM_SECONDS", 0.05)
    request = Measure(str(store.variant_dir(INT8)), "model.onnx", "onnx", 32, 32, 4, 1)
    assert list(measure(request)) == ["4"] and 0 < measure(request)["4"] < 1000
    assert request.keras_path == str(store.variant_dir(INT8) / "model.onnx")


@pytest.mark.slow
def test_layers_are_given_back_by_the_command(run: Run, copied: Store) -> None:
    """A budget below what int8 loses makes a mixed variant with fewer layers in float than there are."""
    shutil.rmtree(copied.model_dir("tiny") / "variants")
    made = run("export", "tiny", "--formats", "onnx", "--precisions", "int8", "--store", copied.root)
    assert made.returncode == 0, made.stderr
    drop = card_of(copied, INT8).validation_drop
    assert drop is not None
    command = ["export", "tiny", "--formats", "onnx", "--precisions", "mixed", "--store", copied.root]
    done = run(*command, "--max-accuracy-drop", max(drop - 0.01, 0))
    card = card_of(copied, MIXED)
    assert done.returncode == (0 if card.status == "ok" else 1), done.stderr
    assert card.allowed_drop == max(drop - 0.01, 0) and card.settings["float_layers"] == card.search[-1]["float_layers"]
    assert any("damage_alone" in step for step in card.search) == (drop > 0)
    raced = run(
        "export", "tiny", "--formats", "onnx", "--max-accuracy-drop", 5, "--objective", "size", "--store", copied.root
    )
    assert raced.returncode == 0 and "is the best by size" in " ".join(raced.stdout.split())
