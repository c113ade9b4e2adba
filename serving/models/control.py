"""What the workers of one service agree on: which models are unloaded or rolled back, and who has followed.

Any worker may get the request; it writes the agreement into a folder of the service's own, in which the others look
ten times a second, at the cost of one `stat`. The folder lives as long as the service. It also keeps a copy of
the models that were served, for a rollback, and for a worker that is born while the store is broken. Where it cannot be
written, the worker goes on by itself and says so once.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import catalog
from catalog import CARD, POLICY, KilnError, Store
from serving.models.repository import candidates_of

VARIABLE = "MODELKILN_RUN_FOLDER"  # set by the parent for its workers, not by people …
PARENT = "MODELKILN_PARENT"  # … and so is this, its process id
KEPT = 3  # copies of a model
_PREFIX, _ALIVE, _ENDING = "modelkiln-service-", "alive", "ending"
_alive: TextIO | None = None  # open and locked while this process is a service's parent

logger = logging.getLogger("bentoml.modelkiln")


@dataclass(frozen=True)
class Agreement:
    """The workers' common word.

    `history` holds the digests of a model's contents as they were served, oldest first; `pinned` maps a rolled back
    model to [the digest that answers, what the store held when that was asked for]. What is later in the history than
    what answers is forgotten when the rollback ends.
    """

    generation: int = 0
    unloaded: list[str] = field(default_factory=list)
    pinned: dict[str, list[str]] = field(default_factory=dict)
    history: dict[str, list[str]] = field(default_factory=dict)

    def loading(self, name: str) -> Agreement:
        """With a model served from the store, neither unloaded nor rolled back."""
        return replace(self, unloaded=[other for other in self.unloaded if other != name]).unpinning(name)

    def unloading(self, name: str) -> Agreement:
        """Without a model."""
        return replace(self, unloaded=sorted({*self.unloaded, name}))

    def unpinning(self, name: str) -> Agreement:
        """With a model no longer rolled back."""
        if name not in self.pinned:
            return self
        served = [*self.before(name), self.pinned[name][0]]
        return replace(self.pinning(name, None), history={**self.history, name: served})

    def before(self, name: str) -> list[str]:
        """The contents that were served of a model before the one that is now, oldest first."""
        history = self.history.get(name, [])
        return history[: history.index(self.pinned[name][0])] if name in self.pinned else history[:-1]

    def pinning(self, name: str, pin: list[str] | None) -> Agreement:
        """With a model rolled back, or not."""
        others = {other: theirs for other, theirs in self.pinned.items() if other != name}
        return replace(self, pinned=others if pin is None else {**others, name: pin})

    def remembering(self, name: str, digest: str) -> Agreement:
        """With a content that is served by now."""
        history = self.history.get(name, [])
        if name in self.pinned or history[-1:] == [digest]:
            return self
        longer = [*(old for old in history if old != digest), digest]
        return replace(self, history={**self.history, name: longer[-KEPT - 1 :]})


def begin() -> None:
    """Makes a folder for the workers that this process will start, nobody else's, and removes it at the end."""
    global _alive
    os.environ[PARENT] = str(os.getpid())
    try:
        _remove_leftovers(Path(tempfile.gettempdir()))
        folder = tempfile.mkdtemp(prefix=_PREFIX)
        _alive = open(Path(folder) / _ALIVE, "w")  # noqa: SIM115  # held until the process ends, however it does
        fcntl.flock(_alive, fcntl.LOCK_EX)
    except OSError as error:
        logger.error("there is no temporary folder; every worker goes on by itself: %s", error)
        return
    os.environ[VARIABLE] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def end() -> None:
    """Has the parent tell its workers that the whole service ends, and not one of them."""
    with contextlib.suppress(OSError, KeyError):
        Path(os.environ[VARIABLE], _ENDING).touch()


def ending() -> bool:
    """Whether the whole service ends; False where there is no folder to tell it in."""
    return VARIABLE in os.environ and Path(os.environ[VARIABLE], _ENDING).exists()


def abandoned() -> bool:
    """Whether this process is a worker whose parent has ended, be it by SIGKILL."""
    parent = os.environ.get(PARENT)
    return parent is not None and int(parent) not in (os.getppid(), os.getpid())


def _remove_leftovers(temporary: Path) -> None:
    """Of services of this user that could not clean up: nobody holds their lock."""
    for lock in temporary.glob(f"{_PREFIX}*/{_ALIVE}"):
        with contextlib.suppress(OSError):
            if lock.parent.stat().st_uid == os.getuid():
                with lock.open("r") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock.parent, ignore_errors=True)


