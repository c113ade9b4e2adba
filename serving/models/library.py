"""The repository while the service runs: it follows the store, and what the workers agreed on.

A model is loaded beside the one that answers and takes its place in one assignment; requests that hold the old one end
with it. What cannot be loaded changes nothing: the old one stays, the log says why, and the next change is tried again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from catalog import KilnError, Store
from serving.batching.inline import Inline
from serving.models import repository
from serving.models.control import Agreement, Control, digest_of, sign
from serving.models.counts import Counts
from serving.models.repository import Model, Repository, Served
from serving.models.shadow import Shadows
from serving.operations.metrics import Metrics
from serving.settings import Settings

_TICK_S = 0.1  # between looks at what other workers were told

logger = logging.getLogger("bentoml.modelkiln")


@dataclass(frozen=True)
class Entry:
    """A line of the repository's index: `state` is READY or UNAVAILABLE, `reason` says why not, or why not newer."""

    name: str
    version: str
    state: str
    reason: str


class Library:
    """What is served now, by the names of `repository.Repository`."""

    def __init__(
        self, settings: Settings, control: Control, counts: Counts | None = None, metrics: Metrics | None = None
    ) -> None:
        """Loads everything.

        Raises:
            KilnError: A file or card is wrong and no copy is kept of what was served before, or there is no model.
        """
        self._settings, self.control, self._counts, self._metrics = settings, control, counts or Counts(), metrics
        self.present: Callable[[], int] = lambda: 0  # requests in this worker, for the lanes; the gate knows
        self._inline = Inline()
        self._shadows = Shadows(self._counts)
        self._watching: asyncio.Task[None] | None = None
        self._signs: dict[str, tuple[object, ...]] = {}
        self._failed: dict[str, str] = {}
        self._missing: set[str] = set()
        self._unkept: list[
            tuple[str, Store, str]
        ] = []  # what was loaded and is not copied yet: name, where from, digest
        self._lock = asyncio.Lock()
        self._agreed = control.read()
        self._current = Repository({}, "")
        self._open()

    # --- what handlers ask -------------------------------------------------------------------------------------------

    @property
    def models(self) -> Mapping[str, Model]:
        """All models by name."""
        return self._current.models

    @property
    def default(self) -> str:
        """The model that answers where a request names none."""
        return self._current.default

    def model(self, name: str = "") -> Model:
        """A model by name, or the default one.

        Raises:
            RequestError: 404 `model_unknown`, with those there are.
        """
        return self._current.model(name)

    def answered(
        self, model: Model, served: Served, named: bool, images: NDArray[np.uint8], answer: NDArray[np.float32]
    ) -> None:
        """To be told of every answer: it is counted, and given to the model's shadow to compare."""
        role = "named" if named else "canary" if served is model.split.canary else "default"
        self._counts.routed(model.card.model, served.version, role)
        self._shadows.follow(model, served, images, answer)

    def index(self) -> list[Entry]:
        """Every variant that is loaded, and every model that is not."""
        entries = [
            Entry(name, version, "READY", self._failed.get(name, ""))
            for name, model in self.models.items()
            for version in model.variants
        ]
        known = {*self.known(), *self._agreed.unloaded, *self._failed}
        for name in sorted(known - set(self.models)):
            reason = "unloaded" if name in self._agreed.unloaded else self._failed.get(name, "no variant is offered")
            entries.append(Entry(name, "", "UNAVAILABLE", reason))
        return entries

    def failure(self, name: str) -> str:
        """Why a model is not as the store has it, or an empty string."""
        return self._failed.get(name, "")

    def known(self) -> set[str]:
        """Names of the models that are served or could be."""
        return {*repository.owners(repository.stores(self._settings)), *self.models}

    def held(self, name: str) -> str:
        """The digest of what the store holds of a model, or an empty string."""
        store = repository.owners(repository.stores(self._settings)).get(name)
        return digest_of(store, name) if store is not None else ""

    async def refresh(self, agree: Callable[[], Agreement] | None = None, again: str = "") -> Agreement:
        """Does what store and agreement ask for; `agree` changes the agreement first, `again` is looked at anew."""
        async with self._lock:
            if agree is not None:
                self._agreed = await asyncio.to_thread(agree)
            self._signs.pop(again, None)
            await asyncio.to_thread(self._refresh)
            return self._agreed

    # --- following the store -----------------------------------------------------------------------------------------

    def _open(self) -> None:
        loaded = {}
        for name, store in self._wanted().items():
            try:
                model = repository.load_model(store, name, self._settings)
            except KilnError as error:
                copies = self._agreed.history.get(name, [])
                if not copies:
                    raise
                logger.error("%s; what was served before is served again", error)
                store = self.control.copy(copies[-1])
                model = repository.load_model(store, name, self._settings)
                self._failed[name] = "the newest files cannot be loaded"
            self._signs[name] = sign(store, name)
            if model is not None:
                loaded[name] = model
                self._unkept.append((name, store, digest_of(store, name)))
        if not loaded and not self._agreed.unloaded:
            repository.load(self._settings)  # says what to do
        self._swap(loaded)
        self._remember()
        self.control.followed(self._agreed.generation)

    def _wanted(self) -> dict[str, Store]:
        """What should be served, by the agreement, and from where."""
        found = repository.owners(repository.stores(self._settings))
        for name, (digest, _) in self._agreed.pinned.items():
            found[name] = self.control.copy(digest)
        return {name: store for name, store in found.items() if name not in self._agreed.unloaded}

    def begin(self) -> None:
        """Begins to follow the store, and to watch for what hangs on the event loop; to be called there."""
        self._inline.watch(self._settings.compute_timeout_s)
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """Follows the store and the other workers, for ever."""
        async with self._lock:
            await asyncio.to_thread(self._keep)
        looked, stamp = time.monotonic(), self.control.stamp()
        while True:
            await asyncio.sleep(min(_TICK_S, self._settings.watch_s))
            due = time.monotonic() - looked >= self._settings.watch_s
            if not due and self.control.stamp() == stamp:
                continue
            try:
                stamp = self.control.stamp()
                await self.refresh()
            except Exception:
                logger.exception("the store could not be looked at")
            looked = time.monotonic()

    def _refresh(self) -> None:
        """Does what the store and the agreement ask for; runs in a thread, one at a time."""
        self._agreed = self.control.read()
        wanted, models = self._wanted(), dict(self.models)
        for name, store in wanted.items():
            if name in self._agreed.pinned and self._superseded(name):
                self._agreed = self.control.change(lambda agreed, name=name: agreed.unpinning(name))  # type: ignore[misc]
                store = repository.owners(repository.stores(self._settings))[name]
            found = sign(store, name)
            if found == self._signs.get(name):
                continue
            if model := self._load(name, store, models.get(name)):
                models[name] = model
            self._signs[name] = found
        for name in {*self._failed, *self._signs} - {*wanted, *models}:
            self._failed.pop(name, None)
            self._signs.pop(name, None)
        gone = {name for name in models if name not in wanted}
        for name in gone & ({*self._agreed.unloaded} | self._missing):
            models.pop(name)
            self._signs.pop(name, None)
            self._failed.pop(name, None)
            self._counts.reloaded(name, "unloaded")
            logger.info("%s is unloaded", name)
        self._missing = gone  # a folder that is being replaced is away for a moment: it has to be missed twice
        if models != self.models:
            self._swap(models)
        self._remember()
        self._keep()
        self.control.followed(self._agreed.generation)

    def _superseded(self, name: str) -> bool:
        """Whether the store holds something else by now than when the model was rolled back."""
        return self.held(name) not in ("", self._agreed.pinned[name][1])

    def _load(self, name: str, store: Store, before: Model | None) -> Model | None:
        try:
            model = repository.load_model(store, name, self._settings, before)
        except KilnError as error:
            logger.error("%s stays as it is: %s", name, error)
            self._failed[name] = "the newest files cannot be loaded"
            self._counts.reloaded(name, "failed")
            return None
        if model is None:
            self._failed[name] = "no variant is offered"
            logger.error("%s stays as it is: no variant of it is offered", name)
            self._counts.reloaded(name, "failed")
            return None
        self._failed.pop(name, None)
        self._unkept.append((name, store, digest_of(store, name)))
        self._counts.reloaded(name, "loaded")
        logger.info("%s is loaded; %s answers: %s", name, model.default, model.choice.why)
        for warning in model.choice.warnings:
            logger.warning(warning)
        return model

    def _remember(self) -> None:
        """Notes what is served by now, for the other workers and for rollbacks."""

        def note(agreed: Agreement) -> Agreement:
            for name, _, digest in self._unkept:
                agreed = agreed.remembering(name, digest)
            return agreed

        if self._unkept:
            self._agreed = self.control.change(note)

    def _keep(self) -> None:
        """Copies what was loaded; not before the start, which it would hold up."""
        while self._unkept:
            self.control.keep(*self._unkept.pop())

    def _present(self) -> int:
        return self.present()

    def _swap(self, models: dict[str, Model]) -> None:
        wanted = self._settings.model if self._settings.model in models else ""
        stays = {(name, version) for name, model in models.items() for version in model.variants}
        for name, model in self.models.items():
            for version in model.variants:
                if (name, version) not in stays:
                    self._counts.loaded(name, version, 0)
        for name, model in models.items():
            for version, served in model.variants.items():
                self._counts.loaded(name, version, 2 if version == model.default else 1)
                served.lane.present, served.lane.inline = self._present, self._inline
                if self._metrics is not None:
                    served.lane.on_batch = functools.partial(self._metrics.batch, name, version)
                    served.lane.on_depth = functools.partial(self._metrics.queue_depth, name, version)
        self._current = repository.assemble(dict(sorted(models.items())), wanted)
