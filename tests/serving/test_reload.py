"""The repository while it runs: reloads, rollbacks, policies, canaries and shadows."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

import catalog
from catalog import CARD, POLICY, Accuracy, Card, KilnError, Measurement, Policy, Store, Variant
from serving.errors import RequestError
from serving.models import choice, control, repository
from serving.models.control import Agreement, Control
from serving.models.counts import Counts
from serving.models.library import Library
from serving.models.steering import Steering
from serving.models.traffic import Split
from serving.settings import Settings
from tests.serving import processes, stores
from tests.serving.pictures import RED, plain
from tests.serving.processes import Running

NETWORK = stores.network(32, 32, 10 * np.eye(3))
TURNED = stores.network(32, 32, 10 * np.eye(3)[:, ::-1])  # takes red for blue
RED_IMAGE = np.full((1, 32, 32, 3), RED, np.uint8)


class Remembered(Counts):
    """Counts by remembering."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def routed(self, model: str, version: str, role: str) -> None:
        self.seen.append(("routed", version, role))

    def shadowed(self, model: str, version: str, against: str, result: str, images: int) -> None:
        self.seen.append(("shadowed", version, against, result, images))

    def strayed(self, model: str, version: str, against: str, difference: float) -> None:
        self.seen.append(("strayed", version, against, round(difference, 3)))

    def reloaded(self, model: str, result: str) -> None:
        self.seen.append(("reloaded", model, result))


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    store = stores.write_colours(tmp_path / "artifacts")
    return Settings(store=store, zoo=tmp_path / "zoo", results=tmp_path / "results", control="on")


@pytest.fixture
def library(here: Settings, tmp_path: Path) -> Library:
    made = Library(here, Control(tmp_path / "run"), Remembered())
    made._keep()  # which a worker does once it runs
    return made


@pytest.fixture
def steering(library: Library) -> Steering:
    return Steering(library)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def rewrite(store: Path, name: str, content: bytes, *, top1: float = 90.0, precision: str = "fp32") -> Path:
    """Exports a variant of a model again."""
    return stores.write_variant(store, Store(store).card(name), content, precision=precision, top1=top1)


def answer(library: Library, name: str, version: str = "") -> str:
    model = library.model(name)
    probabilities = model.pick(version).predict(RED_IMAGE)
    return model.card.dataset.classes[int(probabilities[0].argmax())]


def write_policy(store: Path, name: str, **fields: Any) -> None:
    catalog.write_atomic(store / name / POLICY, catalog.to_json(Policy(name, **fields)))


# --- reload ----------------------------------------------------------------------------------------------------------


def test_a_changed_variant_is_loaded_and_the_others_are_kept(here: Settings, library: Library) -> None:
    before = library.model("colours")
    assert answer(library, "colours", "onnx-fp32") == "red"
    rewrite(here.store, "colours", TURNED, top1=95)
    library._refresh()
    after = library.model("colours")
    assert answer(library, "colours", "onnx-fp32") == "blue"
    assert after.variants["onnx-int8"] is before.variants["onnx-int8"]  # loaded once
    assert before.variants["onnx-fp32"].predict(RED_IMAGE).argmax() == 0  # who holds the old one ends with it
    library._refresh()
    assert library.model("colours") is after


def test_what_comes_is_loaded_and_what_goes_is_unloaded(here: Settings, library: Library) -> None:
    stores.write_variant(here.store, stores.write_model(here.store, "new", top1=99), NETWORK, top1=99)
    library._refresh()
    assert sorted(library.models) == ["brittle", "colours", "new", "wide"] and library.default == "new"
    shutil.rmtree(here.store / "new")
    library._refresh()
    assert "new" in library.models  # a folder that is being replaced is away for a moment
    library._refresh()
    assert "new" not in library.models and library.default == "colours"
    assert ("reloaded", "new", "unloaded") in library._counts.seen  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["corrupt", "junk", "card", "too few classes", "stale", "policy"])
