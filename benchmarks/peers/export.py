"""`python -m benchmarks.peers.export MODEL …`: our best variant against what Microsoft Olive and NNCF make.

Each peer quantizes the same fp32 ONNX from the same calibration images by its own defaults, in an environment of its
own (`make peers-export` builds it). All files are then proved on the whole test split and timed in turn, each in a
process of its own, through the same loader. A peer that cannot be installed or fails keeps its row with the reason.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import rich.box
import rich.markup
import rich.table
import typer

import catalog
import console
from catalog import KilnError, Store, plugin, servable
from export import parity, process
from export.timing import Measure
from export.worker import stratified

QUANTIZE = Path(__file__).with_name("quantize.py")
PEERS = {
    "olive": ("onnx", "model.onnx"),
    "nncf-onnx": ("onnx", "model.onnx"),
    "nncf-openvino": ("openvino", "model.xml"),
}
CALIBRATION_IMAGES = 1024  # as our export's default
ROUNDS = 3
WITHIN = 0.1  # points of top-1 that count as equally accurate

app = console.app("Compares the best variants with what Microsoft Olive and NNCF make of the same model.")


@dataclass(frozen=True)
class Contender:
    """One row: a file of ours or a peer's; a failed one has a reason and no figures. Times are medians over rounds."""

    model: str
    name: str
    ours: bool
    format: str
    folder: str
    file: str
    reason: str = ""
    top1: float | None = None
    size_bytes: int | None = None
    p50_ms: float | None = None  # batch 1
    images_per_s: float | None = None  # batch 32


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(help="models of the store, with their variants")],
    python: Annotated[Path, typer.Option(help="the interpreter of the peers' environment")],
    store: Annotated[Path | None, typer.Option(help="where models are [MODELKILN_STORE or artifacts]")] = None,
    out: Annotated[Path, typer.Option(help="where the figures are written")] = Path("reports/peers-export.json"),
    threads: Annotated[int, typer.Option(min=1, help="of every runtime")] = 2,
    timeout: Annotated[float, typer.Option(min=1.0, help="seconds for one peer's quantization")] = 3600.0,
) -> None:
    """Quantizes, proves, times and compares."""
    opened, rows = Store(store), list[Contender]()
    with tempfile.TemporaryDirectory(prefix="modelkiln-peers-") as scratch, console.progress() as bar:
        task = bar.add_task("comparing", total=len(models) * (len(PEERS) + 1))
        for model in models:
            rows += _contest(opened, model, Path(scratch), python, threads, timeout, lambda: bar.advance(task))
    catalog.write_atomic(out, _as_json(rows, threads))
    console.out.print(table(rows))
    for model in models:
        console.out.print(verdict([row for row in rows if row.model == model]), soft_wrap=True)


def _contest(
    store: Store, model: str, scratch: Path, python: Path, threads: int, timeout: float, done: Any
) -> list[Contender]:
    import numpy as np

    from training import data

    card = store.card(model)
    info = card.dataset
    loaded = data.load(info.name, root=info.root or None, validation=float(card.recipe.get("validation", 0.1)))
    if loaded.sha256 != info.sha256:
        raise KilnError(f"the data set {info.name} has changed since {model} was trained on it. Train the model again")
    calibration = scratch / f"{model}.npy"
    np.save(calibration, loaded.x_train[stratified(loaded.y_train, CALIBRATION_IMAGES, 0)])
    source, rows = _source(store, model), _ours(store, model)
    for peer in PEERS:
        rows.append(quantized(peer, model, source, calibration, scratch / f"{model}-{peer}", python, timeout))
        done()
    proved = [_proved(row, loaded, threads) for row in rows]
    timed = _timed(proved, info.height, info.width, threads)
    done()
    return timed


def _source(store: Store, model: str) -> Path:
    """The fp32 ONNX that everybody starts from.

    Raises:
        KilnError: It is not there.
    """
    path = store.model_dir(model) / "variants" / "onnx-fp32" / "model.onnx"
    if not path.is_file():
        raise KilnError(f"{model} has no onnx-fp32 in {store.root}; run: python -m export {model} --formats onnx")
    return path.resolve()


def _ours(store: Store, model: str) -> list[Contender]:
    cards = [card for card in store.variants(model) if card.status == "ok" and servable(card.variant)]
    return [
        Contender(model, c.variant.version, True, c.variant.format, str(store.variant_dir(c.variant).resolve()), c.file)
        for c in cards
    ]


