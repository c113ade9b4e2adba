"""What goes wrong with one variant, transform or model costs no other, and every one keeps its row."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import typer.testing

import catalog
import console
from catalog import CARD, Store, Variant, VariantCard
from export import __main__ as command
from export import pipeline, process, staging, transforming
from export.options import Options
from export.timing import Measure
from export.transforms import ITS_OWN, MODEL, chain
from export.tuning import apply
from export.tuning.apply import Transform
from export.worker import ANSWERS, Convert, Prepare, Reply
from tests.export.test_transforms import Workers


@pytest.fixture
def store(trained: Store, tmp_path: Path) -> Store:
    """`tiny` alone, in a store of one's own."""
    for name in (MODEL, CARD):
        catalog.write_atomic(tmp_path / "store" / "tiny" / name, (trained.model_dir("tiny") / name).read_bytes())
    return Store(tmp_path / "store")


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for the workers: all goes well but where the fixture's values, by a word in the path, say otherwise."""
    wrong: dict[str, Any] = {}
    transforms = Workers()

    def ask(request: Any, timeout: float, scratch: Any = None, watch: Any = lambda: None) -> Reply:
        if isinstance(request, Transform):
            return transforms.ask(request, timeout, scratch, watch)
        kind = f"{type(request).__name__} {request.keras_path} {getattr(request, 'precision', '')}"
        for words, what in wrong.items():
            if all(word in kind for word in words.split()):
                if isinstance(what, OSError):
                    raise what
                return Reply(what)
        if isinstance(request, Convert):
            Path(request.folder, "model.onnx").write_text("made")
            Path(request.prepared, ANSWERS).write_bytes(b"")
            return Reply(file="model.onnx")
        assert isinstance(request, Prepare)
        return Reply()

    monkeypatch.setattr(process, "ask", ask)
    return wrong


def export(store: Store, transforms: list[str], precisions: tuple[str, ...] = ("fp32", "fp16")) -> list[VariantCard]:
    variants = [Variant("tiny", "onnx", precision, name) for name in transforms for precision in precisions]
    count: list[int] = []
    cards = pipeline.export(store, variants, Options(), lambda _: None, lambda: count.append(1))
    assert [card.variant for card in cards] == variants and len(count) == len(variants)
    return cards


def test_a_group_that_cannot_be_prepared_fails_alone(store: Store, ask: dict[str, Any]) -> None:
    export(store, [""], ("fp32",))
    ask["Prepare prune80"] = "the data set has changed"
    cards = export(store, ["", "prune80", "prune90"])
    assert [card.status for card in cards] == ["ok"] * 2 + ["failed"] * 2 + ["ok"] * 2
    assert all("cannot be exported: the data set has changed" in card.reason for card in cards[2:4])
    assert store.variants("tiny") == sorted(cards, key=lambda card: card.variant.version)  # failed ones have their card


@pytest.mark.parametrize("place", ["Prepare prune80", "Convert prune80 fp32"])
def test_what_the_system_refuses_costs_one_row_and_names_no_folder(
    store: Store, ask: dict[str, Any], place: str
) -> None:
    ask[place] = OSError(errno.ENOSPC, "No space left on device", str(store.root / "scratch" / "images.npy"))
    cards = export(store, ["", "prune80", "prune90"])
    failed = {card.variant.version: card.reason for card in cards if card.status == "failed"}
    both = {"prune80-onnx-fp32", "prune80-onnx-fp16"}
    assert set(failed) == (both if "Prepare" in place else {"prune80-onnx-fp32"})
    assert set(failed.values()) == {"images.npy: No space left on device"}