def test_38_a_reload_that_fails_changes_nothing(here: Settings, library: Library, how: str) -> None:
    before = library.model("wide")
    model = here.store / "wide" / "variants" / "onnx-fp32" / "model.onnx"
    if how == "corrupt":
        rewrite(here.store, "wide", NETWORK)
        model.write_bytes(b"not what the card says")
    elif how in ("junk", "too few classes"):
        wrong = stores.network(16, 24, np.eye(3)[:, :2])
        rewrite(here.store, "wide", wrong if how == "too few classes" else b"junk")
    elif how == "card":
        (model.parent / CARD).write_text("{")
    elif how == "stale":
        card = Store(here.store).card("wide")
        stores.write_variant(here.store, card, NETWORK, parent_sha256="d" * 64)
    else:
        (here.store / "wide" / POLICY).write_text('{"model": "another"}')
    for _ in range(2):
        library._refresh()
        assert library.model("wide") is before
    (entry,) = (entry for entry in library.index() if entry.name == "wide")
    assert entry.state == "READY" and entry.reason
    assert library._counts.seen.count(("reloaded", "wide", "failed")) == 1  # type: ignore[attr-defined]
    (here.store / "wide" / POLICY).unlink(missing_ok=True)
    rewrite(here.store, "wide", stores.network(16, 24, 9 * np.eye(3)))
    library._refresh()
    assert library.model("wide") is not before and library.index()[-1].reason == ""


def test_a_worker_born_while_the_store_is_broken_serves_what_was_served(here: Settings, tmp_path: Path) -> None:
    Library(here, Control(tmp_path / "run"))._keep()
    rewrite(here.store, "colours", b"junk")
    late = Library(here, Control(tmp_path / "run"))
    assert answer(late, "colours", "onnx-fp32") == "red"
    assert next(entry for entry in late.index() if entry.name == "colours").reason
    with pytest.raises(KilnError, match=r"model\.onnx"):
        Library(here, Control(tmp_path / "other"))


def test_requests_that_hold_a_retired_variant_end_with_it(here: Settings, library: Library) -> None:
    async def main() -> None:
        served = library.model("colours").pick("onnx-fp32")
        rewrite(here.store, "colours", TURNED)
        await asyncio.to_thread(library._refresh)
        outcome = await served.lane.run(RED_IMAGE)
        assert outcome.probabilities.argmax() == 0

    run(main())


def test_a_retired_variant_is_let_go(here: Settings, library: Library) -> None:
    async def main() -> None:
        with library.model("colours").pick("onnx-fp32").lane as lane:
            await lane.run(RED_IMAGE)

    run(main())
    retired = weakref.ref(library.model("colours").variants["onnx-fp32"].predict)
    rewrite(here.store, "colours", TURNED)
    library._refresh()
    gc.collect()
    assert retired() is None


# --- on request ------------------------------------------------------------------------------------------------------


def test_load_and_unload(here: Settings, library: Library, steering: Steering) -> None:
    async def main() -> None:
        await steering.unload("colours")
        with pytest.raises(RequestError, match="there are: brittle, wide"):
            library.model("colours")
        library._refresh()
        assert "colours" not in library.models  # though the store has it
        entry = next(entry for entry in library.index() if entry.name == "colours")
        assert (entry.state, entry.reason) == ("UNAVAILABLE", "unloaded")
        await steering.load("colours")
        assert answer(library, "colours") == "red"
        for refused in (steering.load("none"), steering.unload("../colours"), steering.rollback("none")):
            with pytest.raises(RequestError) as caught:
                await refused
            assert (caught.value.status, caught.value.code) == (404, "model_unknown")
        rewrite(here.store, "colours", b"junk")
        with pytest.raises(RequestError) as caught:
            await steering.load("colours")
        assert (caught.value.status, caught.value.code) == (400, "model_load_failed")
        assert str(here.store) not in caught.value.error and answer(library, "colours") == "red"

    run(main())