def quantized(
    peer: str, model: str, source: Path, calibration: Path, out: Path, python: Path, timeout: float
) -> Contender:
    """What a peer makes, or why it makes nothing."""
    out.mkdir(parents=True)
    form, file = PEERS[peer]
    row = Contender(model, peer, False, form, str(out), file)
    command = [str(python), str(QUANTIZE), peer, str(source), str(calibration), str(out)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=out)
    except subprocess.TimeoutExpired:
        return dataclasses.replace(row, reason=f"took longer than {timeout:g} s")
    except OSError as error:
        return dataclasses.replace(row, reason=f"{python} cannot be run: {error.strerror}; run: make peers-export")
    if ended.returncode or not (out / file).is_file():
        lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        return dataclasses.replace(row, reason=(lines[-1] if lines else f"ended with {ended.returncode}")[:300])
    return row


def _proved(row: Contender, loaded: Any, threads: int) -> Contender:
    """With accuracy on the test split and size."""
    if row.reason:
        return row
    try:
        predict = plugin("export.formats", row.format).load(Path(row.folder, row.file), threads)
        answers = parity.in_batches(predict, loaded.x_test, 64, len(loaded.classes))
    except KilnError as error:
        return dataclasses.replace(row, reason=str(error))
    right = int((answers.argmax(1) == loaded.y_test).sum())
    files = [path for path in Path(row.folder).iterdir() if path.name != catalog.CARD]
    size = sum(path.stat().st_size for path in files)
    return dataclasses.replace(row, top1=round(100 * right / len(answers), 4), size_bytes=size)


def _timed(rows: list[Contender], height: int, width: int, threads: int) -> list[Contender]:
    """With times at batch 1 and 32: in every round all run once, there and back."""
    taken: dict[str, dict[int, list[float]]] = {row.name: {1: [], 32: []} for row in rows if not row.reason}
    for turn in range(ROUNDS):
        for row in rows if turn % 2 == 0 else reversed(rows):
            for batch, times in taken.get(row.name, {}).items():
                asked = Measure(row.folder, row.file, row.format, height, width, batch, threads)
                reply = process.ask(asked, 600.0)
                if reply.error:
                    raise KilnError(f"{row.model} {row.name} cannot be timed: {reply.error}")
                times.append(reply.times_ms[str(batch)])
    found = {name: {batch: statistics.median(t) for batch, t in at.items()} for name, at in taken.items()}
    return [
        dataclasses.replace(
            row, p50_ms=round(found[row.name][1], 4), images_per_s=round(32_000 / found[row.name][32], 1)
        )
        if row.name in found
        else row
        for row in rows
    ]


def verdict(rows: list[Contender]) -> str:
    """In a sentence, whether our best is as accurate as the peers' best within `WITHIN` and as fast.

    Best of the peers is their most accurate; ours is the fastest that is as accurate.
    """
    model = rows[0].model
    theirs = [row for row in rows if not row.ours and not row.reason]
    if not theirs:
        return f"{model}: no peer made anything to compare with"
    best = max(theirs, key=lambda row: (row.top1 or 0.0, -(row.p50_ms or 0.0)))
    able = [row for row in rows if row.ours and not row.reason and (row.top1 or 0.0) >= (best.top1 or 0.0) - WITHIN]
    if not able:
        return f"{model}: no variant of ours is within {WITHIN} points of {best.name}'s {best.top1:.2f}%"
    ours = min(able, key=lambda row: row.p50_ms or 0.0)
    fastest = min(theirs, key=lambda row: row.p50_ms or 0.0)
    ratio = (best.p50_ms or 0.0) / (ours.p50_ms or 1.0)
    return (
        f"{model}: ours is {ours.name} with {ours.top1:.2f}% in {ours.p50_ms:.4f} ms; most accurate of the peers is "
        f"{best.name} with {best.top1:.2f}% in {best.p50_ms:.4f} ms ({ratio:.2f} times "
        f"ours), fastest {fastest.name} with {fastest.top1:.2f}% in {fastest.p50_ms:.4f} ms"
    )


def table(rows: list[Contender]) -> rich.table.Table:
    """One row a contender, failed ones too."""
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("contender", no_wrap=True)
    for name in ("top-1", "p50 ms, batch 1", "images/s, batch 32", "bytes"):
        shown.add_column(name, justify="right", no_wrap=True)
    why = any(row.reason for row in rows)
    if why:
        shown.add_column("why", overflow="fold", min_width=20)
    for row in rows:
        figures = ["", "", "", ""]
        if row.top1 is not None and row.p50_ms is not None:
            figures = [f"{row.top1:.2f}%", f"{row.p50_ms:.4f}", f"{row.images_per_s:,.0f}", f"{row.size_bytes:,}"]
        shown.add_row(f"{row.model}/{row.name}", *figures, *([rich.markup.escape(row.reason)] if why else []))
    return shown


def _as_json(rows: list[Contender], threads: int) -> str:
    kept = [{k: v for k, v in dataclasses.asdict(row).items() if k not in ("folder", "file")} for row in rows]
    about = {"threads": threads, "created": catalog.now(), "commit": catalog.commit()}
    return json.dumps({**about, "rows": kept}, indent=2) + "\n"


if __name__ == "__main__":
    console.run(app)
