"""A fresh clone answers: the zoo's models, with no store of one's own, over HTTP."""

import re
from pathlib import Path

import httpx
import pytest

from benchmarks.load import contents, held, wire
from catalog import ROOT, Store
from tests.serving import processes

ZOO = Store(ROOT / "zoo")


SAMPLES = sorted((ROOT / "serving/page/samples/cifar10").glob("*.png"))


@pytest.mark.skipif(not ZOO.models(), reason="the zoo is empty")
def test_the_zoo_recognizes_the_sample_images_where_nothing_was_trained(tmp_path: Path):
    settings = {"MODELKILN_STORE": str(tmp_path / "nothing"), "MODELKILN_ZOO": str(ZOO.root)}
    assert len(SAMPLES) == 6
    with processes.serving(tmp_path, settings=settings) as server:
        for card in (card for model in ZOO.models() for card in ZOO.variants(model)):
            model, version, right = card.variant.model, card.variant.version, 0
            for sample in SAMPLES:
                asked: dict[str, str | int] = {"model": model, "version": version, "top": 10}
                answer = httpx.post(f"{server.url}/predict", params=asked, content=sample.read_bytes(), timeout=30)
                assert answer.status_code == 200, answer.text
                told = answer.json()
                assert (told["model"], told["version"]) == (model, version)
                assert {p["class"] for p in told["predictions"]} == set(card.dataset.classes)
                assert sum(p["probability"] for p in told["predictions"]) == pytest.approx(1, abs=1e-3)
                right += told["predictions"][0]["class"] == sample.stem
            assert right >= 5, f"{card.variant} recognizes {right} of 6 drawings"


@pytest.mark.skipif("mobilenetv2" not in ZOO.models(), reason="the zoo has no mobilenetv2")
def test_requests_at_once_for_a_network_of_a_millisecond_share_batches(tmp_path: Path):
    """It is short enough for the event loop, where one handler runs after the other and sees nobody on the way."""
    settings = {"MODELKILN_STORE": str(tmp_path / "nothing"), "MODELKILN_ZOO": str(ZOO.root), "MODELKILN_THREADS": "1"}
    with processes.serving(tmp_path, settings=settings) as server:
        port = httpx.URL(server.url).port or 0
        seen = held.run(wire.closed(port, [contents.v2("mobilenetv2", "onnx-int8", contents.noise(1))], 32, 1.5))
        assert set(seen.statuses) == {200} and not seen.lost
        told = httpx.get(f"{server.url}/metrics", timeout=30).text
        figures = dict(re.findall(r'modelkiln_batch_images_(sum|count)\{model="mobilenetv2"[^}]*\} ([\d.]+)', told))
        assert float(figures["sum"]) > 4 * float(figures["count"])
