"""Transforms without their tools: names, chains, recipes, what is due; and what a quantization-aware model becomes."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import catalog
from catalog import KilnError, Recipe, Store, Variant, plugin, plugin_names
from export import pipeline, process, transforming
from export.formats import Conversion
from export.onnx import graph as onnx_graph
from export.onnx import int8, learned, search
from export.onnx.calibration import Choice
from export.onnx.integers import CONVOLUTION, DENSE
from export.options import Options
from export.transforms import (
    ITS_OWN,
    MODEL,
    PACKAGE,
    Finetuning,
    Progress,
    Tuning,
    _kernels,
    chain,
    levels,
    name_of,
    prune,
)
from export.tuning.apply import Transform
from export.worker import Convert, Prepare, Reply
from tests.export.conftest import Run
from training import optimize

LEVELS = {"prune50", "prune80", "prune90", "prune2of4", "cluster16", "cluster32", "quantize_aware"}


def test_every_level_is_known_by_one_name() -> None:
    assert set(levels()) >= LEVELS
    assert all(catalog.valid_name(level) and not {"-", "+"} & set(level) for level in levels())
    declared = [level for file in plugin_names(PACKAGE) for level in plugin(PACKAGE, file).LEVELS]
    assert len(declared) == len(set(declared))


@pytest.mark.parametrize("text", ["prune80+cluster16+quantize_aware", "prune80-cluster16-quantize_aware"])
def test_a_chain_is_the_same_typed_or_named(text: str) -> None:
    stages = chain(text)
    assert [stage.file for stage in stages] == ["prune", "cluster", "quantize_aware"]
    assert stages[0].parameters == {"sparsity": 0.8}
    assert name_of(stages) == "prune80-cluster16-quantize_aware"
    assert catalog.valid_name(Variant("lenet", "onnx", "int8", name_of(stages)).version)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prune85", "no transform 'prune85'; there are: "),
        ("", "no transform ''"),
        ("prune80+", "no transform ''"),
        ("quantize_aware+prune80", "in this order: prune80+quantize_aware"),
        ("prune80+prune90", "each kind once"),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(KilnError, match=r"transform|chained") as caught:
        chain(text)
    assert words in str(caught.value)


def test_variants_of_transforms_have_their_names() -> None:
    asked = pipeline.wanted("lenet", ["onnx"], ["int8"], ["prune80", "prune80+quantize_aware", "prune80"])
    assert [v.version for v in asked] == ["prune80-onnx-int8", "prune80-quantize_aware-onnx-int8"]
    assert [v.version for v in pipeline.wanted("lenet", ["onnx"], ["int8"])] == ["onnx-int8"]


def test_fine_tuning_is_a_share_of_the_training() -> None:
    parent = Recipe(epochs=150, learning_rate=2e-3, mixup=0.2, average=0.99, teacher="big", sizes=((0.0, 24),))
    tuned = Tuning(epochs=0.1, learning_rate=0.1, families={"vgg16": {"epochs": 0.2, "changes": {"optimizer": "sgd"}}})
    recipe = tuned.recipe("lenet", parent.decisive())
    assert recipe.learning_rate == pytest.approx(2e-4)
    assert (recipe.epochs, recipe.optimizer) == (15, "adam")
    assert (recipe.mixup, recipe.average, recipe.teacher, recipe.sizes) == (0, 0, "", ())
    other = dataclasses.replace(recipe, epochs=30, optimizer="sgd")
    assert tuned.recipe("vgg16", parent.decisive()) == other
    assert tuned.recipe("vgg16", parent.decisive(), Finetuning(3)) == dataclasses.replace(other, epochs=3)
    assert tuned.recipe("lenet", Recipe(epochs=3).decisive()).epochs == tuned.at_least
    assert Recipe.of(json.loads(json.dumps(parent.decisive()))) == parent


def test_a_teacher_is_the_network_as_trained() -> None:
    parent = Recipe(teacher="big", distill_weight=0.5).decisive()
    plain, taught = (Tuning(distill=share).recipe("lenet", parent) for share in (0.0, 0.7))
    assert (plain.teacher, taught.teacher, taught.distill_weight, taught.views) == ("", "trained", 0.7, 0)
    other = Finetuning(teacher="simcnn/onnx-int8")
    plain, taught = (Tuning(distill=share).recipe("lenet", parent, other) for share in (0.0, 0.7))
    assert [(one.teacher, one.distill_weight, one.views) for one in (plain, taught)] == [(other.teacher, 0.7, 16)] * 2


def test_a_recipe_of_another_version_is_told() -> None:
    with pytest.raises(KilnError, match=r"unknown field 'depth'.*Train the model again"):
        Tuning().recipe("lenet", {"optimizer": "sgd", "depth": 3})


def test_lamp_spreads_the_share_over_the_kernels() -> None:
    rng = np.random.default_rng(0)
    shapes = {"narrow": (1.0, (5, 5, 6, 16)), "wide": (0.05, (400, 120))}
    weights = {name: [rng.normal(0, width, shape).astype(np.float32)] for name, (width, shape) in shapes.items()}
    shares = _kernels.lamp(weights, ["narrow", "wide"], 0.8)
    sizes = {name: arrays[0].size for name, arrays in weights.items()}
    assert sum(shares[name] * sizes[name] for name in sizes) == pytest.approx(0.8 * sum(sizes.values()), abs=2)
    assert shares["narrow"] < 0.5 < 0.8 < shares["wide"] < 0.9  # though its weights are the smaller ones
    scaled = {"narrow": [100 * weights["narrow"][0]], "wide": weights["wide"]}
    assert _kernels.lamp(scaled, ["narrow", "wide"], 0.8) == pytest.approx(shares, abs=1e-3)  # scale does not matter
    assert _kernels.lamp(weights, ["wide"], 0.5) == {"wide": 0.5}


def test_the_smallest_kernels_are_spared_and_the_others_make_up_for_them() -> None:
    rng = np.random.default_rng(0)
    shapes = {"conv": (5, 5, 6, 16), "wide": (400, 120), "dense": (120, 84)}  # LeNet's
    weights = {name: [rng.normal(0, 1, shape).astype(np.float32)] for name, shape in shapes.items()}
    heavy = _kernels.heavy(weights, list(shapes))
    assert heavy == ["wide", "dense"]
    total = _kernels.size(weights, list(shapes))
    shares = _kernels.lamp(weights, heavy, 0.8 * total / _kernels.size(weights, heavy))
    for name in heavy:
        kernel = weights[name][0]
        kernel[np.abs(kernel) < np.quantile(np.abs(kernel), shares[name])] = 0
    assert _kernels.together(weights, list(shapes)) == pytest.approx(0.8, abs=1e-3)
    many = {f"block{number}": [np.ones(1000, np.float32)] for number in range(100)}  # of 1% each: not all of them
    assert len(_kernels.heavy(many, list(many))) == 95
    assert _kernels.heavy({"only": [np.ones(9, np.float32)]}, ["only"]) == ["only"]


def test_most_of_a_pruning_mends_the_final_masks_at_a_high_rate() -> None:
    recipe = prune.TUNING.recipe("lenet", Recipe(epochs=150, learning_rate=2e-3).decisive())
    rates = optimize.learning_rates(recipe, 100)
    assert prune.RAMP < 0.5 and rates[round(prune.RAMP * len(rates))] > 0.75 * rates[0]


class Workers:
    """Stands in for the processes: writes what a transform would write, and counts."""

    def __init__(self, error: str = "") -> None:
        self.asked: list[Any] = []
        self.error = error
        self.told: dict[str, Any] = {"settings": {"zeros": 1}, "parameters": 7, "macs": 8, "val_top1": 90.0}

    def ask(self, request: Any, timeout: float, scratch: Any = None, watch: Any = None) -> Reply:
        self.asked.append(request)
        if not isinstance(request, Transform):
            raise AssertionError(request)
        if self.error:
            return Reply(self.error)
        Path(request.checkpoints).mkdir(parents=True)
        Path(request.progress).write_text('{"done": 3, "total": 4, "figures": "acc"}')
        watch()
        Path(request.folder, MODEL).write_text(request.level + request.parent_sha256)
        return Reply(settings={**self.told, "weights_sha256": request.level})


def test_each_link_is_made_once_and_again_only_if_due(trained: Store, tmp_path: Path, monkeypatch: Any) -> None:
    store, workers, seen = Store(tmp_path), Workers(), list[tuple[str, Progress]]()
    monkeypatch.setattr(process, "ask", workers.ask)
    card, stages = trained.card("tiny"), chain("prune80+cluster16")

    def make(links: Any, asked: Finetuning = ITS_OWN, force: bool = False) -> Any:
        return transforming.make(store, card, links, asked, force, lambda name, at: seen.append((name, at)))

    source = make(stages)
    assert [request.level for request in workers.asked] == ["prune80", "cluster16"]
    assert [request.parent_sha256 for request in workers.asked] == [card.weights_sha256, "prune80"]
    taught = (str(store.model_dir("tiny").resolve() / MODEL), card.weights_sha256)  # every link by the same network
    assert [(request.teacher_path, request.teacher_sha256) for request in workers.asked] == [taught] * 2
    assert seen[0] == ("prune80", Progress(3, 4, "acc")) and seen[1][0] == "prune80-cluster16"
    assert source.keras_path == store.transform_dir("tiny", "prune80-cluster16").resolve() / MODEL
    assert not list((tmp_path / "tiny" / "transforms").glob(".*"))  # no checkpoints, nothing staged
    assert make(stages) == make(stages[:1] + stages[1:]) == transforming.found(store, card, stages, ITS_OWN)
    assert len(workers.asked) == 2
    make(stages, force=True)
    assert [request.level for request in workers.asked[2:]] == ["cluster16"]
    assert transforming.found(store, card, stages, Finetuning(5)) is None  # another length of fine-tuning
    assert transforming.found(store, dataclasses.replace(card, weights_sha256="0"), stages, ITS_OWN) is None
    there = transforming.present(store, card, "prune80-cluster16")  # however it was fine-tuned
    assert there and (there.keras_path, there.weights_sha256) == (source.keras_path, "cluster16")
    assert transforming.present(store, dataclasses.replace(card, weights_sha256="0"), "prune80-cluster16") is None
    (store.transform_dir("tiny", "prune80") / MODEL).write_text("damaged")
    assert transforming.found(store, card, stages, ITS_OWN) is None
    told = transforming.settings(source.card)
    assert told["transform_sha256"] == "cluster16" and told["transform_parent_sha256"] == "prune80"


def test_a_transform_that_fails_leaves_nothing_and_a_row_for_each_variant(
    trained: Store, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "tiny").mkdir()
    for name in (MODEL, catalog.CARD):
        (tmp_path / "tiny" / name).write_bytes((trained.model_dir("tiny") / name).read_bytes())
    store, workers = Store(tmp_path), Workers(error="the loss is NaN")
    monkeypatch.setattr(process, "ask", workers.ask)
    variants = pipeline.wanted("tiny", ["onnx", "litert"], ["fp32"], ["prune80"])
    cards = pipeline.export(store, variants, Options(), begin=lambda _: None, done=lambda: None)
    assert len(workers.asked) == 1  # asked once, told twice
    assert [card.status for card in cards] == ["failed", "failed"]
    assert all("prune80" in card.reason and "NaN" in card.reason for card in cards)
    assert "--transforms prune80" in cards[0].command
    assert not store.transform_dir("tiny", "prune80").exists()


def test_a_teacher_that_is_named_is_told_to_the_worker_and_a_change_of_it_makes_a_link_due(
    trained: Store, tmp_path: Path, monkeypatch: Any
) -> None:
    store, workers, card = Store(tmp_path), Workers(), trained.card("tiny")
    monkeypatch.setattr(process, "ask", workers.ask)
    (tmp_path / "big").mkdir()
    path = store.model_dir("big") / MODEL
    path.write_text("it knows more")

    def known(weights: str) -> None:
        files = {MODEL: catalog.sha256_of(path)}
        big = dataclasses.replace(card, model="big", weights_sha256=weights, files=files)
        (tmp_path / "big" / catalog.CARD).write_text(catalog.to_json(big))

    known("of big")
    asked, links = Finetuning(teacher="big"), chain("prune80")
    said = dict(workers.told)
    monkeypatch.setattr(workers, "told", said)
    said["settings"] = {"teacher_sha256": "of big"}
    source = transforming.make(store, card, links, asked, False, lambda *_: None)
    (request,) = workers.asked
    assert (request.teacher_path, request.teacher_sha256) == (str(path.resolve()), "of big")
    assert (request.recipe["teacher"], request.recipe["views"]) == ("big", 16)
    assert source.card and source.card.asked == asked
    assert source.card.command == "python -m export tiny --transforms prune80 --teacher big --force"
    assert transforming.found(store, card, links, asked) == source
    assert transforming.found(store, card, links, ITS_OWN) is None
    known("of a better one")
    assert transforming.found(store, card, links, asked) is None
    with pytest.raises(KilnError, match="no trained model 'bigger'"):
        transforming.make(store, card, links, Finetuning(teacher="bigger"), False, lambda *_: None)


def test_a_variant_of_a_transform_as_it_is_tells_how_that_was_made(
    trained: Store, tmp_path: Path, monkeypatch: Any
) -> None:
    """A race converts what lies there, however long it was fine-tuned; the card's command makes the same again."""
    (tmp_path / "tiny").mkdir()
    for name in (MODEL, catalog.CARD):
        (tmp_path / "tiny" / name).write_bytes((trained.model_dir("tiny") / name).read_bytes())
    store, workers, variant = Store(tmp_path), Workers(), Variant("tiny", "onnx", "mixed", "prune80")
    monkeypatch.setattr(process, "ask", workers.ask)
    commands = []
    for epochs in (3, None):
        transforming.make(store, store.card("tiny"), chain("prune80"), Finetuning(epochs), True, lambda *_: None)
        monkeypatch.setattr(process, "ask", lambda request, *_: Reply(str(getattr(request, "precision", ""))))
        options = Options(as_it_is=True, allowed_drop=0.3, finetune=Finetuning(None if epochs else 5))
        (card,) = pipeline.export(store, [variant], options, begin=lambda _: None, done=lambda: None)
        commands.append(card.command)
        monkeypatch.setattr(process, "ask", workers.ask)
    asked = "python -m export tiny --transforms prune80 --formats onnx --precisions mixed"
    assert commands == [
        f"{asked} --finetune-epochs 3 --max-accuracy-drop 0.3 --force",
        f"{asked} --max-accuracy-drop 0.3 --force",
    ]


