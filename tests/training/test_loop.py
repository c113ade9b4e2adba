"""The loop from inside: what an epoch's arrays are, averaging, class weights, small images first, distillation."""

import dataclasses

import numpy as np
import pytest

from catalog import KilnError, Recipe, Store
from tests.export import train_tiny
from tests.training.networks import any_size, stand_in
from training import data, distill, epochs, loop, network, optimize
from training.checkpoint import Checkpoints
from training.complete import complete
from training.job import Job
from training.models import mobilenetv2


@pytest.fixture(scope="module")
def few() -> data.Dataset:
    whole = data.load("digits")
    return dataclasses.replace(
        whole, x_train=whole.x_train[:48], y_train=whole.y_train[:48], x_val=whole.x_val[:20], y_val=whole.y_val[:20]
    )


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a teacher, `tiny`, that knows the digits."""
    store = Store(tmp_path_factory.mktemp("taught"))
    train_tiny.main(str(store.root))
    return store


def job(few: data.Dataset, store: Store, architecture: str = "lenet", **recipe: object) -> Job:
    made = dataclasses.replace(Recipe(batch_size=16, epochs=2), **recipe)  # type: ignore[arg-type]
    return Job("m", architecture, "test", made, few, 0, store)


def test_small_images_first_with_mixing_averaging_and_class_weights(few, tmp_path, monkeypatch):
    seen = []
    draw = loop._Run.draw

    def watched(run, epoch):
        seen.append(draw(run, epoch))
        return seen[-1]

    monkeypatch.setattr(loop._Run, "draw", watched)
    stand_in(monkeypatch)
    asked = job(
        few, Store(tmp_path), "resnet18", sizes=((0.0, 16), (0.5, 32)), cutmix=1.0, average=0.5,
        class_weights=True, augment="advanced", optimizer="sgd", learning_rate=0.01, weight_decay=1e-3,
    )  # fmt: skip
    trained = loop.train(asked)
    assert [x.shape for x, *_ in seen] == [(48, 16, 16, 3), (48, 32, 32, 3)]
    weights = seen[0][2]
    assert weights is not None and len(np.unique(weights)) > 1
    assert weights.mean() == pytest.approx(1, abs=0.05)
    assert len(trained.history) == 2
    card = complete(asked, trained, "python -m training resnet18")
    saved = trained.keras.models.load_model(asked.folder / "model.keras", compile=False)
    assert tuple(saved.input_shape) == (None, 32, 32, 3) and card.accuracy.images == 359
    assert card.weights_sha256 == network.weights_sha256(trained.model)


@pytest.mark.parametrize(
    ("own", "first"), [((32, 32), (24, 24)), ((64, 64), (48, 48)), ((64, 96), (48, 72)), ((10, 12), (8, 9))]
)
def test_the_sizes_of_a_recipe_follow_the_size_of_the_pictures(own, first):
    recipe = mobilenetv2.RECIPES["cpu"]
    assert epochs.size_at(recipe, 0, *own) == first
    assert epochs.size_at(recipe, recipe.epochs - 1, *own) == own


def test_pictures_that_are_no_squares_begin_small_and_meet_their_teacher_whole(few, tmp_path, monkeypatch):
    stand_in(monkeypatch)
    flat = dataclasses.replace(few, x_train=few.x_train[:, ::2, :24], x_val=few.x_val[:, ::2, :24])
    store, keras = Store(tmp_path), loop.keras_namespace()
    teacher = network.with_probabilities(keras, any_size(keras, (16, 24, 3), 10, Recipe()))
    store.model_dir("teacher").mkdir()
    teacher.save(store.model_dir("teacher") / "model.keras")
    asked = job(flat, store, sizes=((0.0, 16), (0.5, 32)), teacher="teacher")
    assert [epochs.draw(asked.recipe, flat, 0, epoch)[0].shape[1:3] for epoch in (0, 1)] == [(8, 12), (16, 24)]
    assert len(loop.train(asked).history) == 2


def test_what_is_saved_is_the_average_of_the_weights(few, tmp_path):
    plain = loop.train(job(few, Store(tmp_path / "a"), epochs=6)).model.get_weights()
    averaged = loop.train(job(few, Store(tmp_path / "b"), epochs=6, average=0.9)).model
    kept = optimize.averages(averaged.optimizer)
    for saved, average, last in zip(averaged.get_weights(), kept, plain, strict=True):
        np.testing.assert_array_equal(saved, average)
        assert not np.array_equal(saved, last)


def test_a_teacher_must_be_trained_on_the_same_data(taught, few):
    assert distill.teacher_card(taught, "tiny", few).model == "tiny"
    with pytest.raises(KilnError, match=r"was trained on digits, not on this other; train it first"):
        distill.teacher_card(taught, "tiny", dataclasses.replace(few, name="other", sha256="0" * 64))
    with pytest.raises(KilnError, match="no trained model 'simcnn'"):
        distill.teacher_card(taught, "simcnn", few)


def test_a_student_learns_its_teachers_answers_rather_than_the_labels(taught, few):
    """Taught with the whole weight on the teacher and every label false, it must follow the teacher."""
    lies = dataclasses.replace(few, y_train=(few.y_train + 1) % 10)
    asked = job(lies, taught, teacher="tiny", distill_weight=1.0, temperature=2.0, epochs=30, learning_rate=3e-3)
    asked = dataclasses.replace(asked, model="student")
    trained = loop.train(asked)
    Checkpoints(asked.folder / "checkpoints").clear()
    said = np.asarray(trained.model.predict(few.x_train, verbose=0)).argmax(axis=1)
    assert (said == few.y_train).mean() > 0.8


def test_a_store_that_cannot_be_written_is_noticed_before_the_first_step(few, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "prepare", lambda *_: pytest.fail("it began"))
    (tmp_path / "m").write_text("a file where the model's folder has to be")
    with pytest.raises(OSError):
        loop.train(job(few, Store(tmp_path)))


def test_resuming_with_another_seed_or_data_is_refused(few, tmp_path):
    first = job(few, Store(tmp_path), epochs=1)
    loop.train(first)
    with pytest.raises(KilnError, match=r"seed was 0, is 1.*--force"):
        loop.train(dataclasses.replace(first, seed=1))