def test_rollback_holds_until_the_store_changes_again(
    here: Settings, library: Library, steering: Steering, tmp_path: Path
) -> None:
    async def main() -> None:
        with pytest.raises(RequestError, match="nothing else") as caught:
            await steering.rollback("colours")
        assert (caught.value.status, caught.value.code) == (409, "rollback_impossible")
        rewrite(here.store, "colours", TURNED, top1=96)
        library._refresh()
        assert answer(library, "colours", "onnx-fp32") == "blue"
        await steering.rollback("colours")
        assert answer(library, "colours", "onnx-fp32") == "red"
        library._refresh()
        assert answer(library, "colours", "onnx-fp32") == "red"
        late = Library(here, Control(tmp_path / "run"))  # a worker that is born now
        assert answer(late, "colours", "onnx-fp32") == "red"
        rewrite(here.store, "colours", stores.network(32, 32, 10 * np.eye(3)[:, [1, 0, 2]]), top1=97)
        for other in (library, late):
            other._refresh()
            assert answer(other, "colours", "onnx-fp32") == "green"
        await steering.rollback("colours")
        assert answer(library, "colours", "onnx-fp32") == "red"
        await steering.load("colours")  # ends it
        assert answer(library, "colours", "onnx-fp32") == "green"

    run(main())


def test_rollback_holds_where_the_store_holds_what_cannot_be_loaded(
    here: Settings, library: Library, steering: Steering
) -> None:
    async def main() -> None:
        for content in (TURNED, b"junk"):
            rewrite(here.store, "colours", content, top1=96)
            library._refresh()
        assert answer(library, "colours", "onnx-fp32") == "blue"
        asked = await asyncio.gather(*(steering.rollback("colours") for _ in range(2)), return_exceptions=True)
        (refused,) = [error for error in asked if error is not None]
        assert isinstance(refused, RequestError) and refused.code == "rollback_impossible"
        library._refresh()
        assert answer(library, "colours", "onnx-fp32") == "red" and not library.failure("colours")
        rewrite(here.store, "colours", TURNED, top1=97)  # good again
        library._refresh()
        assert answer(library, "colours", "onnx-fp32") == "blue"
        await steering.rollback("colours")
        assert answer(library, "colours", "onnx-fp32") == "red"

    run(main())


def test_a_rollback_that_fails_may_be_asked_for_again(here: Settings, library: Library, steering: Steering) -> None:
    async def main() -> None:
        rewrite(here.store, "colours", TURNED, top1=96)
        library._refresh()
        copy = library.control.copy(library.control.read().history["colours"][0])
        file = copy.variant_dir(Variant("colours", "onnx", "fp32")) / "model.onnx"
        whole = file.read_bytes()
        file.write_bytes(b"junk")
        with pytest.raises(RequestError) as caught:
            await steering.rollback("colours")
        assert caught.value.code == "model_load_failed"
        assert answer(library, "colours", "onnx-fp32") == "blue" and not library.failure("colours")
        file.write_bytes(whole)
        await steering.rollback("colours")
        assert answer(library, "colours", "onnx-fp32") == "red"

    run(main())


def test_copies_hold_what_is_served_and_no_more(here: Settings, library: Library) -> None:
    store, (served,) = Store(here.store), library.control.read().history["colours"]
    copy = library.control.copy(served)
    assert {variant.variant.version for variant in copy.variants("colours")} == set(library.model("colours").variants)
    stores.write_variant(here.store, store.card("colours"), b"another", format="keras", precision="fp16")
    assert control.digest_of(store, "colours") == control.digest_of(copy, "colours") == served


