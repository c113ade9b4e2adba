"""A fresh clone answers: the zoo's models, with no store of one's own, over HTTP."""

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from catalog import ROOT, Store
from tests.serving import processes

ZOO = Store(ROOT / "zoo")


@pytest.mark.skipif(not ZOO.models(), reason="the zoo is empty")
def test_the_zoo_answers_where_nothing_was_trained(tmp_path: Path):
    settings = {"MODELKILN_STORE": str(tmp_path / "nothing"), "MODELKILN_ZOO": str(ZOO.root)}
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    with processes.serving(tmp_path, settings=settings) as server:
        for model in ZOO.models():
            for card in ZOO.variants(model):
                asked: dict[str, str | int] = {"model": model, "version": card.variant.version, "top": 10}
                answer = httpx.post(f"{server.url}/predict", params=asked, content=buffer.getvalue(), timeout=30)
                assert answer.status_code == 200, answer.text
                told = answer.json()
                assert (told["model"], told["version"]) == (model, card.variant.version)
                assert {p["class"] for p in told["predictions"]} == set(card.dataset.classes)
                assert sum(p["probability"] for p in told["predictions"]) == pytest.approx(1, abs=1e-3)
