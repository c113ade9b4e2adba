"""`python -m benchmarks.peers.export [MODEL …]`: our variants against what Microsoft Olive and NNCF make.

Each peer quantizes the same fp32 ONNX from the same calibration images by its own defaults, in an environment of its
own (`make peers-export` builds it). All files are then proved on the whole test split and timed in turn, each in a
process of its own, through the same loader. Whoever cannot be installed or fails keeps its row with the reason; what
was found of one model is written before the next begins.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import catalog
import console
from benchmarks import machine
from benchmarks.peers.exported import Contender, table, verdicts
from catalog import KilnError, Store, plugin, servable
from export import answers, parity, process
from export.timing import Measure
from export.worker import stratified

QUANTIZE = Path(__file__).with_name("quantize.py")
PEERS = {
    "olive": ("onnx", "model.onnx"),
    "nncf-onnx": ("onnx", "model.onnx"),
    "nncf-openvino": ("openvino", "model.xml"),
}
CALIBRATION_IMAGES = 1024  # as our export's default

app = console.app("Compares our variants with what Microsoft Olive and NNCF make of the same model.")


@app.command()
def compare(
    python: Annotated[Path, typer.Option(help="the interpreter of the peers' environment")],
    models: Annotated[
        list[str] | None, typer.Argument(help="models of the store, with their variants", show_default="all there are")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="where models are [MODELKILN_STORE or artifacts]")] = None,
    out: Annotated[Path, typer.Option(help="where the figures are written")] = Path("reports/peers-export.json"),
    threads: Annotated[int, typer.Option(min=1, help="of every runtime")] = 2,
    timeout: Annotated[float, typer.Option(min=1.0, help="seconds for one peer's quantization")] = 3600.0,
) -> None:
    """Quantizes, proves, times and compares."""
    opened, rows = Store(store), list[Contender]()
    models = list(dict.fromkeys(models or opened.models()))
    if not models:
        raise KilnError(f"there is no trained model in {opened.root}; run: make train-all export-all")
    about = {"threads": threads, "machine": dataclasses.asdict(machine.read()), "load_before": machine.load()}
    with tempfile.TemporaryDirectory(prefix="modelkiln-peers-") as scratch, console.progress() as bar:
        task = bar.add_task("comparing", total=len(models) * (len(PEERS) + 1))
        for turn, model in enumerate(models, 1):
            try:
                rows += _contest(opened, model, Path(scratch), python, threads, timeout, lambda: bar.advance(task))
            except KilnError as error:
                rows += [Contender(model, peer, False, form, "", "", str(error)) for peer, (form, _) in PEERS.items()]
            bar.update(task, completed=turn * (len(PEERS) + 1))
            catalog.write_atomic(out, _as_json(rows, about))
    console.out.print(table(rows))
    for model in models:
        for line in verdicts([row for row in rows if row.model == model]):
            console.out.print(line, highlight=False, markup=False, soft_wrap=True)


def _contest(
    store: Store, model: str, scratch: Path, python: Path, threads: int, timeout: float, done: Callable[[], None]
) -> list[Contender]:
    """The rows of one model.

    Raises:
        KilnError: It is not in the store, has no fp32 ONNX to start from, or its data set is not what it was.
    """
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
    told = {row.name: _answered(row, loaded, threads, _kept(store, row, threads)) for row in rows}
    proved = beside([_proved(row, told[row.name], loaded.y_test) for row in rows], told, loaded.y_test)
    timed = _timed(proved, info.height, info.width, threads)
    done()
    return timed


def _source(store: Store, model: str) -> Path:
    """The fp32 ONNX that everybody starts from.

    Raises:
        KilnError: It is not there, or was made of other weights.
    """
    path = store.model_dir(model) / "variants" / "onnx-fp32" / "model.onnx"
    cards = [card for card in store.variants(model) if card.variant.version == "onnx-fp32"]
    if not path.is_file() or not all(store.up_to_date(store.card(model), card) for card in cards):
        raise KilnError(
            f"{model} has no onnx-fp32 of its weights in {store.root}; run: python -m export {model} --formats onnx"
        )
    return path.resolve()


def _ours(store: Store, model: str) -> list[Contender]:
    """What was made of the weights as they are, and can be served."""
    parent = store.card(model)
    made = [card for card in store.variants(model) if store.up_to_date(parent, card)]
    cards = [card for card in made if card.status == "ok" and servable(card.variant)]
    folders = [str(store.variant_dir(card.variant).resolve()) for card in cards]
    return [
        Contender(model, c.variant.version, True, c.variant.format, folder, c.file, validation_drop=c.validation_drop)
        for c, folder in zip(cards, folders, strict=True)
    ]


def quantized(
    peer: str, model: str, source: Path, calibration: Path, out: Path, python: Path, timeout: float
) -> Contender:
    """What a peer makes, or why it makes nothing."""
    out.mkdir(parents=True)
    form, file = PEERS[peer]
    row = Contender(model, peer, False, form, str(out), file)
    interpreter = python.absolute()  # it runs elsewhere; a link stays one, it is how an environment knows itself
    command = [str(interpreter), str(QUANTIZE), peer, str(source), str(calibration), str(out)]
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


def _kept(store: Store, row: Contender, threads: int) -> Any:
    """What a variant of ours answered when it was exported, int64 `[N]`, if that is known; None if not."""
    if not row.ours:
        return None
    (card,) = (card for card in store.variants(row.model) if card.variant.version == row.name)
    known = answers.kept(store, card, plugin("export.formats", row.format).PACKAGES, threads)
    return None if known is None else known.top


def _answered(row: Contender, loaded: Any, threads: int, top: Any = None) -> Any:
    """The top classes of the test split, int64 `[N]`, asked for unless they are known; or why there are none."""
    if row.reason or top is not None:
        return row.reason or top
    try:
        predict = plugin("export.formats", row.format).load(Path(row.folder, row.file), threads)
        return parity.in_batches(predict, loaded.x_test, 64, len(loaded.classes)).argmax(1)
    except Exception as error:  # a foreign file may fail in any way
        return str(error)[:300] or type(error).__name__


def _proved(row: Contender, top: Any, labels: Any) -> Contender:
    """With accuracy on the test split and size, or the reason that stands in place of answers."""
    if isinstance(top, str):
        return dataclasses.replace(row, reason=top)
    files = [path for path in Path(row.folder).iterdir() if path.name != catalog.CARD]
    size = sum(path.stat().st_size for path in files)
    return dataclasses.replace(row, top1=round(100 * int((top == labels).sum()) / len(top), 4), size_bytes=size)


def beside(rows: list[Contender], told: dict[str, Any], labels: Any) -> list[Contender]:
    """The rows, ours with how many images it alone had right, and how many each peer alone had."""
    right = {name: top == labels for name, top in told.items() if not isinstance(top, str)}
    peers = [row.name for row in rows if not row.ours and row.name in right]

    def only(one: str, other: str) -> int:
        return int((right[one] & ~right[other]).sum())

    return [
        dataclasses.replace(row, beside={peer: (only(row.name, peer), only(peer, row.name)) for peer in peers})
        if row.ours and row.name in right
        else row
        for row in rows
    ]


def _timed(rows: list[Contender], height: int, width: int, threads: int) -> list[Contender]:
    """With times at batch 1 and 32, or why not."""
    asked = {
        row.name: [Measure(row.folder, row.file, row.format, height, width, batch, threads) for batch in (1, 32)]
        for row in rows
        if not row.reason
    }
    times, failed = process.raced(asked, 600.0)
    return [_with_times(row, times.get(row.name), failed.get(row.name, "")) for row in rows]


def _with_times(row: Contender, times: list[float] | None, failed: str) -> Contender:
    if failed:
        return dataclasses.replace(row, reason=failed, top1=None, size_bytes=None)
    if times is None:
        return row
    single, batch = times
    return dataclasses.replace(row, p50_ms=round(single, 4), images_per_s=round(32_000 / batch, 1))


def _as_json(rows: list[Contender], about: dict[str, Any]) -> str:
    kept = [{k: v for k, v in dataclasses.asdict(row).items() if k not in ("folder", "file")} for row in rows]
    about |= {"created": catalog.now(), "commit": catalog.commit(), "load_after": machine.load()}
    return json.dumps({**about, "rows": kept}, indent=2) + "\n"


if __name__ == "__main__":
    console.run(app)
