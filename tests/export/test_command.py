"""The command: everything exported, proved and skipped the second time; killed, refused and crashed workers."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import catalog
from catalog import CARD, Store, Variant, VariantCard, plugin
from export import answers, pages, parity, pipeline, process, staging
from export.onnx import inside as onnx_inside
from export.options import Options
from export.worker import Convert
from tests.export import compressed as compressed_tiny
from tests.export.conftest import Run
from training import data

VARIANTS = pipeline.wanted("tiny", [], [])


def stamps(store: Store) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}


def test_all_formats_and_precisions_are_made_by_default(store: Store) -> None:
    made = [card.variant.version for card in store.variants("tiny")]
    assert {"keras-fp32", "litert-fp32", "onnx-fp32", "onnx-int8", "openvino-int8", "savedmodel-fp32"} <= set(made)
    assert made == sorted(variant.version for variant in VARIANTS)


def test_the_table_names_every_variant(first_run: subprocess.CompletedProcess[str]) -> None:
    assert first_run.returncode == 0
    for variant in VARIANTS:
        assert str(variant) in first_run.stdout
    assert "Traceback" not in first_run.stderr


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_card_vouches_for_its_file_and_keeps_its_floor(store: Store, variant: Variant) -> None:
    folder = store.variant_dir(variant)
    card = catalog.read_card(VariantCard, folder / CARD)
    store.verify(folder, card.files)
    assert card.status == "ok" and card.parity and card.parity.holds and card.accuracy
    assert card.size_bytes == sum((folder / name).stat().st_size for name in card.files) > card.gzip_bytes > 1000
    assert card.file in card.files
    assert card.parity.images == card.accuracy.images == card.dataset.test_images
    assert card.operators and card.settings and card.versions and card.seconds > 0
    assert card.parent_sha256 == store.card("tiny").weights_sha256
    assert str(store.root) not in (folder / CARD).read_text()
    assert abs(card.accuracy.top1 - store.card("tiny").accuracy.top1) <= 1.0


@pytest.mark.parametrize("variant", [v for v in VARIANTS if plugin("export.formats", v.format).SERVABLE], ids=str)
def test_figures_are_those_of_the_file(store: Store, variant: Variant) -> None:
    folder = store.variant_dir(variant)
    card = catalog.read_card(VariantCard, folder / CARD)
    form = plugin("export.formats", variant.format)
    predict = form.load(folder / card.file, 2)
    digits = data.load("digits")
    told = parity.in_batches(predict, digits.x_test, 32, 10)
    assert card.accuracy and int((told.argmax(1) == digits.y_test).sum()) == card.accuracy.correct
    np.testing.assert_allclose(told.sum(1), 1, atol=1e-5)
    kept = answers.kept(store, card, form.PACKAGES, 2)
    assert kept is not None and (kept.top == told.argmax(1)).all()
    np.testing.assert_allclose(kept.confidence, told.max(1), atol=1e-5)


def test_a_killed_export_leaves_the_old_variant_and_the_next_run_makes_nothing(run: Run, store: Store) -> None:
    before = stamps(store)
    command = ["export", "tiny", "--formats", "onnx", "--precisions", "fp32", "--force", "--store", str(store.root)]
    killed = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=catalog.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    staged = store.model_dir("tiny") / "variants" / f".onnx-fp32.{killed.pid}.tmp"
    deadline = time.monotonic() + 90
    while not staged.exists():
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert stamps(store).items() >= before.items()
    assert [card.variant.version for card in store.variants("tiny")] == sorted(v.version for v in VARIANTS)
    again = run("export", "tiny", "--store", store.root)
    assert again.returncode == 0 and "onnx-fp32" in again.stdout
    assert not list((store.model_dir("tiny") / "variants").glob(".*"))
    assert stamps(store) == before


def test_failures_have_their_rows_and_do_not_stop_the_others(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Store(tmp_path / "store")
    shutil.copytree(store.model_dir("tiny"), copy.model_dir("tiny"), ignore=shutil.ignore_patterns("variants"))
    monkeypatch.setattr(process, "WORKER", "tests.export.misbehaving_worker")
    variants = pipeline.wanted("tiny", ["litert", "onnx"], ["fp32"])
    cards = pipeline.export(copy, variants, Options(), begin=lambda _: None, done=lambda: None)
    litert, onnx = cards
    assert litert.status == "failed" and "SIGSEGV" in litert.reason and "about to fall over" in litert.reason
    assert (litert.file, litert.files, litert.parity) == ("", {}, None)
    assert onnx.status == "below-floor" and "differs by" in onnx.reason and onnx.parity and not onnx.parity.holds
    assert copy.variants("tiny") == cards
    parent = copy.card("tiny")
    assert pipeline.found(copy, parent, variants[0], Options()) is None  # a failed one is tried again
    assert pipeline.found(copy, parent, variants[1], Options()) == onnx


@pytest.fixture
def compressed(store: Store, tmp_path: Path) -> tuple[Store, dict[str, np.ndarray]]:
    """A store in which the chain `prune80+cluster16` of `tiny` has been made, and its dense kernels."""
    copy = Store(tmp_path / "store")
    shutil.copytree(store.model_dir("tiny"), copy.model_dir("tiny"), ignore=shutil.ignore_patterns("variants"))
    return copy, compressed_tiny.write(copy, "prune80+cluster16", share=0.8, values=15)


def test_zeros_and_values_of_a_compressed_variant_are_counted_in_its_file(
    compressed: tuple[Store, dict[str, np.ndarray]], store: Store, run: Run
) -> None:
    copy, kernels = compressed
    asked = ["--transforms", "prune80+cluster16", "--formats", "onnx", "--precisions", "fp32,int8"]
    done = run("export", "tiny", *asked, "--store", copy.root)
    cards = {card.variant.precision: card for card in copy.variants("tiny")}
    assert set(cards) == {"fp32", "int8"}, done.stderr
    zeros = sum(int((kernel == 0).sum()) for kernel in kernels.values())
    counts = {name: card.weights for name, card in cards.items()}
    assert counts["fp32"] and counts["int8"] and zeros >= 0.79 * 58_080
    assert counts["fp32"].zeros == zeros and counts["fp32"].types == {"float32": counts["fp32"].values}
    assert counts["int8"].zeros >= zeros and cards["int8"].settings["dense_by_tensor"]
    stored = onnx_inside.inside(copy.variant_dir(cards["int8"].variant) / "model.onnx").weights
    dense = {weights.shape: len(np.unique(weights)) for weights in stored if weights.ndim == 2}
    for kernel in kernels.values():
        assert dense[kernel.shape] == len(np.unique(kernel)) <= 16
    dense_int8 = catalog.read_card(VariantCard, store.variant_dir(Variant("tiny", "onnx", "int8")) / CARD)
    assert cards["int8"].gzip_bytes < dense_int8.gzip_bytes / 2


def test_a_variant_over_the_budget_fails_the_command_and_says_so(
    compressed: tuple[Store, dict[str, np.ndarray]], run: Run
) -> None:
    copy, _ = compressed
    shutil.rmtree(copy.model_dir("tiny") / "transforms")
    compressed_tiny.write(copy, "prune90", share=0.999, values=2)  # next to nothing is left
    asked = ["--transforms", "prune90", "--formats", "onnx", "--precisions", "fp32"]
    done = run("export", "tiny", *asked, "--max-accuracy-drop", 0, "--store", copy.root)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (row,) = [line for line in done.stdout.splitlines() if "tiny/prune90-onnx-fp32" in line]
    assert "over budget" in row and "1 variants are not to be had" in done.stderr
    (card,) = copy.variants("tiny")
    assert card.validation_drop and card.validation_drop > 0 == card.allowed_drop and card.status == "below-floor"


def test_all_models_are_exported_and_a_broken_one_costs_only_its_rows(run: Run, store: Store, tmp_path: Path) -> None:
    both = Store(tmp_path / "store")
    for name in ("tiny", "broken"):
        shutil.copytree(store.model_dir("tiny"), both.model_dir(name), ignore=shutil.ignore_patterns("variants"))
    card = both.card("tiny")
    catalog.write_atomic(both.model_dir("broken") / CARD, catalog.to_json(dataclasses.replace(card, model="broken")))
    (both.model_dir("broken") / "model.keras").write_bytes(b"altered")
    before: dict[str, int] = {}
    for _ in range(2):
        done = run("export", "all", "--formats", "onnx", "--precisions", "fp32,fp16", "--store", both.root)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        told = {tuple(line.split()[:2]) for line in done.stdout.splitlines() if "/onnx-" in line}
        kinds = ("fp32", "fp16")
        assert told == {(f"tiny/onnx-{k}", "ok") for k in kinds} | {(f"broken/onnx-{k}", "failed") for k in kinds}
        assert "2 of 4 variants are not to be had" in done.stderr and "model.keras is corrupt" in done.stderr
        assert not before or before == stamps(both)
        before = stamps(both)


def test_a_worker_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", "tests.export.misbehaving_worker")
    request = Convert("model.keras", str(tmp_path), str(tmp_path), "keras", "fp32", 1)
    started = time.monotonic()
    assert process.ask(request, timeout=3).error == "took longer than 3 s"
    assert time.monotonic() - started < 60  # Keras is imported first, and it would hang for ten times as long


def test_a_child_that_a_worker_leaves_behind_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", "tests.export.misbehaving_worker")
    request = Convert("model.keras", str(tmp_path), str(tmp_path), "openvino", "fp32", 1)
    error = process.ask(request, timeout=60).error
    child = int(error.rpartition("left ")[2])
    deadline = time.monotonic() + 5  # it is dead at once; whoever inherited it has yet to bury it
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_changed_weights_settings_or_files_make_a_variant_due(store: Store) -> None:
    parent, options, variant = store.card("tiny"), Options(), Variant("tiny", "onnx", "int8")
    assert pipeline.found(store, parent, variant, options) is not None
    assert pipeline.found(store, dataclasses.replace(parent, weights_sha256="0"), variant, options) is None
    assert pipeline.found(store, parent, variant, dataclasses.replace(options, calibration_images=64)) is None
    assert pipeline.found(store, parent, variant, dataclasses.replace(options, force=True)) is None
    path = store.variant_dir(variant) / "model.onnx"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1])
        assert pipeline.found(store, parent, variant, options) is None
    finally:
        path.write_bytes(content)


def test_sweep_keeps_what_a_living_process_stages_and_puts_back_what_was_set_aside(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".a.{dead.pid}.tmp", f".b.{os.getpid()}.tmp", f".c.{dead.pid}.old", f".d.{dead.pid}.old", "d"):
        (tmp_path / name).mkdir()
    staging.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f".b.{os.getpid()}.tmp", "c", "d"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], "no trained model 'nosuch'"),
        (["tiny", "--formats", "onxn"], "did you mean 'onnx'"),
        (["tiny", "--precisions", "int3"], "no precision 'int3'"),
        (["inspect", "tiny/onnx-int3"], "tiny/onnx-int8"),
        (["../etc"], "cannot name a model"),
    ],
)
def test_mistakes_get_one_sentence(run: Run, store: Store, arguments: list[str], words: str) -> None:
    done = run("export", *arguments, "--store", store.root)
    assert done.returncode == 1 and words in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_inspect_prints_the_card(run: Run, store: Store) -> None:
    done = run("export", "inspect", "tiny/onnx-int8", "--store", store.root)
    assert done.returncode == 0
    for word in ("QLinearConv", "95% interval", "calibration images 1024", "top class agrees", "opset 17"):
        assert word in " ".join(done.stdout.split())


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB")])
def test_bytes_in_words(count: int, words: str) -> None:
    assert pages.bytes_in_words(count) == words