def test_only_a_transform_may_see_a_gpu() -> None:
    prepare = Prepare("", "", "digits", "", "", 0.1, 1, 0)
    convert = Convert("", "", "", "onnx", "fp32", 1)
    for request in (prepare, convert):
        assert process._environment(request)["CUDA_VISIBLE_DEVICES"] == "-1"
    transform = object.__new__(Transform)
    assert process._environment(transform).get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")


def test_learned_ranges_survive_their_file(tmp_path: Path) -> None:
    told = learned.Learned({"conv": (0.0, 5.5), "logits": (-3.0, 7.25)}, {"conv": [0.5, 0.25]})
    learned.write(told, tmp_path / "ranges.json")
    assert learned.read(tmp_path / "ranges.json") == told
    (tmp_path / "ranges.json").write_text('{"activations": {"conv": [1]}, "weights": {}}')
    with pytest.raises(KilnError, match=r"ranges\.json cannot be read"):
        learned.read(tmp_path / "ranges.json")


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.3, 4.1), (-2.0, 0.0), (0.5, 2.0)])
def test_zero_is_a_level_of_every_range(low: float, high: float) -> None:
    first, last = learned.nudged(low, high)
    step = (last - first) / 255
    assert first <= 0 <= last and abs(first / step - round(first / step)) < 1e-9
    assert abs(first - min(low, 0)) <= step and abs(last - max(high, 0)) <= step