def test_without_a_place_to_make_them_in_every_variant_has_its_row(
    store: Store, ask: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> Any:
        raise OSError(errno.EROFS, "Read-only file system", str(folder))

    monkeypatch.setattr(pipeline, "scratch_in", refuse)
    assert {card.reason for card in export(store, ["", "prune80"])} == {"variants: Read-only file system"}
    assert not store.variants("tiny")


def test_the_table_comes_whatever_fails(store: Store, ask: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> tuple[int, dict[str, str]]:
        words = ["model", "tiny", "--formats", "onnx", "--precisions", "fp32,fp16", "--store", str(store.root)]
        monkeypatch.setenv("COLUMNS", "200")
        with console.out.capture() as shown:
            done = typer.testing.CliRunner().invoke(command.app, words)
        rows = re.findall(r"tiny/onnx-(\w+) +(\w+)", shown.get())
        return done.exit_code, dict(rows)

    ask["Prepare"] = OSError(errno.ENOSPC, "No space left on device")
    assert told() == (1, {"fp32": "failed", "fp16": "failed"})
    del ask["Prepare"]
    ask["Convert fp16"] = OSError(errno.EIO, "Input/output error")
    assert told() == (1, {"fp32": "ok", "fp16": "failed"})
    monkeypatch.setattr(pipeline, "sweep", lambda folder: os.listdir(store.root / "nothing"))
    assert told() == (1, {"fp32": "failed", "fp16": "failed"})


# --- one process at a time

HOLD = """
import sys, time
from pathlib import Path
from export.staging import alone
with alone(Path(sys.argv[1]), "holds it"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_transform_that_another_process_makes_is_waited_for_and_taken(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoints are shared: without the wait, the one that ends first takes them from under the other."""
    card, workers = store.card("tiny"), Workers()
    monkeypatch.setattr(process, "ask", workers.ask)
    lock = store.transform_dir("tiny", ".prune80.lock")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)],
        cwd=catalog.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin and holder.stdout
    try:
        assert holder.stdout.readline() == b"held\n"
        shown: list[str] = []
        monkeypatch.setattr(console.err, "print", lambda text, **_: shown.append(text))
        made: list[Any] = []

        def make(force: bool) -> None:
            made.append(transforming.make(store, card, chain("prune80"), ITS_OWN, force, lambda *_: None))

        waiting = threading.Thread(target=make, args=[False])
        waiting.start()
        deadline = time.monotonic() + 30
        while not shown:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert shown == [f"waiting for process {holder.pid}, which makes prune80 of tiny"] and not workers.asked
        # what the other process was at is done: what it made is taken
        with monkeypatch.context() as unlocked:
            unlocked.setattr(transforming, "alone", lambda *_: staging.scratch_in(store.root / "unlocked"))
            make(True)
        holder.stdin.close()
        waiting.join(30)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert len(workers.asked) == 1 and len(made) == 2 and made[0] == made[1]
    assert not list(store.transform_dir("tiny", "").glob(".*"))


def test_the_lock_of_a_killed_process_is_free_and_a_removed_one_is_none(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("12345")  # as a killed one leaves it
    with staging.alone(lock, "was killed") as waited:
        assert not waited and lock.read_text() == str(os.getpid())
    assert not lock.exists()
    order: list[str] = []

    def enter(name: str) -> None:
        with staging.alone(lock, "is in a thread"):
            order.append(name)
            time.sleep(0.05)
            order.append(name)

    threads = [threading.Thread(target=enter, args=[name]) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order[::2] == order[1::2] and sorted(order[::2]) == ["a", "b", "c", "d"]


def test_a_transform_waits_for_an_orphan_that_saves_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[bool] = []
    monkeypatch.setattr(apply, "_transform", lambda *_: entered.append(True))
    request = object.__new__(Transform)
    object.__setattr__(request, "checkpoints", str(tmp_path / "state"))
    orphan = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(orphan, fcntl.LOCK_EX)
    waiting = threading.Thread(target=apply.transform, args=[request, apply.Stop()])
    waiting.start()
    time.sleep(0.2)
    assert not entered
    os.close(orphan)
    waiting.join(10)
    assert entered == [True]


def test_checkpoints_that_are_gone_do_no_harm(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers()

    def ask(request: Any, *rest: Any, **named: Any) -> Reply:
        reply = workers.ask(request, *rest, **named)
        for path in sorted(Path(request.checkpoints).parent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        Path(request.checkpoints).parent.rmdir()
        return reply

    monkeypatch.setattr(process, "ask", ask)
    source = transforming.make(store, store.card("tiny"), chain("prune80"), ITS_OWN, False, lambda *_: None)
    assert source.keras_path.is_file()


def test_a_race_counts_the_quickest_round_of_each_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round that the machine was busy in slows one contender alone; it once made a runtime look half as fast."""
    asked = {name: [Measure("", name, "onnx", 8, 8, batch, 1) for batch in (1, 32)] for name in ("ours", "theirs")}
    times = iter([1.0, 20.0, 3.0, 30.0, 3.1, 33.0, 9.0, 19.0, 8.0, 21.0, 2.9, 90.0])  # ours, theirs; theirs, ours; …
    order: list[str] = []

    def ask(request: Measure, timeout: float) -> Reply:
        return Reply(times_ms={str(request.batch): next(times)})

    monkeypatch.setattr(process, "ask", ask)
    told, failed = process.raced(asked, 1.0, order.append)
    assert told == {"ours": [1.0, 19.0], "theirs": [2.9, 30.0]} and not failed
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
