"""What exports leave in a model's folders while they run, and what is done about it when one was killed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        shutil.rmtree(path)


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
