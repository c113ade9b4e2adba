"""The README's table: made from results, and in the committed README exactly what the committed results give."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results, scale
from benchmarks.judging import compare
from benchmarks.reporting import publish
from catalog import ROOT, KilnError

GOLDEN = Path(__file__).with_name("golden") / "results.json"


def test_publishing_writes_the_copy_the_pictures_and_the_section(tmp_path):
    (tmp_path / "README.md").write_text(f"before\n{publish.BEGIN}\nearlier figures\n{publish.END}\nafter\n")
    found = results.read(GOLDEN)
    target = publish.publish(found, GOLDEN, tmp_path)
    assert target.read_bytes() == GOLDEN.read_bytes() and target.parent == tmp_path / "results"
    assert target.name == "cifar10-intel-xeon-2.50ghz-2cores-onnxruntime1.31.1-2026-11-20.json"
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "earlier figures" not in text
    assert "| mobilenetv2 | **onnx-int8** | 89.74 | −0.38 (−0.60 to −0.16) |" in text
    page = (tmp_path / "docs" / "results.md").read_text()
    measured = [line for group in compare.groups(found) for line in group.lines if line.measured]
    assert all(f"{line.row.variant.version}" in page for line in measured) and page.count("\n| ") > text.count("\n| ")
    for picture in ("report.png", "report-dark.png"):
        assert (tmp_path / "docs" / "images" / picture).read_bytes().startswith(b"\x89PNG")


def test_what_a_clone_serves_and_what_the_words_mean_stand_with_the_table():
    found = results.read(GOLDEN)
    for text, guide in (
        (publish.section(found), "docs/how-to/read-the-report.md"),
        (publish.page(found), "how-to/read-the-report.md"),
    ):
        assert "**A fresh clone serves only onnx-fp32 and onnx-int8** of these models" in text
        assert "`python -m export lenet`" in text and f"]({guide})" in text
        for term in ("float parent", "servable", "p50"):
            assert f"*{term}*: " in text
        assert "- **mobilenetv2**: Take onnx-int8: " in text.partition("| model |")[0]


def test_models_of_which_a_clone_serves_less_are_named():
    both = ["onnx-int8", "onnx-fp32"]
    assert publish.served({"a": both, "b": both}) == "onnx-fp32 and onnx-int8** of these models"
    assert publish.served({"c": ["onnx-int8"], "a": both, "d": [], "b": both}) == (
        "onnx-fp32 and onnx-int8** of these models, of c only onnx-int8, of d none"
    )


def test_a_row_that_another_of_its_model_beats_in_everything_is_left_out_of_the_readme():
    found = results.read(GOLDEN)
    shown = publish.section(found)
    assert "| mobilenetv2 | keras-fp32 |" not in shown and "| mobilenetv2 | onnx-fp32 |" in shown
    (group,) = compare.groups(found)
    for model in group.models:
        chosen = group.chosen(model)
        assert chosen and f"| {model} | **{chosen.row.variant.version}** |" in shown


def test_the_readmes_picture_shows_the_rows_of_its_table(tmp_path, monkeypatch):
    drawn = list[compare.Group]()

    def png(group: compare.Group, theme: Any) -> bytes:
        drawn.append(group)
        return b"a picture"

    monkeypatch.setattr("benchmarks.reporting.plots.png", png)
    (tmp_path / "README.md").write_text(f"{publish.BEGIN}\n{publish.END}\n")
    found = results.read(GOLDEN)
    publish.publish(found, GOLDEN, tmp_path)
    table = [row.split(" | ") for row in publish.section(found).splitlines() if row.startswith("| ")][2:]
    named = [f"{row[0].strip('| ')}/{row[1].strip('*')}" for row in table]
    assert [[str(line.row.variant) for line in group.lines] for group in drawn] == [named, named]
    (every,) = compare.groups(found)
    assert len(named) < len(every.lines)
    assert all(group.parent_top1(model) == every.parent_top1(model) for group in drawn for model in every.models)


def test_a_variant_below_its_floor_is_no_row_of_the_readme_and_on_no_front():
    found = results.read(GOLDEN)
    beaten, best = "mobilenetv2/onnx-int8", "mobilenetv2/prune80-onnx-int8"
    tiny: dict[str, Any] = {"p50_ms": 0.01, "size_bytes": 10}
    rows = [dataclasses.replace(row, **tiny) if str(row.variant) == best else row for row in found.rows]
    found = dataclasses.replace(found, rows=rows)
    lines = {str(line.row.variant): line for group in compare.groups(found) for line in group.lines}
    assert lines[best].row.status == "below-floor" and not lines[best].pareto
    assert "accuracy/latency" in lines[beaten].pareto
    assert "| prune80-onnx-int8 |" not in publish.section(found) and "| prune80-onnx-int8 |" in publish.page(found)


def test_what_the_report_warns_of_stands_above_the_published_tables():
    idle = results.read(GOLDEN)
    assert "> " not in publish.section(idle) + publish.page(idle)
    busy = dataclasses.replace(idle, load_before=[3.6, 1.0, 0.5], steal_percent=4.0)
    told = "> Measured beside other guests of the host and on a machine busy with other work: "
    assert told in publish.section(busy).partition("| model |")[0]
    assert "busy with other work (load average 3.6 before" in publish.page(busy).partition("## lenet")[0]


def test_a_readme_without_its_marks_is_an_error_and_stays(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(KilnError, match="lacks the line"):
        publish.publish(results.read(GOLDEN), GOLDEN, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("part", ["page", "section", "scale"])
def test_what_cannot_be_made_leaves_everything_as_it_was(tmp_path, monkeypatch, part):
    def broken(*_):
        raise OverflowError(part)

    (tmp_path / "README.md").write_text(f"before\n{publish.BEGIN}\nearlier\n{publish.END}\nafter\n")
    monkeypatch.setattr(*((scale, "text") if part == "scale" else (publish, part)), broken)
    with pytest.raises(OverflowError):
        publish.publish(results.read(GOLDEN), GOLDEN, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"] and "earlier" in (
        tmp_path / "README.md"
    ).read_text()


def test_the_committed_readme_says_what_the_newest_committed_results_say():
    text = (ROOT / "README.md").read_text()
    section = text.partition(publish.BEGIN)[2].partition(publish.END)[0]
    newest = results.newest(ROOT / "results")
    found = results.read(newest)
    assert newest.name == publish.name(found)
    assert (ROOT / "docs" / "results.md").read_text() == publish.page(found)
    assert section.strip() == publish.section(found)
