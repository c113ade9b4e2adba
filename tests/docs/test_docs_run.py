"""The commands of the documents are typed, and the worked examples used, in a copy of the checkout."""

from __future__ import annotations

import csv
import importlib.util
import json
import lzma
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from catalog import ROOT, KilnError, Store
from tests.docs import running
from tests.docs.blocks import Block, blocks

HOW_TO = ROOT / "docs" / "how-to"
SAMPLES = ROOT / "serving" / "page" / "samples" / "cifar10"


def test_the_short_examples_work_against_the_zoo(tmp_path: Path) -> None:
    root = running.checkout(tmp_path)
    found = [block for name in running.QUICK for block in running.runnable(ROOT / name)]
    ran = running.run(tmp_path, root, found, timeout=150)
    assert ran.status == 0, ran.ending
    assert ran.out.count('"predictions"') >= 3 + 32, ran.ending
    assert '"error"' not in ran.out
    answers = [json.loads(line) for line in (root / "answers.jsonl").read_text().splitlines()]
    assert [answer["file"] for answer in answers] == [str(path.relative_to(ROOT)) for path in sorted(SAMPLES.iterdir())]
    assert all(answer["model"] == "simcnn" for answer in answers)
    assert sum(answer["predictions"][0]["class"] == Path(answer["file"]).stem for answer in answers) > 3
    assert "simcnn/onnx-int8" in ran.out and "answers by default" in ran.out
    assert not (root / "zoo" / "simcnn" / "policy.json").exists()  # both were dry runs


def test_a_failing_command_fails_the_script(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\necho first\nfalse\necho second\n```\n")
    ran = running.run(tmp_path, tmp_path, running.runnable(page), timeout=60)
    assert ran.status == 1 and "first" in ran.out and "second" not in ran.out


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", running.LONG)
def test_a_page_works_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    root = running.checkout(tmp_path)
    ran = running.run(tmp_path, root, running.runnable(ROOT / page), timeout=1700)
    assert ran.status == 0, ran.ending
    SEEN[page](root, ran)


def _tutorial(root: Path, ran: running.Ran) -> None:
    store = Store(root / "build" / "tutorial")
    assert store.card("lenet").accuracy.low > 90
    made = {card.variant.version for card in store.variants("lenet")}
    assert made == {"keras-fp32", "litert-fp32", "litert-int8", "onnx-fp32", "onnx-int8"}
    policy = store.policy("lenet")
    assert policy is not None and policy.max_accuracy_drop == 1
    answer, _ = json.JSONDecoder().raw_decode(ran.out, ran.out.index('{"model"'))
    assert answer["model"] == "lenet" and len(answer["predictions"]) == 3 and answer["predictions"][0]["class"] == "7"
    assert re.search(r"^(litert|onnx)-\w+ 7 (0\.\d+|1\.0)", ran.out, re.MULTILINE), ran.ending
    assert (root / "build" / "tutorial-report" / "report.html").stat().st_size > 20_000


def _own_images(root: Path, ran: running.Ran) -> None:
    card = Store(root / "artifacts").card("shapes")
    assert card.dataset.classes == ["one", "two", "zero"] and card.dataset.root == "pictures"
    assert card.accuracy.top1 > 80
    rows = list(csv.DictReader((root / "answers.csv").read_text().splitlines()))
    assert len(rows) > 20 and not any(row["error"] for row in rows)
    assert sum(row["class_1"] == "two" for row in rows) > 0.7 * len(rows)
    assert '"model":"shapes"' in ran.out.replace(" ", "")


def _model(root: Path, ran: running.Ran) -> None:
    assert "tinynet" in ran.out
    store = Store(root / "build" / "try")
    assert store.card("tinynet").parameters == _module(page_file("add-a-model.md"), root).PARAMETERS
    assert store.card("tinynet").accuracy.top1 > 50
    assert {card.status for card in store.variants("tinynet")} == {"ok"}


def _format(root: Path, ran: running.Ran) -> None:
    store = Store(root / "build" / "try")
    cards = {card.variant.version: card for card in store.variants("lenet")}
    for precision in ("fp32", "int8"):
        packed, plain = cards[f"onnxz-{precision}"], cards[f"onnx-{precision}"]
        assert packed.status == "ok" and packed.accuracy == plain.accuracy and packed.weights == plain.weights
        assert packed.size_bytes < plain.size_bytes
    assert ran.out.count("onnxz-fp32") >= 2  # in the table of the export, and in what would be served


def _report(root: Path, ran: running.Ran) -> None:
    assert {"report.html", "report.md", "results.csv"} <= {path.name for path in (root / "build" / "report").iterdir()}


SEEN = dict(zip(running.LONG, (_tutorial, _own_images, _model, _format, _report), strict=True))


def page_file(page: str) -> Block:
    """The file that a how-to page shows whole."""
    (found,) = [block for block in blocks(HOW_TO / page) if block.title]
    return found


def _module(block: Block, folder: Path) -> ModuleType:
    path = folder / Path(block.title).name
    path.write_text(block.text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_worked_model_names_what_a_model_needs(tmp_path: Path) -> None:
    shown = page_file("add-a-model.md")
    assert shown.title == "training/models/tinynet.py"
    module = _module(shown, tmp_path)
    assert {"report", "cpu", "quick"} <= set(module.RECIPES) and module.PARAMETERS > 0 and callable(module.build)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_worked_format_loads_what_it_packs(precision: str, tmp_path: Path) -> None:
    shown = page_file("add-a-format.md")
    assert shown.title == "export/formats/onnxz.py"
    module = _module(shown, tmp_path)
    plain = ROOT / "zoo" / "lenet" / "variants" / f"onnx-{precision}" / "model.onnx"
    packed = tmp_path / f"model{module.SUFFIX}"
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(module.load(packed, 1)(images), module.onnx.load(plain, 1)(images))
    assert module.inside(packed).macs == module.onnx.inside(plain).macs
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(KilnError, match=r"model\.onnx\.xz is cut short"):
        module.load(packed, 1)
    packed.write_bytes(b"no archive")
    with pytest.raises(KilnError, match=r"model\.onnx\.xz cannot be unpacked"):
        module.load(packed, 1)
