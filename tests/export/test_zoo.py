"""The zoo: what is put there, what is refused, and that the one that ships is whole and within its size."""

import dataclasses

import numpy as np
import pytest

import catalog
from catalog import KilnError, Store
from export import zoo
from tests.serving.stores import COLOURS, network, write_model, write_variant


@pytest.fixture
def source(tmp_path) -> Store:
    parent = write_model(tmp_path / "store", "colours", top1=90)
    for precision in ("fp32", "int8"):
        write_variant(tmp_path / "store", parent, network(32, 32, 10 * np.eye(len(COLOURS))), precision=precision)
    write_variant(tmp_path / "store", parent, b"half", precision="fp16")
    write_variant(tmp_path / "store", parent, b"old", precision="mixed", parent_sha256="c" * 64)
    write_variant(tmp_path / "store", parent, b"strays", precision="int4", status="below-floor")
    return Store(tmp_path / "store")


def test_only_what_serves_is_put_there_and_it_verifies(source, tmp_path):
    there = Store(tmp_path / "zoo")
    zoo.renew(source, there, "colours")
    assert [card.variant.version for card in there.variants("colours")] == ["onnx-fp32", "onnx-int8"]
    for card in there.variants("colours"):
        there.verify(there.variant_dir(card.variant), card.files)
    assert there.card("colours").files == {}


def test_a_model_is_replaced_by_a_better_one_only(source, tmp_path):
    there = Store(tmp_path / "zoo")
    zoo.renew(source, there, "colours")
    with pytest.raises(KilnError, match=r"has 90\.00%, this one 90\.00%: no better"):
        zoo.renew(source, there, "colours")
    zoo.renew(source, there, "colours", force=True)
    better = dataclasses.replace(source.card("colours"), accuracy=catalog.Accuracy.of(95, 100))
    catalog.write_atomic(source.model_dir("colours") / catalog.CARD, catalog.to_json(better))
    zoo.renew(source, there, "colours")
    assert there.card("colours").accuracy.top1 == 95


def test_its_cards_name_no_folder_of_the_machine_they_were_made_on(source, tmp_path):
    there, card = Store(tmp_path / "zoo"), source.card("colours")
    command = "python -m training colours --store /home/me/artifacts --recipe cpu --root=/data"
    catalog.write_atomic(
        source.model_dir("colours") / catalog.CARD, catalog.to_json(dataclasses.replace(card, command=command))
    )
    zoo.renew(source, there, "colours")
    assert there.card("colours").command == "python -m training colours --recipe cpu"
    for shipped in Store(zoo.ROOT).models():
        assert "--store" not in Store(zoo.ROOT).card(shipped).command


def test_a_policy_outlives_its_model(source, tmp_path):
    there = Store(tmp_path / "zoo")
    zoo.renew(source, there, "colours")
    catalog.write_atomic(there.model_dir("colours") / catalog.POLICY, '{"model": "colours"}')
    zoo.renew(source, there, "colours", force=True)
    assert (there.model_dir("colours") / catalog.POLICY).read_text() == '{"model": "colours"}'


def test_a_corrupt_variant_or_too_much_leaves_the_zoo_as_it_is(source, tmp_path, monkeypatch):
    there = Store(tmp_path / "zoo")
    (source.model_dir("colours") / "variants" / "onnx-int8" / "model.onnx").write_bytes(b"altered")
    with pytest.raises(KilnError, match="is corrupt"):
        zoo.renew(source, there, "colours")
    monkeypatch.setattr(zoo, "LIMIT_BYTES", 10)
    with pytest.raises(KilnError, match=r"the zoo would have .* MB"):
        zoo.renew(source, there, "colours")
    assert there.models() == [] and not list(there.root.rglob("*.onnx"))


def test_what_ships_is_whole_servable_and_within_its_size():
    shipped = Store(zoo.ROOT)
    for model in shipped.models():
        assert shipped.variants(model), model
        for card in shipped.variants(model):
            shipped.verify(shipped.variant_dir(card.variant), card.files)
            assert card.status == "ok" and card.parent_sha256 == shipped.card(model).weights_sha256
    files = [path for path in zoo.ROOT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= zoo.LIMIT_BYTES
