"""Ranges by three rules, the judge, the search and its cache, and layers that are given back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from onnx import numpy_helper

from catalog import KilnError, WeightCount
from export import proof
from export.formats import Conversion, Inside
from export.onnx import calibration, clusters, floats, graph, int8, integers, search
from export.onnx import inside as onnx_inside
from export.onnx.calibration import BINS, CHOICES, Choice, Spread
from export.onnx.graph import PIXELS, Core
from tests.export import residual
from tests.export.test_onnx import IMAGES, small_core
from training import network as networks

RNG = np.random.default_rng(1)


def spread_of(values: Any) -> Spread:
    counts, edges = np.histogram(values, BINS)
    return Spread(float(edges[0]), float(edges[-1]), counts)


def test_minmax_is_the_whole_range_and_holds_zero() -> None:
    ranges = calibration.ranges({"a": spread_of([1.0, 5.0]), "b": spread_of([-3.0, -1.0])}, "minmax")
    assert ranges == {"a": (0.0, 5.0), "b": (-3.0, 0.0)}


def test_percentile_leaves_out_the_outliers_and_no_more() -> None:
    values = np.append(np.linspace(-1, 1, 100_000), [50.0, -50.0])
    low, high = calibration.ranges({"t": spread_of(values)}, "percentile-99.99")["t"]
    assert -1.2 < low < -0.9 and 0.9 < high < 1.2
    assert calibration.ranges({"t": spread_of(np.linspace(0, 1, 1000))}, "percentile-99.999")["t"][1] > 0.99


def test_entropy_clips_a_lone_outlier_but_not_a_flat_distribution() -> None:
    activations = np.maximum(RNG.normal(0, 1, 400_000), 0)  # half of them zero, as behind a ReLU
    low, high = calibration.ranges({"t": spread_of(np.append(activations, 40.0))}, "entropy")["t"]
    assert low == 0 and 3.5 < high < 20
    flat = calibration.ranges({"t": spread_of(RNG.uniform(0, 1, 100_000))}, "entropy")["t"]
    assert flat[1] > 0.95


def test_least_squares_clip_when_clipping_costs_less_than_rounding() -> None:
    def error(values: Any, high: float) -> float:
        step = high / 255
        return float(np.mean((np.clip(np.round(values / step), 0, 255) * step - values) ** 2))

    activations = np.append(np.abs(RNG.normal(0, 1, 100_000)), 12.0)
    low, high = calibration.ranges({"t": spread_of(activations)}, "mse")["t"]
    assert low == 0 and high < 12 and error(activations, high) < 0.9 * error(activations, 12.0)
    assert error(activations, high) <= 1.02 * min(error(activations, top) for top in np.linspace(1, 12, 200))
    assert calibration.ranges({"t": spread_of(RNG.uniform(-1, 1, 10_000))}, "mse")["t"] == pytest.approx(
        (-1, 1), abs=0.02
    )
    assert calibration.ranges({"t": Spread(0.0, 0.0, np.eye(1, BINS, dtype=np.int64)[0])}, "mse")["t"] == (0, 0)


def test_an_unknown_rule_is_an_error_that_lists_them() -> None:
    with pytest.raises(ValueError, match="entropy"):
        calibration.ranges({}, "guess")


def test_what_is_measured_is_what_the_network_computes() -> None:
    core = small_core(3, 1, (1, 1, 1, 1))
    quantizer = int8.Quantizer(core, IMAGES)
    spreads = quantizer.spreads
    assert {PIXELS, "c", "r"} <= set(spreads)
    pixels = quantizer.pixels(IMAGES)
    assert spreads[PIXELS].low == pixels.min() and spreads[PIXELS].high == pixels.max()
    assert spreads[PIXELS].counts.sum() == pixels.size and spreads["r"].low == 0
    assert spreads["r"].high == max(spreads["c"].high, 0)


def test_damage_is_zero_for_the_same_answers_and_grows() -> None:
    answers = RNG.dirichlet(np.ones(5), 200).astype(np.float32)
    labels = answers.argmax(1)
    same = calibration.judge(answers, answers, labels)
    assert same.damage == 0 and same.agreement == 1 and same.top1 == 100
    near, far = (answers * (1 - share) + share / 5 for share in (0.1, 0.5))
    assert 0 < calibration.judge(near, answers, None).damage < calibration.judge(far, answers, None).damage
    assert calibration.judge(near, answers, None).words()["validation_top1"] is None


@pytest.fixture
def request_(tmp_path: Path) -> Conversion:
    path = tmp_path / "model.keras"
    path.write_bytes(b"stands for the model in the cache's key")
    labels = np.zeros(len(IMAGES), np.int64)
    return Conversion(path, tmp_path, "int8", IMAGES, IMAGES[:48], labels[:48], threads=1, cache=tmp_path / "searches")


def test_a_search_tries_everything_and_is_not_repeated(request_: Conversion, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = int8.Quantizer(small_core(3, 1, (1, 1, 1, 1)), IMAGES)
    found = search.chosen(request_, quantizer)
    assert len(found.log) == len(CHOICES) + 1 == 16
    assert all(choice.words().items() <= step.items() for choice, step in zip(CHOICES, found.log[:-1], strict=True))
    best = min(found.log, key=lambda step: step["damage"])
    assert best["rounding"] == "gptq" and {**found.log[-1], "rounding": "gptq"}.items() >= found.choice.words().items()
    assert found.choice.words().items() <= best.items()
    told = {"calibration_method": best["calibration"]}
    told |= {name: best[name] for name in ("per_channel", "dense_by_tensor", "rounding")}
    assert found.settings == {"calibration": "searched on the validation split", **told}
    monkeypatch.setattr(search.Bench, "judge", lambda *_: pytest.fail("it searched again"))
    again = search.chosen(request_, quantizer)
    assert (again.choice, again.log) == (found.choice, found.log)
    (kept,) = (request_.cache or Path()).iterdir()
    kept.write_text("{ cut off")
    with pytest.raises(pytest.fail.Exception, match="searched again"):
        search.chosen(request_, quantizer)


class Brittle(search.Bench):
    """A bench on which the layer `bad` ruins whatever it is quantized in, and everything else is harmless."""

    bad = "dense"

    def judge(self, choice: Choice, count: int | None = None) -> calibration.Judgement:
        harmful = self.bad not in choice.floats
        return calibration.Judgement(1.0 if harmful else 0.1, self.parent_top1() - (50 if harmful else 0), 1.0)


def test_only_the_worst_layer_is_given_back(request_: Conversion) -> None:
    quantizer = int8.Quantizer(small_core(3, 1, (1, 1, 1, 1)), IMAGES)
    labels = np.asarray(request_.validation_labels)
    tried = Brittle(quantizer, IMAGES[:48], labels, 1)
    assert len(quantizer.layers) == 2
    Brittle.bad = quantizer.layers[1]
    budgeted = Conversion(**{**vars(request_), "allowed_drop": 0.5})
    choice, log = search.give_back(budgeted, tried, Choice())
    assert choice.floats == (Brittle.bad,)
    assert log[0]["validation_drop"] == 50 and log[-1]["validation_drop"] == 0
    assert next(step["layer"] for step in log if "layer" in step) == Brittle.bad
    generous = Conversion(**{**vars(request_), "allowed_drop": 60.0})
    assert search.give_back(generous, tried, Choice())[0].floats == ()


class Counted(search.Bench):
    """A bench of which each layer in float saves a point, and which is asked for `left` judgements at most."""

    left = 1000
    asked: ClassVar[list[int]] = []

    def judge(self, choice: Choice, count: int | None = None) -> calibration.Judgement:
        if not self.left:
            raise TimeoutError
        self.left -= 1
        self.asked.append(len(choice.floats))
        layers = len(self.quantizer.layers)
        return calibration.Judgement(layers - len(choice.floats), self.parent_top1() - layers + len(choice.floats), 1.0)


@pytest.fixture
def wide(request_: Conversion) -> tuple[Conversion, Counted]:
    """A network of as many layers as MobileNetV2 has, by name, and a budget that asks for 21 of them in float."""

    class Many(int8.Quantizer):
        layers = [f"layer{number:02}" for number in range(54)]  # noqa: RUF012

    quantizer = Many(small_core(3, 1, (1, 1, 1, 1)), IMAGES)
    tried = Counted(quantizer, IMAGES[:48], np.asarray(request_.validation_labels), 1)
    Counted.asked.clear()
    return dataclasses.replace(request_, allowed_drop=33.0), tried


def test_few_numbers_of_layers_are_tried(wide: tuple[Conversion, Counted]) -> None:
    request, tried = wide
    choice, log = search.give_back(request, tried, Choice())
    assert len(choice.floats) == 21
    assert [count for count in tried.asked if count != 53] == [0, 1, 2, 4, 8, 16, 32, 24, 20, 22, 21]
    assert tried.asked.count(53) == 54
    numbers = [len(step["float_layers"]) for step in log if "float_layers" in step]
    assert numbers == [0, 1, 2, 4, 8, 16, 32, 24, 20, 22, 21] and log[-1]["validation_drop"] == 33
    before = len(tried.asked)
    for allowed, fewest in ((33.0, 21), (33.4, 21), (34.0, 20), (100.0, 0), (-1.0, 54)):
        again, _ = search.give_back(dataclasses.replace(request, allowed_drop=allowed), tried, Choice())
        assert len(again.floats) == fewest
    assert tried.asked[before:] == [18, 19, 54]  # all else is known from the first time


def test_a_search_that_is_ended_goes_on_where_it_was(wide: tuple[Conversion, Counted]) -> None:
    request, tried = wide
    runs = 0
    while runs < 100:
        runs, tried.left = runs + 1, 10
        try:
            choice, log = search.give_back(request, tried, Choice())
            break
        except TimeoutError:
            continue
    assert len(choice.floats) == 21 and runs == 7 and len(tried.asked) == 54 + 11
    assert (choice, log) == search.give_back(
        dataclasses.replace(request, cache=None), Counted(**vars_of(tried)), Choice()
    )
    tried.left = 9
    with pytest.raises(TimeoutError):
        search.calibrate(request, tried)
    tried.left = 7
    assert len(search.calibrate(request, tried)[1]) == 9 + 7


def vars_of(tried: search.Bench) -> dict[str, Any]:
    return {"quantizer": tried.quantizer, "images": tried.images, "labels": tried.labels, "threads": tried.threads}


def test_a_calibration_that_keeps_the_budget_spares_every_layer(request_: Conversion) -> None:
    class Fickle(search.Bench):
        def judge(self, choice: Choice, count: int | None = None) -> calibration.Judgement:
            """By tensor it answers more often right, though further from the float answers."""
            lost = 0 if choice.keeps_dense else 50
            return calibration.Judgement(0.2 if choice.keeps_dense else 0.1, self.parent_top1() - lost, 1.0)

    quantizer = int8.Quantizer(small_core(3, 1, (1, 1, 1, 1)), IMAGES)
    tried = Fickle(quantizer, IMAGES[:48], np.asarray(request_.validation_labels), 1)
    budgeted = Conversion(**{**vars(request_), "allowed_drop": 0.5})
    start, log = search.calibrate(budgeted, tried)
    assert not start.keeps_dense
    spared = search._affordable(budgeted, tried, log, start)
    assert spared == Choice("minmax", dense_by_tensor=True, rounding="gptq")
    assert search.give_back(budgeted, tried, spared)[0].floats == ()


def test_a_budget_counts_from_the_network_as_trained(request_: Conversion) -> None:
    """What a transform has lost already is spent: its int8 model gets no budget of its own."""
    quantizer = int8.Quantizer(small_core(3, 1, (1, 1, 1, 1)), IMAGES)
    reference = search.run(floats.finish(quantizer.core), IMAGES[:48], 1)
    labels = reference.argmax(1)  # the transformed network gets half of them wrong that the parent got right
    parent, classes = np.eye(reference.shape[1], dtype=np.float32)[labels], reference.shape[1]
    labels[:24] = (labels[:24] + 1) % classes
    parent[:24] = np.eye(classes, dtype=np.float32)[labels[:24]]
    asked = dataclasses.replace(
        request_, validation_labels=labels.astype(np.int64), validation_parent=parent, allowed_drop=20.0
    )
    choice, log = search.give_back(asked, search.bench(asked, quantizer, {}), Choice())
    assert log[0]["validation_drop"] >= 40  # though int8 strays little from the transformed network itself
    assert set(choice.floats) == set(quantizer.layers)


def test_without_validation_images_the_card_says_what_judged(request_: Conversion) -> None:
    quantizer = int8.Quantizer(small_core(3, 1, (1, 1, 1, 1)), IMAGES)
    none = dataclasses.replace(request_, validation=IMAGES[:0], validation_labels=np.zeros(0, np.int64))
    found = search.chosen(none, quantizer)
    assert found.settings["calibration"] == "searched on the calibration images, none being held out"


def test_a_budget_needs_labels(request_: Conversion) -> None:
    quantizer = int8.Quantizer(small_core(3, 1, (1, 1, 1, 1)), IMAGES)
    tried = search.Bench(quantizer, IMAGES, None, 1)
    with pytest.raises(KilnError, match="validation"):
        search.give_back(Conversion(**{**vars(request_), "allowed_drop": 0.5}), tried, Choice())


@pytest.mark.parametrize("place", [0, 1], ids=["the first layer", "the last layer"])
def test_a_layer_left_in_float_runs_in_float(place: int, tmp_path: Path) -> None:
    core = small_core(3, 1, (1, 1, 1, 1))
    quantizer = int8.Quantizer(core, IMAGES)
    model = quantizer.model(Choice(floats=(quantizer.layers[place],)))
    path = tmp_path / "mixed.onnx"
    path.write_bytes(model.SerializeToString())
    optimized = graph.optimized(path)
    kinds = [node.op_type for node in optimized.graph.node]
    assert ("QLinearConv" in kinds) == (place == 1)
    integers.check(core, optimized, floats=1)
    with pytest.raises(ValueError, match="run in integers"):
        integers.check(core, optimized)
    reference = search.run(floats.finish(core), IMAGES, 1)
    assert calibration.judge(search.run(model, IMAGES, 1), reference, None).damage < 0.01


def compressed(clusters: int = 0, zeros: float = 0.0) -> Core:
    """A small network whose dense layer is wide enough to be pruned or clustered, and is; channels differ in size."""
    core = small_core(3, 1, (1, 1, 1, 1))
    dense = graph.initializer(core.model.graph, "d")
    kernel = RNG.normal(0, 1, (8, 40)) * np.geomspace(0.2, 3, 40)
    if clusters:
        edges = np.quantile(kernel, np.linspace(0, 1, clusters + 1))
        kernel = edges[np.clip(np.searchsorted(edges, kernel), 1, clusters)]
    kernel[RNG.random(kernel.shape) < zeros] = 0
    dense.CopyFrom(numpy_helper.from_array(kernel.astype(np.float32), "d"))
    core.model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 40
    return core


@pytest.mark.parametrize(
    ("core", "factor", "kept"),
    [
        (compressed(), 1.4, False),  # nothing to keep: the least damage decides
        (compressed(clusters=16), 3.0, True),  # clusters dissolve otherwise
        (compressed(zeros=0.8), 1.4, True),
        (compressed(zeros=0.8), 1.6, False),  # zeros stay either way, and this costs too much
    ],
    ids=["plain", "clustered", "pruned", "pruned, but too harmful"],
)
def test_what_is_in_dense_layers_is_kept_where_it_costs_little(
    core: Core, factor: float, kept: bool, request_: Conversion
) -> None:
    class Weighing(search.Bench):
        def judge(self, choice: Choice, count: int | None = None) -> calibration.Judgement:
            return calibration.Judgement(factor if choice.keeps_dense else 1.0, self.parent_top1(), 1.0)

    quantizer = int8.Quantizer(core, IMAGES)
    choice, _ = search.calibrate(request_, Weighing(quantizer, IMAGES[:48], np.asarray(request_.validation_labels), 1))
    assert choice.keeps_dense == kept


@pytest.mark.parametrize(
    ("zeros", "by_tensor", "dense", "chosen"),
    [
        (0.0, 1.1, 1.1, (True, False)),  # nothing to keep: the least damage decides
        (0.4, 1.4, 1.2, (False, True)),  # the smallest file, as long as it is not much worse
        (0.4, 1.6, 1.2, (True, True)),
        (0.4, 1.6, 1.6, (True, False)),
    ],
)
def test_a_pruned_network_takes_the_scales_that_compress_best(
    zeros: float, by_tensor: float, dense: float, chosen: tuple[bool, bool], request_: Conversion
) -> None:
    """Also where its convolutions are pruned and its dense layer is not."""
    core = small_core(3, 1, (1, 1, 1, 1))
    kernel = graph.initializer(core.model.graph, "w")
    values = numpy_helper.to_array(kernel).copy()
    values[RNG.random(values.shape) < zeros] = 0
    kernel.CopyFrom(numpy_helper.from_array(values, "w"))

    class Weighing(search.Bench):
        def judge(self, choice: Choice, count: int | None = None) -> calibration.Judgement:
            damage = 1.0 if not choice.keeps_dense else dense if choice.per_channel else by_tensor
            return calibration.Judgement(damage, self.parent_top1(), 1.0)

    quantizer = int8.Quantizer(core, IMAGES)
    assert quantizer.pruned == (zeros > 0)
    choice, _ = search.calibrate(request_, Weighing(quantizer, IMAGES[:48], np.asarray(request_.validation_labels), 1))
    assert (choice.per_channel, choice.keeps_dense) == chosen


def test_a_clustered_dense_layer_has_as_few_bytes_as_values(request_: Conversion, tmp_path: Path) -> None:
    """By the count that goes into a card: 16 values are 16 bytes, zeros are zeros; by channel they would be more."""
    quantizer = int8.Quantizer(compressed(clusters=16, zeros=0.5), IMAGES)
    found = search.chosen(request_, quantizer)
    assert found.settings["dense_by_tensor"]
    (kernel,) = quantizer.dense.values()

    def stored(choice: Choice) -> WeightCount:
        path = tmp_path / "model.onnx"
        model = quantizer.model(choice)
        graph.shorten(model)
        path.write_bytes(model.SerializeToString())
        inside = onnx_inside.inside(path)
        return proof.count(Inside([weights for weights in inside.weights if weights.shape == (8, 40)], None))

    whole, split = stored(found.choice), stored(Choice())
    assert len(np.unique(kernel)) >= whole.distinct >= 10 and split.distinct > 40
    assert np.count_nonzero(kernel == 0) <= whole.zeros and whole.types == {"int8": 320}


def test_learned_ranges_go_before_measured_ones() -> None:
    quantizer = int8.Quantizer(small_core(3, 1, (1, 1, 1, 1)), IMAGES)
    model = quantizer.model(learned={"r": (0.0, 25.5)}, widen=False)
    scales = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name.startswith("r_")}
    assert scales["r_scale"] == np.float32(0.1) and scales["r_zero_point"] == 0


@pytest.fixture(scope="module")
def clustered_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Keras model whose convolutions hold 16 values each, one with a BatchNorm behind it, one without."""
    import keras

    path = tmp_path_factory.mktemp("clustered") / "model.keras"
    network = residual.logits()
    for name in ("first", "last"):
        layer, rng = network.get_layer(name), np.random.default_rng(2)
        centroids = rng.normal(0, 0.3, 16)
        centroids[0] = 0
        sizes = rng.geometric(0.3, layer.kernel.shape) - 1  # most channels lack the largest ones
        layer.set_weights([centroids[np.argsort(np.abs(centroids))][np.minimum(sizes, 15)]])
    norm = network.get_layer("first_bn")
    norm.set_weights([np.ones(8), np.zeros(8), np.zeros(8), np.full(8, 1 - norm.epsilon)])  # as if there were none
    networks.with_probabilities(keras, network).save(path)
    return path


