"""Several seeds of one recipe, with and without a teacher."""

from __future__ import annotations

import dataclasses
import json

import pytest

from catalog import Recipe, Store
from tests.training.networks import stand_in
from training import data, distill, evaluation, seeds
from training.complete import complete
from training.job import Job
from training.loop import train
from training.seeds import Seeds


@pytest.fixture(scope="module")
def few() -> data.Dataset:
    whole = data.load("digits")
    parts = {name: getattr(whole, name)[:64] for name in ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")}
    return dataclasses.replace(whole, **parts)


def test_seeds_are_trained_once_and_a_teacher_beside_them(few, tmp_path, capsys, monkeypatch):
    stand_in(monkeypatch)
    monkeypatch.setattr(evaluation, "write_evaluation", lambda *_: None)  # slower than such a run
    trained = []

    def making(job: Job):
        trained.append(job.model)
        return complete(job, train(job), "python -m training")

    store = Store(tmp_path)
    recipe = Recipe(epochs=1, batch_size=32)
    job = Job("lenet", "lenet", "quick", recipe, few, 0, store)
    complete(job, train(job), "python -m training lenet")  # seed 0 is there already, as a user's own model

    plain, cards = seeds.run(job, 2, making)
    taught = dataclasses.replace(recipe, teacher="lenet")
    teacher = distill.find(store, "lenet", few)
    other, _ = seeds.run(dataclasses.replace(job, recipe=taught, teacher=teacher), 2, making)

    assert [name.rpartition("-")[0] for name in trained] == ["lenet-quick-1", "lenet-quick-0", "lenet-quick-1"]
    assert store.models() == ["lenet"], "the copies must not be exported or served"
    assert plain.top1 == [card.accuracy.top1 for card in cards] and [card.seed for card in cards] == [0, 1]
    assert seeds.run(job, 2, making)[0] == plain and len(trained) == 3

    of_other_data = dataclasses.replace(job, dataset=dataclasses.replace(few, sha256="0" * 64))
    seeds.run(of_other_data, 1, making)
    assert len(trained) == len(set(trained)) == 4 and len(Store(tmp_path / seeds.FOLDER).models()) == 4
    assert seeds.run(job, 1, making, force=True)[1][0].model == trained[-1] != "lenet"

    seeds.forget(job, 2)  # as --force does; stopped after the first, it goes on without it
    before = len(trained)
    seeds.run(job, 1, making, force=True)
    seeds.run(job, 2, making)
    assert [name.split("-")[2] for name in trained[before:]] == ["0", "1"], "an old seed was taken for a new one"

    seeds.report("lenet", "digits", [plain, other])
    assert "the teacher changes it by" in capsys.readouterr().out
    told = json.loads(seeds.to_json("lenet", "digits", [plain, other], cards))
    assert told["sets"][1]["teacher"] == "lenet" and told["sets"][0]["top1"] == plain.top1


def test_mean_and_spread():
    assert Seeds("cpu", "", [70.0, 72.0, 74.0], 10_000).mean == 72.0
    assert Seeds("cpu", "", [70.0, 72.0, 74.0], 10_000).spread == 2.0
    assert Seeds("cpu", "", [70.0], 10_000).spread == 0.0
