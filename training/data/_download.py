"""Fetching one pinned archive: by one process, resumed where it broke off, checked, unpacked whole or not at all."""

from __future__ import annotations

import fcntl
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import rich.progress

import console
from catalog import KilnError, sha256_of, staged_folder

_TRIES = 3


@dataclass(frozen=True)
class Archive:
    """A .tar.gz whose `members` lie in `folder`; anything else in it but `optional` is refused."""

    url: str
    size_bytes: int
    sha256: str
    folder: str
    members: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Its name on disk."""
        return self.url.rpartition("/")[2]


def fetch(archive: Archive, cache: Path) -> Path:
    """The unpacked folder `cache/archive.folder`, downloading `cache/archive.file` unless either already lies there.

    Raises:
        KilnError: No network, a broken or altered download, a member that does not belong; says what to put where.
        OSError: `cache` cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    folder, whole = cache / archive.folder, cache / archive.file
    with _alone(cache / f".{archive.file}.lock"):
        if folder.is_dir():
            return folder
        if not whole.is_file():
            _download(archive, whole)
        elif sha256_of(whole) != archive.sha256:
            raise KilnError(f"{whole} has another sha256 than {archive.sha256}; remove it. {_by_hand(archive, cache)}")
        unpack(archive, whole, folder)
    return folder


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; the others wait, and say so."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.err.print(f"waiting for another process that fetches into {lock.parent}", soft_wrap=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _by_hand(archive: Archive, cache: Path) -> str:
    return f"To bring it by hand, put {archive.file} ({archive.url}, {archive.size_bytes:,} bytes) into {cache}"


def _download(archive: Archive, whole: Path) -> None:
    """Fills `whole.part` from where it ends, starts over if it is not the file it should be, and renames it.

    Raises:
        KilnError: It did not come in a few tries.
    """
    import httpx

    part, reason = whole.with_name(whole.name + ".part"), ""
    for _ in range(_TRIES):
        try:
            with httpx.Client(follow_redirects=True, timeout=30) as client, _bar(archive) as advance:
                _stream(client, archive, part, advance)
        except httpx.HTTPError as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if not part.is_file() and isinstance(error, httpx.ConnectError | httpx.HTTPStatusError):
                break
            continue
        if part.stat().st_size < archive.size_bytes:
            reason = "the connection ended early"
        elif sha256_of(part) == archive.sha256:
            part.replace(whole)
            return
        else:
            part.unlink()
            reason = f"what came is not the file with sha256 {archive.sha256}"
            console.err.print("the download is not the file it should be; starting it over", style="yellow")
    kept = "; what came is kept" if part.is_file() else ""
    raise KilnError(f"{archive.url} could not be downloaded ({reason}){kept}. {_by_hand(archive, whole.parent)}")


def _stream(client: Any, archive: Archive, part: Path, advance: Any) -> None:
    """Appends what one connection gives of what `part` lacks."""
    have = part.stat().st_size if part.is_file() else 0
    if have >= archive.size_bytes:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    with client.stream("GET", archive.url, headers=headers) as response:
        response.raise_for_status()
        resumed = response.status_code == 206
        advance(have if resumed else 0)
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                advance(len(chunk))


@contextmanager
def _bar(archive: Archive) -> Iterator[Any]:
    columns = (rich.progress.DownloadColumn(), rich.progress.TransferSpeedColumn(), rich.progress.TimeRemainingColumn())
    with rich.progress.Progress("{task.description}", rich.progress.BarColumn(), *columns, console=console.err) as bar:
        task = bar.add_task(archive.file, total=archive.size_bytes)
        yield lambda count: bar.advance(task, count)


def unpack(archive: Archive, file: Path, target: Path) -> None:
    """Unpacks the expected members, plain files only, into `target`, which appears whole.

    Raises:
        KilnError: The archive is damaged, lacks a member, or holds one that does not belong.
    """
    expected = {f"{archive.folder}/{name}": name for name in (*archive.members, *archive.optional)}
    try:
        with tarfile.open(file, "r:gz") as tar, staged_folder(target) as folder:
            for member in tar:
                if member.isdir() and member.name.rstrip("/") == archive.folder:
                    continue
                if member.name not in expected or not member.isfile():
                    raise KilnError(f"{file} holds {member.name[:120]!r}, which does not belong; nothing was unpacked")
                source = tar.extractfile(member)
                if source is not None:
                    _copy(source, folder / expected[member.name])
            if missing := [name for name in archive.members if not (folder / name).is_file()]:
                raise KilnError(f"{file} lacks {', '.join(missing)}; nothing was unpacked")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise KilnError(f"{file} cannot be unpacked ({error}); remove it and start again") from error


def _copy(source: IO[bytes], target: Path) -> None:
    with source, target.open("wb") as out:
        while chunk := source.read(1 << 20):
            out.write(chunk)
