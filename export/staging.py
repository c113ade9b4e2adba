"""What exports leave in a model's folders while they run, and what is done about it when one was killed."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import console

_STAGED = re.compile(r"\.(?P<name>[a-z0-9][a-z0-9_.-]*)\.(?P<pid>\d+)\.(?P<kind>tmp|old)")


@contextmanager
def scratch_in(folder: Path) -> Iterator[Path]:
    """A folder for what the workers share; `sweep` removes it if this process cannot."""
    path = folder.resolve() / f".scratch.{os.getpid()}.tmp"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def alone(lock: Path, what: str) -> Iterator[bool]:
    """One process at a time does `what`; the others wait, and say for which. Yields whether this one had to wait.

    The file is removed when it is done; whoever waited for a file that is gone takes the lock of the new one. A killed
    process lets go too, and what it leaves of the file does no harm.
    """
    waited = False
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                console.err.print(f"waiting for process {file.read() or '?'}, which {what}", soft_wrap=True)
                waited = True
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is(file.fileno(), lock):
                continue
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield waited
            finally:
                lock.unlink(missing_ok=True)
            return


def _is(handle: int, path: Path) -> bool:
    """Whether the open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> None:
    """Removes what killed exports left of their staged folders, and puts back what one of them had set aside."""
    for path in folder.glob(".*"):
        match = _STAGED.fullmatch(path.name)
        if match is None or _alive(int(match["pid"])):
            continue
        if match["kind"] == "old" and not (folder / match["name"]).exists():
            path.rename(folder / match["name"])
        else:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("*/.*.tmp"):  # a card that was being written anew
        if path.is_file() and (match := _STAGED.fullmatch(path.name)) and not _alive(int(match["pid"])):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
