"""The evaluation's figures against scikit-learn's and against cases worked by hand; schedules; distillation labels."""

import numpy as np
import pytest
from sklearn import metrics

import catalog
from catalog import Recipe
from training import distill, evaluation, optimize, plots
from training.loop import keras_namespace


@pytest.fixture
def predictions():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 500)
    logits = rng.normal(size=(500, 5)) + 2 * np.eye(5)[labels]  # class 4 is never true
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), labels


def test_confusion_and_scores_are_scikit_learns(predictions):
    probabilities, labels = predictions
    counts = evaluation.confusion(probabilities, labels)
    said = probabilities.argmax(axis=1)
    assert np.array_equal(counts, metrics.confusion_matrix(labels, said, labels=range(5)))
    theirs = metrics.precision_recall_fscore_support(labels, said, labels=range(5), zero_division=0)
    scores = evaluation.class_scores(counts, list("abcde"))
    assert np.allclose([[s.precision, s.recall, s.f1, s.images] for s in scores], np.transpose(theirs))


def test_calibration_error_by_hand():
    sure = np.array([[0.9, 0.1]] * 10, np.float32)
    labels = np.array([0] * 7 + [1] * 3)
    assert evaluation.reliability(sure, labels).error == pytest.approx(0.2, abs=1e-6)
    perfect = evaluation.reliability(np.array([[1.0, 0.0]] * 5, np.float32), np.zeros(5, np.int64))
    assert perfect.error == 0 and perfect.counts[-1] == 5 and np.isnan(perfect.accuracy[0])


def test_worst_mistakes_are_wrong_and_sorted_by_confidence(predictions):
    probabilities, labels = predictions
    worst = evaluation.worst_mistakes(probabilities, labels, most=10)
    assert (probabilities[worst].argmax(axis=1) != labels[worst]).all()
    assert (np.diff(probabilities[worst].max(axis=1)) <= 0).all() and len(worst) == 10


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(schedule="constant", epochs=2), [1, 1, 1, 1, 1, 1, 1, 1]),
        (Recipe(schedule="step", epochs=2), [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (Recipe(schedule="onecycle", epochs=2), [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (Recipe(schedule="cosine", epochs=2), 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8))),
    ],
)
def test_schedules(recipe, expected):
    assert np.allclose(optimize.learning_rates(recipe, 4), recipe.learning_rate * np.array(expected), atol=1e-9)


def test_weight_decay_spares_biases_and_batchnorm():
    keras = keras_namespace()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
    optimizer = optimize.optimizer(keras, Recipe(optimizer="sgd", learning_rate=0.1, weight_decay=0.5), 1)
    optimizer.build(model.trainable_variables)
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables])
    after = {v.path.rpartition("/")[2]: float(np.asarray(v).mean()) for v in model.trainable_variables}
    assert after["kernel"] == pytest.approx(0.95) and after["bias"] == after["gamma"] == after["beta"] == 1


def test_rmsprop_decays_kernels_alone_too():
    keras = keras_namespace()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    optimizer = optimize.optimizer(keras, Recipe(optimizer="rmsprop", learning_rate=0.1, weight_decay=0.5), 1)
    assert type(optimizer) is keras.optimizers.RMSprop
    optimizer.build(model.trainable_variables)
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables])
    assert [float(np.asarray(v).mean()) for v in model.trainable_variables] == pytest.approx([0.95, 1.0])


def test_momentum_is_nesterovs():
    keras = keras_namespace()
    optimizer = optimize.optimizer(keras, Recipe(optimizer="sgd", learning_rate=0.1, momentum=0.9), 1)
    weight = keras.Variable([1.0])
    optimizer.build([weight])
    optimizer.apply([keras.ops.ones((1,))])
    assert float(np.asarray(weight)[0]) == pytest.approx(1 - 0.1 * (1 + 0.9))  # the first step looks ahead by one


def test_class_names_are_no_formulas():
    names = ["$5_$10", "a$b", "plain"]
    assert plots.confusion(np.eye(3, dtype=np.int64), names)[:4] == b"\x89PNG"
    image = np.zeros((4, 4, 3), np.uint8)
    assert plots.grid([(image, f"{name}\nsaid {name}") for name in names], columns=2)[:4] == b"\x89PNG"


def test_a_short_run_forgets_its_first_weights():
    keras = keras_namespace()
    recipe = Recipe(optimizer="sgd", learning_rate=0.1, average=0.998, epochs=10)
    optimizer = optimize.optimizer(keras, recipe, 10)
    weight = keras.Variable([1.0])
    optimizer.build([weight])
    for _ in range(100):
        optimizer.apply([keras.ops.zeros(1)])
        weight.assign([0.0])
    assert 0 < optimize.averages(optimizer)[0] < 1e-3


@pytest.mark.parametrize("model", catalog.plugin_names("training.models"))
def test_on_as_many_images_as_cifar10_a_recipe_averages_as_it_says(model):
    for name, recipe in catalog.plugin("training.models", model).RECIPES.items():
        if name != "quick":
            assert optimize.average_momentum(recipe, recipe.epochs * 45_000 // recipe.batch_size) == recipe.average


def test_distillation_loss_is_hintons():
    keras = keras_namespace()
    recipe = Recipe(teacher="t", temperature=4.0, distill_weight=0.7)
    logits = np.array([[2.0, 0.5, -1.0]], np.float32)
    teacher = distill.soften(np.array([[0.7, 0.2, 0.1]], np.float32), 4.0)
    y = np.concatenate([[[0.0, 1.0, 0.0]], teacher], axis=1).astype(np.float32)

    def cross_entropy(target: np.ndarray, z: np.ndarray) -> float:
        return float(-(target * (z - np.log(np.exp(z).sum()))).sum())

    by_hand = 0.3 * cross_entropy(y[0, :3], logits[0]) + 0.7 * 16 * cross_entropy(teacher[0], logits[0] / 4)
    ours = np.asarray(optimize.loss(keras, recipe, 3)(y, keras.ops.convert_to_tensor(logits)))
    assert ours == pytest.approx(np.array([by_hand]), rel=1e-5)


def test_distillation_weights_every_example_by_its_class():
    keras = keras_namespace()
    rng = np.random.default_rng(0)
    logits, weight = rng.normal(size=(6, 3)).astype(np.float32), np.array([5, 1, 1, 0.1, 1, 2], np.float32)
    y = np.concatenate([np.eye(3)[[0, 1, 2, 0, 1, 2]], np.full((6, 3), 1 / 3)], axis=1).astype(np.float32)
    loss = optimize.loss(keras, Recipe(teacher="t"), 3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("linear")])
    model.compile(loss=loss)
    each = np.asarray(loss(keras.ops.convert_to_tensor(y), keras.ops.convert_to_tensor(logits)))
    said = model.evaluate(logits, y, sample_weight=weight, verbose=0)
    assert said == pytest.approx((weight * each).mean(), rel=1e-5)


def test_softened_probabilities_are_the_softmax_of_the_divided_logits():
    logits = np.array([[3.0, 1.0, -2.0]])
    at = [np.exp(logits / t) / np.exp(logits / t).sum() for t in (1, 4)]
    assert np.allclose(distill.soften(at[0].astype(np.float32), 4.0), at[1], atol=1e-6)
