"""The loop from inside: what an epoch's arrays are, averaging, class weights, small images first, distillation."""

import dataclasses

import numpy as np
import pytest

import catalog
from catalog import KilnError, Recipe, Store
from tests.export import train_tiny
from tests.serving import stores
from tests.training.networks import any_size, stand_in
from training import data, devices, distill, epochs, loop, network, optimize
from training.checkpoint import Checkpoints
from training.complete import complete
from training.job import Job, alone
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
    teacher = distill.Teacher(store.model_dir(made.teacher) / "model.keras", "0") if made.teacher else None
    return Job("m", architecture, "test", made, few, 0, store, teacher=teacher)


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
    assert distill.find(taught, "tiny", few).sha256 == taught.card("tiny").weights_sha256
    with pytest.raises(KilnError, match=r"was trained on digits, not on this other; train it first"):
        distill.find(taught, "tiny", dataclasses.replace(few, name="other", sha256="0" * 64))
    with pytest.raises(KilnError, match="no trained model 'simcnn'"):
        distill.find(taught, "simcnn", few)


def test_a_variant_teaches_as_the_network_it_holds(few, tmp_path):
    colours, store = stores.write_model(tmp_path, "colours"), Store(tmp_path)
    weights = np.random.default_rng(0).normal(size=(3, 10))
    path = stores.write_variant(tmp_path, colours, stores.network(32, 32, weights), precision="int8")
    known = dataclasses.replace(few, sha256=colours.dataset.sha256)
    teacher = "colours/onnx-int8"

    assert distill.find(store, teacher, known) == distill.Teacher(path, catalog.sha256_of(path))
    asked: list[int] = []
    labels = distill.labeller(None, path, 2.0, 20)(few.x_train, asked.append)
    logits = few.x_train.mean(axis=(1, 2)) / 255 @ weights / 2.0
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert np.allclose(labels, expected / expected.sum(axis=1, keepdims=True), atol=1e-4)
    assert asked == [20, 40, 48]

    with pytest.raises(KilnError, match=r"colours/onnx-int8 was trained on digits, not on this digits"):
        distill.find(store, teacher, few)
    with pytest.raises(KilnError, match=r"no ONNX variant 'onnx-fp16' could teach; of colours there are: onnx-int8"):
        distill.find(store, "colours/onnx-fp16", known)
    path.write_bytes(b"altered")
    with pytest.raises(KilnError, match="is corrupt"):
        distill.find(store, teacher, known)


@pytest.mark.skipif(not (catalog.ROOT / "zoo" / "lenet").is_dir(), reason="the zoo is empty")
def test_a_teacher_of_the_zoo_needs_no_training(few, tmp_path):
    card = Store(catalog.ROOT / "zoo").card("lenet")
    cifar10 = dataclasses.replace(few, sha256=card.dataset.sha256)
    found = distill.find(Store(tmp_path), "lenet/onnx-int8", cifar10)
    labels = distill.labeller(None, found.path, 1.0, 16)(few.x_train, lambda answered: None)
    assert labels.shape == (48, 10) and np.allclose(labels.sum(axis=1), 1, atol=1e-5)
    with pytest.raises(KilnError, match=r"let one of zoo/ teach: lenet/onnx-fp32, lenet/onnx-int8"):
        distill.find(Store(tmp_path), "lenet", cifar10)


def test_a_student_learns_its_teachers_answers_rather_than_the_labels(taught, few):
    """Taught with the whole weight on the teacher and every label false, it must follow the teacher."""
    lies = dataclasses.replace(few, y_train=(few.y_train + 1) % 10)
    asked = job(lies, taught, teacher="tiny", distill_weight=1.0, temperature=2.0, epochs=30, learning_rate=3e-3)
    asked = dataclasses.replace(asked, model="student")
    trained = loop.train(asked)
    Checkpoints(asked.folder / "checkpoints").clear()
    said = np.asarray(trained.model.predict(few.x_train, verbose=0)).argmax(axis=1)
    assert (said == few.y_train).mean() > 0.8


