from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from catalog import CARD, KilnError, Store
from serving.errors import RequestError
from serving.models import choice, repository
from serving.settings import Settings
from tests.serving import stores


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return Settings(store=stores.write_colours(tmp_path / "artifacts"), zoo=tmp_path / "zoo")


@pytest.mark.parametrize(
    ("top1", "chosen"),
    [
        ({"onnx-fp32": 90.0, "onnx-int8": 89.0}, "onnx-int8"),
        ({"onnx-fp32": 90.0, "onnx-int8": 88.99}, "onnx-fp32"),
        ({"onnx-fp32": 90.0, "onnx-int8": 91.0}, "onnx-int8"),
        ({"onnx-int8": 88.0, "litert-fp32": 89.0}, "litert-fp32"),
        ({"onnx-fp32": 90.0, "litert-fp32": 90.0}, "litert-fp32"),
        ({"onnx-int8": 80.0}, "onnx-int8"),
    ],
)
def test_the_default_version(top1: dict[str, float], chosen: str) -> None:
    assert choice.choose_version(top1) == chosen
    assert choice.choose_version(dict(reversed(top1.items()))) == chosen


def test_the_default_model() -> None:
    assert choice.choose_model({"lenet": 65.0}) == "lenet"
    assert choice.choose_model({"lenet": 65.0, "simcnn": 71.0}) == "simcnn"
    assert choice.choose_model({"lenet": 65.0, "simcnn": 71.0}, "lenet") == "lenet"
    with pytest.raises(KilnError, match=r"MODELKILN_MODEL.*there are: lenet"):
        choice.choose_model({"lenet": 65.0}, "resnet")


def test_what_is_offered(here: Settings) -> None:
    found = repository.load(here)
    assert found.default == "colours"
    assert {name: list(model.variants) for name, model in found.models.items()} == {
        "brittle": ["onnx-fp32"],
        "colours": ["onnx-fp32", "onnx-int8"],
        "wide": ["onnx-fp32"],
    }
    assert found.model().default == "onnx-int8"
    assert found.stale == ("colours/onnx-fp16 is not served, being stale: made from other weights; export it again",)


def test_a_name_that_is_not_there_lists_those_that_are(here: Settings) -> None:
    found = repository.load(here)
    for name in ("none", "../colours", "/etc/passwd", "colours/"):
        with pytest.raises(RequestError, match="there are: brittle, colours, wide") as caught:
            found.model(name)
        assert (caught.value.status, caught.value.code) == (404, "model_unknown")
    with pytest.raises(RequestError, match="there are: onnx-fp32, onnx-int8") as caught:
        found.model().variant("onnx-int4")
    assert (caught.value.status, caught.value.code) == (404, "version_unknown")


def test_the_store_hides_its_namesakes_in_the_zoo(here: Settings) -> None:
    stores.write_variant(here.zoo, stores.write_model(here.zoo, "wide"), stores.network(32, 32, np.eye(3)))
    stores.write_variant(here.zoo, stores.write_model(here.zoo, "tame"), stores.network(32, 32, np.eye(3)))
    found = repository.load(here)
    assert sorted(found.models) == ["brittle", "colours", "tame", "wide"]
    assert found.model("wide").card.dataset.width == 24


def test_a_model_with_nothing_to_serve_is_told_and_what_it_hides(here: Settings) -> None:
    stores.write_model(here.store, "new")
    stores.write_model(here.store, "tame")
    stores.write_variant(here.zoo, stores.write_model(here.zoo, "tame"), stores.network(32, 32, np.eye(3)))
    found = repository.load(here)
    assert not {"new", "tame"} & set(found.models)
    of = f"of {here.store} is not served: it has no variant to serve"
    assert f"new {of}; run: python -m export new" in found.stale
    assert f"tame {of}, and hides that of {here.zoo}; run: python -m export tame" in found.stale


def damage(folder: Path, how: str) -> str:
    """Spoils a variant; returns what the message must name."""
    model = folder / "model.onnx"
    if how == "altered":
        model.write_bytes(model.read_bytes()[:-1] + b"!")
    elif how == "truncated":
        model.write_bytes(model.read_bytes()[:100])
    elif how == "missing":
        model.unlink()
    elif how == "extra":
        (folder / "model.onnx.data").write_bytes(b"?")
        return "model.onnx.data"
    elif how == "link":
        copy = folder.parent.parent / "elsewhere"
        model.rename(copy)
        model.symlink_to(copy)
    else:
        (folder / CARD).write_text("{")
        return CARD
    return "model.onnx"