def test_what_is_loaded_while_the_first_copies_are_made_is_remembered(
    here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(here, Control(tmp_path / "run"), Remembered())
    copying, loaded = threading.Event(), threading.Event()
    keep, remember = library.control.keep, library._remember

    def slowly(*what: Any) -> None:
        copying.set()
        loaded.wait(0.5)
        keep(*what)

    def once_all_is_copied() -> None:
        loaded.set()
        deadline = time.monotonic() + 0.5
        while library._unkept and time.monotonic() < deadline:
            time.sleep(0.01)
        remember()

    async def scenario() -> None:
        library.begin()
        await asyncio.to_thread(copying.wait, 5)
        rewrite(here.store, "colours", TURNED)
        await library.refresh()

    monkeypatch.setattr(library.control, "keep", slowly)
    monkeypatch.setattr(library, "_remember", once_all_is_copied)
    run(scenario())
    store = Store(here.store)
    assert library.control.read().history["colours"][-1] == control.digest_of(store, "colours")


def test_copies_are_bounded(here: Settings, library: Library, tmp_path: Path) -> None:
    for scale in range(2, 7):
        rewrite(here.store, "wide", stores.network(16, 24, scale * np.eye(3)))
        library._refresh()
    assert len([path for path in (tmp_path / "run" / "kept").iterdir() if path.name.startswith("wide")]) == control.KEPT


def test_32_a_folder_that_cannot_be_written_is_told_of_and_done_without(here: Settings, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    library = Library(here, Control(tmp_path / "run"))
    steering = Steering(library)

    async def main() -> None:
        await steering.unload("wide")
        assert "wide" not in library.models
        await steering.load("wide")
        rewrite(here.store, "colours", TURNED)
        await asyncio.to_thread(library._refresh)
        assert answer(library, "colours", "onnx-fp32") == "blue"

    run(main())


def test_32_without_a_temporary_folder_every_worker_is_by_itself(
    here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.delenv(control.VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.gettempdir", none)
    control.begin()
    library = Library(here, Control())
    run(Steering(library).unload("wide"))
    assert "wide" not in library.models and "colours" in library.models


def test_what_a_killed_service_left_behind_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "modelkiln-service-mine").mkdir()  # just being made: nothing in it yet
    code = "import os, time; from serving.models import control as c; c.begin();"
    code += " print(os.environ[c.VARIABLE], flush=True);"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def parent(then: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code + then]
        return subprocess.Popen(command, env=environment, cwd=catalog.ROOT, stdout=subprocess.PIPE, text=True)

    with parent("os._exit(1)") as killed, parent("time.sleep(60)") as living:
        assert killed.stdout and living.stdout
        left, held = Path(killed.stdout.readline().strip()), Path(living.stdout.readline().strip())
        killed.wait(20)
        assert held.stat().st_mode & 0o777 == 0o700
        with parent("") as third:
            assert third.wait(20) == 0
        assert not left.exists() and held.exists() and (tmp_path / "modelkiln-service-mine").exists()
        living.kill()
    assert {path.name for path in tmp_path.iterdir()} == {held.name, "modelkiln-service-mine"}


def test_an_agreement_is_one_workers_at_a_time(tmp_path: Path) -> None:
    def work() -> None:
        for _ in range(5):
            Control(tmp_path / "run").change(lambda agreed: Agreement(agreed.generation + 1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Control(tmp_path / "run").read().generation == 20


# --- policies --------------------------------------------------------------------------------------------------------


def row(
    version: str, top1: float, *, p50: float | None = None, rate: float | None = None, size: int = 1
) -> Measurement:
    format, precision = version.split("-")
    variant, accuracy = Variant("colours", format, precision), Accuracy.of(round(top1 * 100), 10_000)
    return Measurement(
        variant, "ok", parent_sha256="a" * 64, accuracy=accuracy, size_bytes=size, p50_ms=p50, images_per_s=rate
    )


ROWS = [row("onnx-fp32", 95.0, p50=0.2, rate=10.0, size=9), row("onnx-int8", 94.2, p50=0.1, rate=8.0, size=3)]


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ({"objective": "latency"}, "onnx-int8"),
        ({"objective": "throughput"}, "onnx-fp32"),
        ({"objective": "size"}, "onnx-int8"),
        ({"objective": "accuracy"}, "onnx-fp32"),
        ({"objective": "latency", "max_accuracy_drop": 0.5}, "onnx-fp32"),
        ({"objective": "latency", "max_accuracy_drop": 0.8}, "onnx-int8"),
        ({"objective": "throughput", "max_size_bytes": 5}, "onnx-int8"),
        ({"objective": "latency", "version": "onnx-fp32"}, "onnx-fp32"),
    ],
)
@pytest.mark.parametrize("where", ["policy", "results"])
def test_a_policy_picks_by_measured_figures(here: Settings, policy: dict[str, Any], chosen: str, where: str) -> None:
    if where == "policy":
        policy = {**policy, "rows": ROWS}
    else:
        written = [json.loads(catalog.to_json(row)) for row in ROWS]
        older = [json.loads(catalog.to_json(row)) for row in (row("onnx-fp32", 95.0, p50=0.001),)]
        foreign = [{**old, "parent_sha256": "f" * 64} for old in older]
        for name, created, rows in (("a", "2026-02", written), ("b", "2026-01", older), ("c", "2026-03", foreign)):
            catalog.write_atomic(here.results / f"{name}.json", json.dumps({"created": created, "rows": rows}))
        catalog.write_atomic(here.results / "junk.json", "[]")
    write_policy(here.store, "colours", **policy)
    model = repository.load(here).model("colours")
    assert model.default == chosen and not model.choice.warnings


def test_a_policy_without_measurements_goes_by_the_cards(here: Settings) -> None:
    write_policy(here.store, "colours", objective="size", max_accuracy_drop=0.1)
    assert repository.load(here).model("colours").default == "onnx-fp32"
    write_policy(here.store, "colours", objective="latency")
    assert repository.load(here).model("colours").default == "onnx-int8"


def test_a_policy_that_nothing_meets_is_told_of(here: Settings) -> None:
    write_policy(here.store, "colours", rows=ROWS, max_size_bytes=2, canary="onnx-int4")
    found = repository.load(here)
    assert found.model("colours").default == "onnx-fp32"
    told = " ".join(found.stale)
    assert "within its policy's budgets" in told and "canary 'onnx-int4', which is not served" in told


def test_a_policy_that_is_no_policy_stops_the_start(here: Settings) -> None:
    write_policy(here.store, "colours", canary_share=1.5)
    with pytest.raises(KilnError, match=r"policy\.json.*canary_share"):
        repository.load(here)


def test_a_new_policy_takes_effect_without_loading_anything(here: Settings, library: Library) -> None:
    before = library.model("colours")
    assert before.default == "onnx-int8"
    write_policy(here.store, "colours", version="onnx-fp32")
    library._refresh()
    after = library.model("colours")
    assert after.default == "onnx-fp32"
    assert all(after.variants[version] is before.variants[version] for version in before.variants)


def test_the_choice_is_the_same_in_every_order(here: Settings) -> None:
    card: Card = Store(here.store).card("colours")
    offered = [v for v in Store(here.store).variants("colours") if v.status == "ok" and v.variant.format == "onnx"]
    equal = Policy("colours", rows=[row("onnx-fp32", 95, p50=0.1), row("onnx-int8", 95, p50=0.1)])
    for some in (offered, offered[::-1]):
        assert choice.choose(card, some, equal, here.results).version == "onnx-fp32"


# --- canaries and shadows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.1, 100), (0.25, 250), (1 / 3, 333), (1.0, 1000)])
def test_a_canary_gets_exactly_its_share(share: float, expected: int) -> None:
    split = Split("default", "canary", share)
    assert [split.pick() for _ in range(1000)].count("canary") in (expected, expected + 1)


def test_a_shadow_is_compared_and_unseen(here: Settings, library: Library) -> None:
    seen = library._counts.seen  # type: ignore[attr-defined]
    rewrite(here.store, "colours", TURNED, top1=95)
    write_policy(here.store, "colours", version="onnx-int8", shadow="onnx-fp32")
    library._refresh()

    async def ask(images: np.ndarray, version: str = "") -> None:
        model = library.model("colours")
        served = model.pick(version)
        outcome = await served.lane.run(images)
        library.answered(model, served, bool(version), images, outcome.probabilities)

    async def main() -> None:
        both = np.concatenate([RED_IMAGE, np.full((1, 32, 32, 3), (0, 255, 0), np.uint8)])
        await ask(both)
        await ask(RED_IMAGE)  # the shadow is busy
        await asyncio.sleep(0.05)
        await ask(RED_IMAGE, "onnx-fp32")  # by name: nothing to compare
        await asyncio.sleep(0.05)

    run(main())
    assert [entry for entry in seen if entry[0] == "routed"] == [
        ("routed", "onnx-int8", "default"),
        ("routed", "onnx-int8", "default"),
        ("routed", "onnx-fp32", "named"),
    ]
    pair = ("onnx-fp32", "onnx-int8")
    assert sorted(entry for entry in seen if entry[0] == "shadowed") == [
        ("shadowed", *pair, "agreed", 1),
        ("shadowed", *pair, "disagreed", 1),
        ("shadowed", *pair, "skipped", 1),
    ]
    assert [entry[:3] for entry in seen if entry[0] == "strayed"] == [("strayed", *pair)]


# --- against a real server of two workers ----------------------------------------------------------------------------


HTTP = httpx.Client(headers={"connection": "close"}, timeout=20)  # a connection for each request: any worker gets it


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A server that may be told to load and unload, and its store, which may be changed."""
    tmp = tmp_path_factory.mktemp("two")
    store = stores.write_colours(tmp / "store")
    stores.write_variant(store, stores.write_model(store, "slow", top1=50), stores.slow_network(32, 32, 3), top1=50)
    settings = {"MODELKILN_STORE": str(store), "MODELKILN_WORKERS": "2", "MODELKILN_WATCH_S": "0.2"}
    settings |= {"MODELKILN_INLINE_MS": "0.001", "MODELKILN_COMPUTE_TIMEOUT_S": "1", "MODELKILN_QUEUE_IMAGES": "4"}
    with processes.serving(tmp, settings={**settings, "MODELKILN_CONTROL": "on"}) as running, HTTP:
        yield running, store


class Load:
    """Clients that never stop asking; every answer is kept."""

    def __init__(self, url: str, clients: int = 3) -> None:  # with one more in between, as many as may wait
        self._url, self._stop = url, threading.Event()
        self.answers: list[tuple[int, str]] = []
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=20) as client:
            while not self._stop.is_set():
                response = client.post("/predict?model=colours&version=onnx-fp32&top=1", content=plain(RED))
                told = response.json()
                self.answers.append((response.status_code, str(told.get("predictions", [{}])[0].get("class"))))


def ask(url: str, connections: int = 12) -> set[str]:
    """The classes that red is taken for, over as many connections as reach both workers."""
    found = set()
    for _ in range(connections):
        response = HTTP.post(f"{url}/predict?model=colours&version=onnx-fp32&top=1", content=plain(RED))
        found.add(response.json()["predictions"][0]["class"] if response.status_code == 200 else response.text)
    return found


def until(holds: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.1)


def test_21_to_24_a_model_that_hangs(two: tuple[Running, Path]) -> None:
    """Its computation is given up, those behind it are refused, others and health are served, and its slot is freed."""
    server, _ = two
    url, black = f"{server.url}/predict?model=slow", plain((0, 0, 0))
    bright = plain((60, 60, 60))  # three to ten seconds: well past the limit of one
    body, headers = _hurried()
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(HTTP.post, url, content=bright) for _ in range(16)]
        time.sleep(0.4)
        for _ in range(5):
            begun = time.monotonic()
            assert HTTP.get(f"{server.url}/v2/health/ready").status_code == 200
            assert HTTP.get(f"{server.url}/readyz").status_code == 200
            assert ask(server.url, 2) == {"red"}
            assert time.monotonic() - begun < 5
        hurried = HTTP.post(f"{server.url}/v2/models/slow/infer", content=body, headers=headers)
        assert hurried.json().get("code") in ("deadline_passed", "queue_full", None), hurried.text
        seen = [request.result() for request in asked]
    codes = {(answer.status_code, answer.json()["code"]) for answer in seen}
    assert {(504, "inference_timeout"), (429, "queue_full")} <= codes
    assert codes <= {(504, "inference_timeout"), (429, "queue_full"), (503, "deadline_passed"), (503, "model_stuck")}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in seen if answer.status_code in (429, 503))
    until(lambda: all(HTTP.post(url, content=black).status_code == 200 for _ in range(6)), 60)


def _hurried() -> tuple[bytes, dict[str, str]]:
    """A request that waits a millisecond at most."""
    made = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "parameters": {"binary_data_size": 3072}}
    header = json.dumps({"inputs": [made], "parameters": {"timeout": 1000}}).encode()
    return header + bytes(3072), {"inference-header-content-length": str(len(header))}


def test_38_a_reload_under_load_loses_no_request(two: tuple[Running, Path]) -> None:
    server, store = two
    with Load(server.url) as load:
        until(lambda: len(load.answers) > 20)
        rewrite(store, "colours", TURNED, top1=95)
        until(lambda: ask(server.url) == {"blue"})
        rewrite(store, "colours", b"junk", top1=95)
        until(lambda: server.log.read_text().count("colours stays as it is") == 2)  # one for each worker
        assert ask(server.url) == {"blue"}
        before = len(load.answers)
        until(lambda: len(load.answers) > before + 20)
        rewrite(store, "colours", NETWORK, top1=95)
        until(lambda: ask(server.url) == {"red"})
    assert {status for status, _ in load.answers} == {200}
    assert {name for _, name in load.answers} == {"red", "blue"}
    assert "Traceback" not in server.log.read_text()


def test_every_worker_follows_before_the_answer(two: tuple[Running, Path]) -> None:
    triton = pytest.importorskip("tritonclient.http")
    server, store = two
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        client.unload_model("wide")
        for _ in range(12):
            assert HTTP.get(f"{server.url}/v2/models/wide/ready").status_code == 404
        index = {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}
        assert index["wide"] == "UNAVAILABLE" and index["colours"] == "READY"
        ready = HTTP.post(f"{server.url}/v2/repository/index", json={"ready": True}).json()
        assert "wide" not in {entry["name"] for entry in ready}
        client.load_model("wide")
        for _ in range(12):
            assert HTTP.get(f"{server.url}/v2/models/wide/ready").status_code == 200
    for field in ({"config": "{}"}, {"file:1/model.onnx": "aGk="}):
        refused = HTTP.post(f"{server.url}/v2/repository/models/wide/load", json={"parameters": field})
        assert (refused.status_code, refused.json()["code"]) == (400, "request_invalid")
    assert HTTP.post(f"{server.url}/v2/repository/models/none/load", json={}).status_code == 404
    rewrite(store, "colours", TURNED, top1=95)
    until(lambda: ask(server.url) == {"blue"})
    assert HTTP.post(f"{server.url}/v2/repository/models/colours/rollback").status_code == 200
    assert ask(server.url) == {"red"}


def test_27_a_worker_that_is_replaced_follows_too(two: tuple[Running, Path]) -> None:
    server, _ = two  # rolled back by the test before
    workers = psutil.Process(server.process.pid).children()
    assert ask(server.url) == {"red"}
    workers[0].kill()
    until(lambda: {w.pid for w in psutil.Process(server.process.pid).children()} - {w.pid for w in workers} != set())
    until(lambda: server.log.read_text().count("is ready") == 3, 60)
    assert ask(server.url, 24) == {"red"}


def test_canary_and_shadow_are_compared_in_the_metrics(two: tuple[Running, Path]) -> None:
    server, store = two
    write_policy(store, "wide", version="onnx-fp32")
    stores.write_variant(
        store, Store(store).card("wide"), stores.network(16, 24, 5 * np.eye(3)[:, ::-1]), precision="int8", top1=79
    )
    write_policy(store, "wide", version="onnx-fp32", canary="onnx-int8", canary_share=0.5, shadow="onnx-int8")
    url = f"{server.url}/predict?model=wide"
    until(lambda: HTTP.get(f"{server.url}/v2/models/wide/versions/onnx-int8/ready").status_code == 200)
    with httpx.Client() as client:  # one connection: one worker's credit
        until(lambda: client.post(url, content=plain()).json()["version"] == "onnx-int8")
        answers = [client.post(url, content=plain()).json()["version"] for _ in range(20)]
    assert answers.count("onnx-int8") == 10
    time.sleep(0.2)
    text = HTTP.get(f"{server.url}/metrics").text
    for family in (
        'modelkiln_routed_total{model="wide",role="canary",version="onnx-int8"}',
        'modelkiln_routed_total{model="wide",role="default",version="onnx-fp32"}',
        'modelkiln_shadow_images_total{against="onnx-fp32",model="wide",result="agreed",version="onnx-int8"}',
        'modelkiln_shadow_difference_count{against="onnx-fp32",model="wide",version="onnx-int8"}',
        'modelkiln_reloads_total{model="wide",result="loaded"}',
        'modelkiln_loaded{model="wide",version="onnx-fp32"} 2.0',
    ):
        assert family in text, family