def test_views_that_come_again_are_the_same_images_in_another_order(few):
    recipe = Recipe(augment="advanced", mixup=0.5, views=2, epochs=4)
    drawn = []
    for epoch in range(4):
        x, targets, _ = epochs.draw(recipe, few, 0, epoch)
        back = np.argsort(epochs.order(few, 0, epoch))
        assert not np.array_equal(x, x[back])
        drawn.append((x[back], targets[back]))
    for (images, targets), (again, targets_again) in zip(drawn[:2], drawn[2:], strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(targets, targets_again)
    assert not np.array_equal(drawn[0][0], drawn[1][0])
    assert not np.array_equal(drawn[0][0], epochs.draw(recipe, few, 1, 0)[0][np.argsort(epochs.order(few, 1, 0))])


@pytest.mark.parametrize("devices_", [1, 5])
def test_a_teacher_is_asked_about_each_view_once(few, devices_):
    """Of 48 images five devices can share 45; which three sit out differs between epochs."""
    asked = []

    def labels(x, answered):
        asked.append(len(x))
        assert len(x) % devices_ == 0
        return np.repeat(x.mean(axis=(1, 2, 3), dtype=np.float64)[:, None], 10, axis=1).astype(np.float32)

    recipe = Recipe(augment="basic", sizes=((0.0, 16), (0.5, 32)), views=2, epochs=12)
    taught = distill.Taught(recipe, few, 0, labels, devices_)
    for epoch in range(12):
        x, _, _ = epochs.draw(recipe, few, 0, epoch, devices_)
        whole = epochs.sized(x, 32, 32).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(taught.about(x, epoch, lambda answered, images: None)[:, 3], whole, rtol=1e-6)
    assert [n for n in asked if n > 10] == [48 - 48 % devices_] * 4, "two views, each small and whole"
    assert sum(n for n in asked if n <= 10) == (0 if devices_ == 1 else 20), "three that sat out, five at a time"


def test_a_run_says_how_far_its_teacher_is_and_can_be_stopped_meanwhile(taught, few):
    told = []

    def stop(*now):
        told.append(now)
        return True

    with pytest.raises(loop.Interrupted):
        loop.train(dataclasses.replace(job(few, taught, teacher="tiny"), model="asking", watch=stop))
    assert told == [(0, 6, "the teacher answered 48 of 48 images")], "before the first step"


def test_a_run_with_views_and_a_teacher_goes_on_to_the_same_weights(taught, few):
    asked = job(few, taught, teacher="tiny", views=2, epochs=4, augment="basic")
    whole = loop.train(dataclasses.replace(asked, model="whole")).model.get_weights()
    stopped = dataclasses.replace(asked, model="halted", watch=lambda done, total, _: done >= total * 0.6)
    with pytest.raises(loop.Interrupted):
        loop.train(stopped)
    after = loop.train(dataclasses.replace(stopped, watch=None)).model.get_weights()
    for a, b in zip(whole, after, strict=True):
        np.testing.assert_array_equal(a, b)


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


def test_a_stop_does_not_wait_for_the_teacher(taught, few):
    asked = dataclasses.replace(job(few, taught, teacher="tiny"), model="stopped")
    run = loop.prepare(asked)
    run.stop_asked = True
    with pytest.raises(loop.Interrupted):
        run.epoch(*run.draw(0))
    assert run.state.step == 0 and asked.checkpoints.any()


def test_bfloat16_is_noted_and_a_run_does_not_go_on_in_another_arithmetic(few, tmp_path, monkeypatch):
    stand_in(monkeypatch)
    monkeypatch.setattr(devices, "gains_from_bfloat16", lambda _: True)
    asked = job(few, Store(tmp_path), mixed_precision=True, augment="basic", average=0.5)
    trained = loop.train(asked)
    kernel = trained.model.layers[2]
    assert kernel.compute_dtype == "bfloat16" and kernel.variable_dtype == "float32"
    monkeypatch.setattr(devices, "gains_from_bfloat16", lambda _: False)
    with pytest.raises(KilnError, match="compute_dtype was 'bfloat16', is 'float32'"):
        loop.prepare(asked)
    monkeypatch.setattr(devices, "gains_from_bfloat16", lambda _: True)
    card = complete(asked, loop.train(asked), "python -m training any_size")  # goes on at its end
    saved = trained.keras.models.load_model(asked.folder / "model.keras", compile=False)
    assert card.compute_dtype == "bfloat16" and {layer.compute_dtype for layer in saved.layers} == {"float32"}
    assert (
        complete(asked, loop.train(dataclasses.replace(asked, over=True)), "again").weights_sha256
        == card.weights_sha256
    )
    plain = loop.train(dataclasses.replace(job(few, Store(tmp_path / "plain")), model="plain"))
    assert plain.model.layers[2].compute_dtype == "float32"


def test_a_flip_at_test_is_saved_counted_and_named(few, tmp_path, monkeypatch):
    stand_in(monkeypatch)
    cards = []
    for flip in (False, True):
        asked = job(few, Store(tmp_path / str(flip)), epochs=1, flip_at_test=flip)
        cards.append(complete(asked, loop.train(asked), "python -m training any_size"))
    assert cards[1].macs == 2 * cards[0].macs and not cards[0].notes
    assert "test-time flip" in cards[1].notes and cards[1].recipe["flip_at_test"] is True
    saved = loop.keras_namespace().models.load_model(asked.folder / "model.keras", compile=False)
    images = few.x_val
    np.testing.assert_allclose(
        saved.predict(images, verbose=0), saved.predict(images[:, :, ::-1], verbose=0), atol=1e-6
    )


def test_only_one_process_trains_into_a_folder(few, tmp_path):
    asked = job(few, Store(tmp_path))
    with alone(asked), pytest.raises(KilnError, match="another process is training m into"), alone(asked):
        pass
    with alone(asked):
        pass  # it is free again


def test_frozen_layers_are_for_imagenet_weights(few, tmp_path):
    with pytest.raises(KilnError, match="3 frozen layers would stay as they are drawn"):
        job(few, Store(tmp_path), frozen_layers=3)


def test_a_backend_that_trains_nothing_is_refused(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(KilnError, match="KERAS_BACKEND=torch is none of tensorflow, jax"):
        loop.keras_namespace()


def test_the_commit_in_a_card_is_that_of_the_code_that_trained(few, tmp_path, monkeypatch):
    stand_in(monkeypatch)
    monkeypatch.setattr(catalog, "commit", lambda: "before")
    asked = job(few, Store(tmp_path), epochs=1)
    trained = loop.train(asked)
    monkeypatch.setattr(catalog, "commit", lambda: "after")  # somebody committed while it trained
    assert complete(asked, trained, "python -m training any_size").commit == "before"


def test_a_training_step_is_traced_once(few, tmp_path):
    run = loop.prepare(job(few, Store(tmp_path), optimizer="adamw", average=0.9, weight_decay=0.01))
    traces, step = [], run.model.train_step

    def counted(batch):
        traces.append(1)
        return step(batch)

    run.model.train_step = counted
    run.epoch(*run.draw(0))
    assert len(traces) == 1
