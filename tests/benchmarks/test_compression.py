"""What of the goals of compression a run reaches, and the page that tells it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import console
from benchmarks.judging import compare, goals
from benchmarks.measuring.candidates import candidates
from benchmarks.reporting import compression, stems
from benchmarks.results import Results, read
from catalog import ROOT, Accuracy, KilnError, Measurement, Store, Variant

AFTER_TRAINING, AWARE, PRUNED, SMALL, CHANNELS, ONE_BY_ONE = goals.GOALS


def near(value: float) -> Any:
    return pytest.approx(value)


def reached(goal: goals.Goal, found: Results, model: str) -> goals.Reached | None:
    (group,) = compare.groups(found)
    return goal.of(group, model)


def with_variant(found: Results, variant: Variant, like: Variant, rate: float = 1.0, **fields: object) -> Results:
    """The run with one more row: as another, but with these fields and `rate` times its images/s."""
    row = next(row for row in found.rows if row.variant == like)
    row = dataclasses.replace(row, variant=variant, **fields)  # type: ignore[arg-type]
    detail = found.details[str(like)]
    passes = [
        dataclasses.replace(one, images_per_s_at={size: rate * value for size, value in one.images_per_s_at.items()})
        for one in detail.passes
    ]
    details = found.details | {str(variant): dataclasses.replace(detail, passes=passes)}
    rows: list[Measurement] = sorted([*found.rows, row], key=lambda row: str(row.variant))
    return dataclasses.replace(found, rows=rows, details=details)


def test_a_goal_is_reached_by_accuracy_and_size_together(golden: Results) -> None:
    pruned = reached(PRUNED, golden, "simcnn")
    assert pruned == goals.Reached("prune80-onnx-fp32", near(-0.41), near(455 / 131), True)
    assert reached(PRUNED, golden, "lenet") is None
    small = reached(SMALL, golden, "mobilenetv2")
    assert small == goals.Reached("prune80-onnx-int8", near(-1.31), near(8420 / 941), False)


def test_sizes_are_held_against_a_float_file_that_has_every_weight(golden: Results) -> None:
    """A network restored from int8 has a float32 file that gzip packs to half: it must not hide what pruning saves."""
    plain = Variant("simcnn", "onnx", "fp32")
    full = next(row for row in golden.rows if row.variant == plain)
    rows = [dataclasses.replace(row, gzip_bytes=200_000) if row is full else row for row in golden.rows]
    restored = dataclasses.replace(golden, rows=rows)
    alone = reached(PRUNED, restored, "simcnn")
    assert alone and alone.factor == near(200 / 131) and not alone.enough
    aware = dataclasses.replace(plain, transform="quantize_aware")
    found = reached(PRUNED, with_variant(restored, aware, plain, gzip_bytes=455_000), "simcnn")
    assert found and found.factor == near(455 / 131) and found.enough


@pytest.mark.parametrize(("model", "change", "enough"), [("lenet", -0.12, True), ("mobilenetv2", -0.38, False)])
def test_int8_after_training_may_lose_a_little(golden: Results, model: str, change: float, enough: bool) -> None:
    """What loses more may have done so by chance: the interval of the change holds what was allowed."""
    chance = not enough
    assert reached(AFTER_TRAINING, golden, model) == goals.Reached("onnx-int8", near(change), None, enough, chance)


def test_int8_that_was_trained_as_such_may_lose_nothing(golden: Results) -> None:
    aware, plain = Variant("lenet", "onnx", "int8", "quantize_aware"), Variant("lenet", "onnx", "int8")
    for correct, enough in ((7231, True), (7230, False)):
        found = with_variant(golden, aware, plain, accuracy=Accuracy.of(correct, 10_000))
        found_so = reached(AWARE, found, "lenet")
        assert found_so and found_so.enough is enough


def test_of_several_chains_the_one_that_reaches_both_counts_or_else_the_nearest(golden: Results) -> None:
    plain = Variant("simcnn", "onnx", "int8")
    found = golden
    for transform, gzip, correct in (
        ("prune80", 40_000, 8290),
        ("prune80-quantize_aware", 45_600, 8180),
        ("prune80-cluster16-quantize_aware", 30_000, 8170),
    ):
        variant = dataclasses.replace(plain, transform=transform)
        found = with_variant(found, variant, plain, gzip_bytes=gzip, accuracy=Accuracy.of(correct, 10_000))
    best = reached(SMALL, found, "simcnn")
    assert best and best.enough and best.version == "prune80-onnx-int8"
    without = dataclasses.replace(found, rows=[row for row in found.rows if row.variant.version != best.version])
    nearest = reached(SMALL, without, "simcnn")
    assert nearest and nearest.version == "prune80-quantize_aware-onnx-int8" and not nearest.enough


def test_channels_are_held_against_the_int8_that_keeps_them_at_one_batch(golden: Results) -> None:
    plain, halved = Variant("simcnn", "onnx", "int8"), Variant("simcnn", "onnx", "int8", "channels50")
    found = with_variant(golden, halved, plain, rate=1.6)
    best = reached(CHANNELS, found, "simcnn")
    assert best and best.enough and best.factor == near(1.6)
    slow = reached(CHANNELS, with_variant(golden, halved, plain, rate=1.4), "simcnn")
    assert slow and not slow.enough
    (group,) = compare.groups(found)
    lines = goals.of_model(group, "simcnn")
    assert goals.faster_in_batches(lines["channels50", "int8"], lines["", "int8"]) == (near(1.6), 32)


def test_no_speed_is_reached_where_none_is_asked(golden: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reached(ONE_BY_ONE, golden, "simcnn") is not None
    monkeypatch.delitem(goals.INT8_FASTER, "simcnn")
    assert reached(ONE_BY_ONE, golden, "simcnn") is None


def test_the_page_tells_every_goal_of_every_model(golden: Results, tmp_path: Path) -> None:
    source = tmp_path / "results.json"
    golden.write(source)
    target = compression.put(golden, source, tmp_path)
    assert target.parent == tmp_path / "results" / "compression" and read(target) == golden
    text = (tmp_path / "docs" / "compression.md").read_text()
    asked = text.partition("## What was asked")[2].partition("\n## ")[0]
    assert asked.count("\n| ") == 2 + len(goals.GOALS) * 3
    assert "| simcnn | prune80-onnx-fp32 | −0.41 | 3.47× | 1 | yes |" in text
    assert "| mobilenetv2 | prune80-onnx-int8 | −1.31 | 8.95× | 1 | **no** |" in text
    assert "| lenet | – | – | – | – | – |" in text
    assert "| mobilenetv2 | onnx-int8 | −0.38 | – | 1 | **no**, or chance |" in text
    assert "| prune80 int8 | 88.81 | −1.31 " in text


def test_the_page_tells_what_makes_a_transform_again(golden: Results) -> None:
    pruned = str(Variant("mobilenetv2", "onnx", "int8", "prune80"))
    assert "```bash" not in compression.page([golden])  # an older run, which does not say
    command = "python -m export mobilenetv2 --transforms prune80 --formats onnx --precisions int8 --finetune-epochs 7"
    detail = dataclasses.replace(golden.details[pruned], command=command)
    text = compression.page([dataclasses.replace(golden, details=golden.details | {pruned: detail})])
    assert f"```bash\n{command}\n```" in text.partition("\n## mobilenetv2")[2].partition("\n## ")[0]


def test_of_several_runs_the_newest_that_measured_a_goal_counts(golden: Results, tmp_path: Path) -> None:
    plain, halved = Variant("simcnn", "onnx", "int8"), Variant("simcnn", "onnx", "int8", "channels50")
    facts = {name: facts for name, facts in golden.models.items() if name == "simcnn"}
    facts["simcnn"] = dataclasses.replace(facts["simcnn"], notes="restored from simcnn/onnx-int8")
    with_channels = with_variant(golden, halved, plain, rate=1.6)
    rows = [row for row in with_channels.rows if row.variant.model == "simcnn" and "prune" not in row.variant.transform]
    later = dataclasses.replace(with_channels, models=facts, rows=rows, created="2099-01-02T03:04:05Z")
    for found in (later, golden):  # in whatever order they come
        source = tmp_path / "results.json"
        found.write(source)
        compression.put(found, source, tmp_path)
    text = (tmp_path / "docs" / "compression.md").read_text()
    assert "Run 2: " in text and "2099-01-02, commit" in text and "simcnn: restored from simcnn/onnx-int8." in text
    assert "| simcnn | prune80-onnx-fp32 | −0.41 | 3.47× | 1 | yes |" in text
    assert "| simcnn | channels50-onnx-int8 |" in text and "1.60× | 2 | yes |" in text
    sections = text.partition("\n## simcnn")[2].partition("\n## ")[0]
    assert sections.count("| variant |") == 2 and "Run 1:" in sections
    assert text.partition("\n## lenet")[2].partition("\n## ")[0].count("| variant |") == 1


def test_networks_with_the_cifar_stem_have_a_section_of_their_own(
    golden: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {name: dataclasses.replace(known, stem="default") for name, known in golden.models.items()}
    found = dataclasses.replace(golden, models=facts)
    source = tmp_path / "results.json"
    golden.write(source)
    compression.put(golden, source, tmp_path)
    found.write(source)
    compression.put(found, source, tmp_path, stems.FOLDER)
    text = (tmp_path / "docs" / "compression.md").read_text()
    own = text.partition("\n## The CIFAR stem")[2]
    rows = [row for row in own.splitlines() if row.startswith("| mobilenetv2 |")]
    assert len(rows) == 1 and "| 1.80× | " in rows[0] and rows[0].endswith(("yes |", "**no** |"))
    assert "| lenet |" not in own  # of which none is asked
    speed = goals.of_model(compare.groups(found)[0], "mobilenetv2")["", "int8"].speed
    assert speed
    asked, told = goals.CIFAR_STEM_FASTER, ("yes |", "| **no**, or chance |", "| **no** |")
    for least, end in zip((speed.ratio, speed.high, speed.high + 0.01), told, strict=True):
        monkeypatch.setitem(asked, "mobilenetv2", least)
        (row,) = (row for row in stems.section(found) if row.startswith("| mobilenetv2 |"))
        assert row.endswith(end)
    fast = dataclasses.replace(
        golden, models={name: dataclasses.replace(known, stem="fast") for name, known in facts.items()}
    )
    assert not [row for row in stems.section(fast) if row.startswith("| mobilenetv2")]


def test_the_committed_page_is_that_of_the_committed_run() -> None:
    folder = ROOT / compression.FOLDER
    if not folder.is_dir():
        pytest.skip("no such run is committed yet")
    assert (ROOT / compression.PAGE).read_text(encoding="utf-8") == compression.committed()


def test_only_the_formats_that_are_asked_for_are_measured(tiny_store: Store) -> None:
    every = {one.variant.format for one in candidates(tiny_store, ["tiny"])}
    assert {"onnx", "litert"} < every
    assert {one.variant.format for one in candidates(tiny_store, ["tiny"], console.words(" litert,"))} == {"litert"}
    with pytest.raises(KilnError, match="no variants of tiny in tflite or openvino in"):
        candidates(tiny_store, ["tiny"], ["tflite", "openvino"])
