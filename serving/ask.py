"""`python -m serving predict`: many files, a few at a time, their answers in order as CSV or JSON lines."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import console
from catalog import KilnError
from serving.client import Answer, Client, ServiceError

FORMATS = ("csv", "json")


@dataclass(frozen=True)
class Outcome:
    """What became of a file: an answer, or the sentence that says why there is none."""

    path: Path
    answer: Answer | None
    error: str = ""


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files that were named, those in a folder that was named included.

    Raises:
        KilnError: One is not there, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
            if not inside:
                raise KilnError(f"{path} holds no PNG, JPEG or WebP; name files or another folder")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise KilnError(f"{path} is not there; name image files or folders of them")
    return found


def ask(client: Client, files: Sequence[Path], model: str, version: str, top: int, at_a_time: int) -> Iterator[Outcome]:
    """An outcome a file, in the order of the files."""

    def one(path: Path) -> Outcome:
        try:
            return Outcome(path, client.predict(path, model=model, version=version, top=top))
        except ServiceError as error:
            if error.status in (0, 401, 404):  # of the service, not of this image
                raise
            return Outcome(path, None, error.error)
        except OSError as error:
            return Outcome(path, None, f"cannot be read: {error.strerror}")

    with ThreadPoolExecutor(at_a_time) as pool:
        yield from pool.map(one, files)


def write(outcomes: Iterator[Outcome], total: int, format: str, top: int, out: TextIO) -> int:
    """Writes each outcome as it comes, under a progress bar on standard error; returns how many failed."""
    failed = 0
    line = _csv(out, top) if format == "csv" else _json(out)
    with console.progress() as bar:
        task = bar.add_task("predicting", total=total)
        for outcome in outcomes:
            line(outcome)
            failed += outcome.answer is None
            bar.advance(task)
    return failed


def _csv(out: TextIO, top: int) -> Any:
    ranks = [f"{word}_{rank}" for rank in range(1, top + 1) for word in ("class", "probability")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["file", "model", "version", *ranks, "total_ms", "error"])

    def line(outcome: Outcome) -> None:
        answer = outcome.answer
        if answer is None:
            writer.writerow([outcome.path, "", "", *[""] * len(ranks), "", outcome.error])
            return
        told = [value for prediction in answer.predictions for value in (prediction.name, prediction.probability)]
        told += [""] * (len(ranks) - len(told))
        writer.writerow([outcome.path, answer.model, answer.version, *told, answer.milliseconds.get("total", ""), ""])

    return line


def _json(out: TextIO) -> Any:
    def line(outcome: Outcome) -> None:
        told: dict[str, Any] = {"file": str(outcome.path)}
        if outcome.answer is None:
            told["error"] = outcome.error
        else:
            answer = outcome.answer
            told |= {"model": answer.model, "version": answer.version, "milliseconds": answer.milliseconds}
            told["predictions"] = [{"class": p.name, "probability": p.probability} for p in answer.predictions]
        out.write(json.dumps(told, ensure_ascii=False) + "\n")

    return line


def run(
    paths: Sequence[Path],
    url: str,
    token: str,
    model: str,
    version: str,
    top: int,
    format: str,
    out: Path | None,
    jobs: int,
) -> int:
    """The whole command; returns how many files failed.

    Raises:
        KilnError: A path or option is wrong, or the service cannot be asked at all.
    """
    if format not in FORMATS:
        raise KilnError(f"--format is {format!r}; it takes one of: {', '.join(FORMATS)}")
    files = files_of(paths)
    try:
        with Client(url, token=token) as client:
            outcomes = ask(client, files, model, version, top, jobs)
            if out is None:
                return write(outcomes, len(files), format, top, sys.stdout)
            with out.open("w", encoding="utf-8", newline="") as file:
                return write(outcomes, len(files), format, top, file)
    except ServiceError as error:
        hint = " Start it: bentoml serve" if error.code == "unreachable" else ""
        raise KilnError(f"{error.error}.{hint}") from error