def test_clustered_convolutions_keep_their_values(clustered_path: Path, request_: Conversion, tmp_path: Path) -> None:
    """Also behind BatchNorm, which is folded into them: it multiplies every channel by a number of its own."""
    core = graph.core_of(clustered_path, None)
    quantizer = int8.Quantizer(core, IMAGES, clustered_path)
    assert len(quantizer.clusters) == 2 and len(int8.Quantizer(core, IMAGES).clusters) == 1
    found = search.chosen(dataclasses.replace(request_, keras_path=clustered_path), quantizer)
    assert found.choice.clusters and found.settings["clusters_kept"] and len(found.log) == 20
    assert {step["rounding"] for step in found.log} == {"nearest"}  # GPTQ would take weights out of their clusters

    def values(choice: Choice) -> list[int]:
        path = tmp_path / "model.onnx"
        path.write_bytes(quantizer.model(choice).SerializeToString())
        integers.check(core, graph.optimized(path))
        first, _, _, last, _ = onnx_inside.inside(path).weights
        return [len(np.unique(first)), len(np.unique(last))]

    assert max(values(found.choice)) <= 16 < min(values(Choice(dense_by_tensor=True)))
    reference = search.run(floats.finish(core), IMAGES, 1)
    assert calibration.judge(search.run(quantizer.model(found.choice), IMAGES, 1), reference, None).damage < 0.01


def test_only_a_kernel_that_was_clustered_counts_as_one() -> None:
    rng = np.random.default_rng(3)
    few = rng.normal(0, 1, 16)[rng.integers(0, 16, (3, 3, 8, 16))]
    factors = np.append(rng.uniform(0.1, 3, 15), 0.0)
    folded = (few * factors).transpose(3, 2, 0, 1).astype(np.float32)
    other = rng.normal(0, 1, few.shape)
    found = clusters.scales(folded, [other, few[:, :, :4], few[::-1], few])
    assert found is not None
    np.testing.assert_allclose(np.where(factors == 0, 1, factors) * np.abs(few).max() / 127, found, rtol=1e-5)
    assert clusters.scales(folded, [other, few[::-1]]) is None  # folded, and of another kernel
    assert clusters.scales(other.transpose(3, 2, 0, 1), [other, few]) is None