# --- a quantization-aware LeNet, in earnest


@pytest.fixture(scope="session")
def aware(run: Run, trained: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What quantization-aware training of `tiny` leaves: model.keras, ranges.json, told.json."""
    out = tmp_path_factory.mktemp("aware")
    done = run("tests.export.transform_tiny", trained.root, out, "quantize_aware")
    assert done.returncode == 0, done.stderr
    return out / "quantize_aware"


@pytest.fixture(scope="session")
def quantizer(aware: Path) -> int8.Quantizer:
    """Of its float graph, with calibration images that are of no use: nothing may come from them."""
    return int8.Quantizer(onnx_graph.core_of(aware / MODEL, None), np.zeros((8, 32, 32, 3), np.uint8))


@pytest.fixture(scope="session")
def integer(aware: Path, quantizer: int8.Quantizer) -> tuple[learned.Learned, Any]:
    """Its learned ranges, and the graph that ONNX Runtime makes of the int8 model with them."""
    ranges = learned.read(aware / "ranges.json")
    tensors = learned.by_tensor(quantizer.prepared, quantizer.pixels, aware / MODEL, ranges)
    choice = Choice(dense_by_tensor=ranges.dense_by_tensor)
    onnx.save(quantizer.model(choice, tensors), aware / "int8.onnx")
    return ranges, onnx_graph.optimized(aware / "int8.onnx")


def test_a_quantization_aware_model_runs_in_integers(integer: tuple[learned.Learned, Any]) -> None:
    kinds = [node.op_type for node in integer[1].graph.node]
    assert sum(kind in CONVOLUTION for kind in kinds) == 2 and "QLinearConv" in kinds
    assert sum(kind in DENSE for kind in kinds) == 3
    assert not {"Conv", "Gemm", "MatMul", "QuantizeLinear", "DequantizeLinear"} & set(kinds)


def test_its_scales_are_the_learned_ones(integer: tuple[learned.Learned, Any]) -> None:
    ranges, graph = integer[0], integer[1].graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "QLinearConv"]
    for node, layer in zip(convolutions, ["conv2d", "conv2d_1"], strict=True):
        low, high = learned.nudged(*ranges.activations[layer])
        assert float(constants[node.input[6]]) == pytest.approx((high - low) / 255, rel=1e-5)
        assert int(constants[node.input[7]]) == round(-low / ((high - low) / 255))
        told = np.array(ranges.weights[layer]) / 127  # by channel, widened stems repeat them
        assert set(np.round(constants[node.input[4]].ravel() / told.max(), 4)) == set(np.round(told / told.max(), 4))
    dense = [node for node in graph.node if node.op_type == "QGemm"]
    for node, layer in zip(dense, ["dense", "dense_1", "logits"], strict=True):
        assert constants[node.input[4]].size == 1  # (a, a_scale, a_zero_point, b, b_scale, …)
        assert float(constants[node.input[4]].reshape(())) == pytest.approx(ranges.weights[layer][0] / 127, rel=1e-5)
    for node, layer in zip(dense, ["dense", "dense_1"], strict=False):  # the logits stay in float
        low, high = learned.nudged(*ranges.activations[layer])
        assert float(constants[node.input[7]]) == pytest.approx((high - low) / 255, rel=1e-5)


def test_the_search_takes_ranges_and_scales_as_they_were_trained(aware: Path, quantizer: int8.Quantizer) -> None:
    request = Conversion(aware / MODEL, aware, "int8", np.zeros((1, 32, 32, 3), np.uint8))
    found = search.chosen(request, quantizer)
    assert found.choice == Choice(dense_by_tensor=True) and found.learned and not found.log
    told = {"calibration": "learned in training", "calibration_method": "learned in training"}
    assert found.settings == {**told, "per_channel": True, "dense_by_tensor": True, "rounding": "nearest"}


def test_the_ranges_are_learned_on_images_and_told(aware: Path) -> None:
    told = json.loads((aware / "told.json").read_text())
    assert max(told["crossing_differences"]) <= 1e-5
    rows = told["history"]
    assert [row["epoch"] for row in rows] == [0, 1, 2] and rows[0].keys() == {"epoch", "val_accuracy"}
    best = max(rows, key=lambda row: row["val_accuracy"])
    assert (told["kept_epoch"], told["fake_quantized_val_accuracy"]) == (best["epoch"], best["val_accuracy"])
    assert rows[0]["val_accuracy"] > 0.5  # it could be measured before its first step
    assert told["teacher_sha256"]
    assert told["told"][-1] == [20, 20]
    ranges = learned.read(aware / "ranges.json").activations
    assert set(ranges) == {"conv2d", "conv2d_1", "dense", "dense_1", "logits"}
    assert all(low == 0 < high for name, (low, high) in ranges.items() if name != "logits")
    assert len({high for _, high in ranges.values()}) == len(ranges) and 6.0 not in {h for _, h in ranges.values()}


def test_a_range_of_no_tensor_is_an_error(aware: Path, quantizer: int8.Quantizer) -> None:
    cut = copy.deepcopy(quantizer.prepared)
    del cut.graph.node[-2:]  # the last dense layer and its softmax
    cut.graph.output[0].name = cut.graph.node[-1].output[0]
    del cut.graph.output[0].type.tensor_type.shape.dim[:]
    with pytest.raises(ValueError, match="logits is nowhere in the ONNX graph"):
        learned.by_tensor(cut, quantizer.pixels, aware / MODEL, learned.Learned({"logits": (-1.0, 1.0)}, {}))