class Control:
    """The folder; every method can be called from any thread."""

    def __init__(self, folder: Path | None = None) -> None:
        """Takes a folder, or the one that the parent process named; without either this worker is by itself."""
        named = os.environ.get(VARIABLE, "")
        self.folder = folder or Path(named or os.devnull)
        self._state, self._workers, self._copies = (self.folder / name for name in ("state.json", "workers", "kept"))
        self._followed = -1
        self._alone = None if folder or named else Agreement()  # what holds where there is no folder

    def stamp(self) -> int:
        """Changes whenever the agreement does."""
        try:
            return self._state.stat().st_mtime_ns
        except OSError:
            return 0

    def read(self) -> Agreement:
        """The agreement in force."""
        if self._alone is not None:
            return self._alone
        try:
            return catalog.from_json(Agreement, json.loads(self._state.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return Agreement()

    def change(self, how: Callable[[Agreement], Agreement]) -> Agreement:
        """Replaces the agreement by what `how` makes of it, one worker at a time."""
        if self._alone is not None:
            self._alone = how(self._alone)
            return self._alone
        try:
            with self._locked():
                found = how(self.read())
                if found != self.read():
                    catalog.write_atomic(self._state, catalog.to_json(found))
                return found
        except OSError as error:
            logger.error("%s cannot be written; this worker goes on by itself: %s", self.folder, error.strerror)
            self._alone = how(self.read())
            return self._alone

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def followed(self, generation: int) -> None:
        """Notes that this worker has done what the agreement says."""
        if self._alone is not None or self._followed == generation:
            return
        with contextlib.suppress(OSError):
            catalog.write_atomic(self._workers / str(os.getpid()), str(generation))
            self._followed = generation

    def behind(self, generation: int) -> list[int]:
        """The other workers that have not followed yet."""
        late = []
        for path in self._workers.glob("[0-9]*"):
            try:
                os.kill(int(path.name), 0)
                if int(path.read_text() or -1) < generation:
                    late.append(int(path.name))
            except (OSError, ValueError):  # it is gone
                path.unlink(missing_ok=True)
        return [pid for pid in late if pid != os.getpid()]

    def copy(self, digest: str) -> Store:
        """The store that holds a copy of one content of one model."""
        return Store(self._copies / digest)

    def keep(self, model: str, store: Store, digest: str) -> None:
        """Copies what is served of a model, unless the store has changed since, and drops copies that are too old.

        Files are never linked: nobody can tell who writes to a link, so that the check of a variant refuses those.
        """
        target = self.copy(digest).root
        if self._alone is not None:
            return
        try:
            with self._locked():
                if not target.exists() and store.root != target:
                    with catalog.staged_folder(target) as staged:
                        _copy_served(store, model, staged / model)
                        if digest_of(Store(staged), model) != digest:
                            raise OSError(0, "it has changed meanwhile")
                for old in self.read().history.get(model, [])[:-KEPT]:
                    shutil.rmtree(self.copy(old).root, ignore_errors=True)
        except OSError as error:
            logger.error("%s as it is now cannot be copied and rolled back to: %s", model, error.strerror)


def _copy_served(store: Store, name: str, target: Path) -> None:
    """Cards, policy and the variants that are offered; neither the Keras model nor plots."""
    target.mkdir(parents=True)
    for file in (CARD, POLICY):
        if (source := store.model_dir(name) / file).is_file():
            shutil.copyfile(source, target / file)
    for folder in _offered(store, name):
        shutil.copytree(folder, target / "variants" / folder.name)


def sign(store: Store, name: str) -> tuple[object, ...]:
    """What changes when a model's cards or policy do: cheap, for every look."""
    signs: list[object] = [str(store.root)]
    for path in _cards(store, name, _variants(store, name)):
        with contextlib.suppress(OSError):  # it is being replaced
            found = path.stat()
            signs.append((str(path), found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(signs)


def digest_of(store: Store, name: str) -> str:
    """Names what may be served of a model by its policy and cards, which hold the hashes of every file."""
    digest = hashlib.sha256()
    for path in _cards(store, name, _offered(store, name)):
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            digest.update(len(content).to_bytes(8, "big") + content)
    return f"{name}-{digest.hexdigest()[:24]}"


def _variants(store: Store, name: str) -> list[Path]:
    return sorted(store.model_dir(name).glob("variants/[!.]*"))


def _offered(store: Store, name: str) -> list[Path]:
    """The folders of the variants that are offered, of all where a card cannot be read."""
    try:
        _, found = candidates_of(store, name)
    except KilnError:
        return _variants(store, name)
    return sorted(candidate.folder for candidate in found if not candidate.skipped)


def _cards(store: Store, name: str, variants: list[Path]) -> list[Path]:
    folder = store.model_dir(name)
    paths = [folder / CARD, folder / POLICY, *(variant / CARD for variant in variants)]
    return [path for path in paths if path.is_file()]