@pytest.mark.parametrize("how", ["altered", "truncated", "missing", "extra", "link", "card"])
def test_a_bad_file_is_named(here: Settings, how: str) -> None:
    named = damage(here.store / "colours" / "variants" / "onnx-int8", how)
    with pytest.raises(KilnError) as caught:
        repository.load(here)
    assert f"onnx-int8/{named}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(stores.network(32, 32, np.eye(3)[:, :2]), id="too few classes"),
        pytest.param(stores.network(16, 16, np.eye(3)), id="another image size"),
        pytest.param(stores.network(32, 32, np.full((3, 3), np.nan)), id="NaN"),
        pytest.param(b"no model", id="junk"),
    ],
)
def test_a_model_that_breaks_its_contract_is_named(tmp_path: Path, content: bytes) -> None:
    stores.write_variant(tmp_path, stores.write_model(tmp_path, "odd"), content)
    with pytest.raises(KilnError, match=r"odd/variants/onnx-fp32/model\.onnx"):
        repository.load(Settings(store=tmp_path, zoo=tmp_path / "zoo"))


@pytest.mark.parametrize(
    ("provider", "sentence"),
    [("cuda", "CUDAExecutionProvider"), ("gpu", "there are: cpu, cuda, tensorrt")],
)
def test_a_device_that_is_not_there_stops_the_start(here: Settings, provider: str, sentence: str) -> None:
    with pytest.raises(KilnError, match=sentence):
        repository.load(dataclasses.replace(here, provider=provider))


def test_nothing_to_serve_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(KilnError, match=r"no model to serve in .*python -m training"):
        repository.load(Settings(store=tmp_path, zoo=tmp_path / "zoo"))


def test_a_variant_answers_as_its_weights_say(here: Settings) -> None:
    served = repository.load(here).model("colours").variant("onnx-fp32")
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[0, ..., 1], images[1, ..., 2] = 255, 255
    answer = served.predict(images)
    high, low = np.exp(10) / (np.exp(10) + 2), 1 / (np.exp(10) + 2)
    np.testing.assert_allclose(answer, [[low, high, low], [low, low, high]], atol=1e-6)


def test_the_stores_are_searched_in_order(here: Settings) -> None:
    assert [store.root for store in repository.stores(here)] == [here.store, here.zoo]
    assert isinstance(repository.stores(here)[0], Store)


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "fitting"), [(8, 1, 1, 1), (8, 2, 4, 4), (8, 4, 4, 2), (2, 4, 2, 1), (8, 3, 16, 2)]
)
def test_workers_times_threads_fit_the_machine(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: int, fitting: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    settings = Settings(workers=workers, threads=threads)
    assert repository.fitting_threads(settings, Path("/nowhere")) == fitting


@pytest.mark.parametrize(
    ("files", "workers", "fitting"),
    [
        ({"cpu.max": "max 100000\n"}, 1, 16),
        ({"cpu.max": "400000 100000\n"}, 1, 4),
        ({"cpu.max": "250000 100000\n"}, 1, 2),
        ({"cpu.max": "400000 100000\n"}, 2, 2),
        ({"cpu.max": "50000 100000\n"}, 1, 1),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1, 16),
    ],
)
def test_threads_fit_the_time_that_a_container_may_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], workers: int, fitting: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    assert repository.fitting_threads(Settings(workers=workers, threads=64), tmp_path) == fitting


def test_settings_come_from_the_environment() -> None:
    found = Settings.from_environment({"MODELKILN_TOP": "3", "MODELKILN_STORE": "/x", "MODELKILN_THREADS": ""})
    assert (found.top, found.store, found.threads) == (3, Path("/x"), 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("TOP", "many"), ("TOP", "0"), ("INLINE_MS", "nan"), ("BODY_TIMEOUT_S", "-1"), ("WORKERS", "1.5")],
)
def test_a_setting_that_makes_no_sense_is_named(name: str, value: str) -> None:
    with pytest.raises(KilnError, match=f"MODELKILN_{name} is "):
        Settings.from_environment({f"MODELKILN_{name}": value})
