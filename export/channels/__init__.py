"""Which channels of a network stand or fall together, and the smaller network that is left without some of them.

Every channel that a convolution or dense layer makes gets a number. Numbers travel with the tensors: an activation or
BatchNorm hands them on, `Flatten` repeats them for every pixel, a depthwise convolution for every filter of a channel,
and where `Add` lays two tensors over each other their numbers become one. So whatever must be cut together bears the
same number, through residual and inverted-residual blocks alike, and no architecture is named here.

Channels that appear at the same places of the same layers are interchangeable: they form a group, out of which any may
be taken, and in which every one costs the same multiply-accumulates.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import KilnError

Ids = NDArray[np.int64]
Keep = NDArray[np.bool_]
"""bool `[channels]`, by channel number: whether it stays."""

_MAKERS = ("Conv2D", "Dense")
_SAME = (
    *(
        "InputLayer",
        "BatchNormalization",
        "ReLU",
        "LeakyReLU",
        "Activation",
        "Dropout",
        "SpatialDropout2D",
        "Rescaling",
    ),
    *(
        "MaxPooling2D",
        "AveragePooling2D",
        "GlobalAveragePooling2D",
        "GlobalMaxPooling2D",
        "ZeroPadding2D",
        "Cropping2D",
    ),
    *("UpSampling2D", "Softmax", "Identity"),
)
_JOINING = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")


@dataclass(frozen=True)
class Place:
    """A layer and the numbers of the channels that enter and leave it.

    `macs` is of one channel in times one out (of a depthwise convolution, of one channel out), `pixels` of its output.
    """

    name: str
    kind: str
    enter: Ids
    leave: Ids
    macs: int
    pixels: int


@dataclass(frozen=True)
class Group:
    """Interchangeable channels: their numbers, and how often each of them enters and leaves which layers."""

    name: str  # of the first layer that makes them
    channels: Ids
    enters: dict[str, int]
    leaves: dict[str, int]


@dataclass(frozen=True)
class Wiring:
    """A network as its channels see it. `fixed` are the image's channels, the classes, and what is not understood."""

    places: dict[str, Place]
    groups: list[Group]
    count: int

    def everything(self) -> Keep:
        """All channels kept."""
        return np.ones(self.count, bool)

    def macs(self, keep: Keep) -> int:
        """Multiply-accumulates for one image, as `training.network.macs` counts them in the rebuilt network."""
        return sum(
            place.macs * int(keep[place.leave].sum()) * (int(keep[place.enter].sum()) if place.kind in _MAKERS else 1)
            for place in self.places.values()
        )


class _Numbers:
    """Channel numbers while the graph is walked: a union-find over them."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.fixed: list[int] = []

    def new(self, count: int, fixed: bool = False) -> Ids:
        ids = np.arange(len(self.parent), len(self.parent) + count, dtype=np.int64)
        self.parent.extend(ids.tolist())
        if fixed:
            self.fixed.extend(ids.tolist())
        return ids

    def root(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def unite(self, one: Ids, other: Ids) -> None:
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            self.parent[self.root(b)] = self.root(a)


def wiring(model: Any) -> Wiring:
    """The wiring of a functional Keras 3 model; its outputs are not to be cut.

    Raises:
        KilnError: The model is not functional, or a convolution has groups or channels first.
    """
    if not hasattr(model, "_nodes_by_depth"):
        raise KilnError(
            f"{type(model).__name__} {model.name!r} cannot be pruned: only functional models show their graph"
        )
    numbers, tensors, seen = _Numbers(), dict[int, Ids](), dict[str, Place]()
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            layer, inputs = node.operation, [tensors[id(tensor)] for tensor in node.input_tensors]
            if len(node.outputs) != 1:
                raise KilnError(f"layer {layer.name!r} has {len(node.outputs)} outputs and cannot be pruned around")
            enter, leave = _pass(numbers, layer, inputs, node.outputs[0], seen.get(layer.name))
            tensors[id(node.outputs[0])] = leave
            if layer.name in seen:  # used a second time: the same weights see these channels as well
                numbers.unite(seen[layer.name].enter, enter)
                numbers.unite(seen[layer.name].leave, leave)
            else:
                kind = type(layer).__name__
                seen[layer.name] = Place(layer.name, kind, enter, leave, *_work(layer, kind))
    for output in model.outputs:
        numbers.fixed.extend(tensors[id(output)].tolist())
    roots = np.array([numbers.root(number) for number in range(len(numbers.parent))], np.int64)
    places = {
        name: dataclasses.replace(place, enter=roots[place.enter], leave=roots[place.leave])
        for name, place in seen.items()
    }
    return Wiring(places, _groups(places, set(roots[numbers.fixed].tolist())), len(roots))


def _pass(numbers: _Numbers, layer: Any, inputs: list[Ids], output: Any, before: Place | None) -> tuple[Ids, Ids]:
    """The channels that enter a layer and those that leave it."""
    kind, width = type(layer).__name__, int(output.shape[-1])
    enter = np.concatenate(inputs) if inputs else np.zeros(0, np.int64)
    _refuse_layout(layer, kind)
    if not inputs:
        return enter, numbers.new(width, fixed=True)
    if kind in _MAKERS:
        return enter, before.leave if before else numbers.new(width)
    if kind == "DepthwiseConv2D":
        return enter, np.repeat(enter, layer.depth_multiplier)
    if kind == "Flatten":
        return enter, np.tile(enter, width // len(enter))  # [h, w, c] in that order
    if kind == "Concatenate" and layer.axis in (-1, len(output.shape) - 1):
        return enter, enter
    if kind in _SAME and len(inputs) == 1:
        return enter, enter
    if kind in _JOINING and all(len(ids) == width for ids in inputs):
        for other in inputs[1:]:
            numbers.unite(inputs[0], other)
        return inputs[0], inputs[0]
    numbers.fixed.extend(enter.tolist())  # nobody knows what it does to them: they stay
    return enter, numbers.new(width, fixed=True)


def _refuse_layout(layer: Any, kind: str) -> None:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise KilnError(f"layer {layer.name!r} has its channels first; only channels_last networks can be pruned")
    if kind == "Conv2D" and layer.groups != 1:
        raise KilnError(f"layer {layer.name!r} is a convolution in {layer.groups} groups; such cannot be pruned")
    if kind == "BatchNormalization" and layer.axis not in (-1, len(layer.input.shape) - 1):
        raise KilnError(f"layer {layer.name!r} normalizes axis {layer.axis}; only the last one can be pruned")


def _work(layer: Any, kind: str) -> tuple[int, int]:
    """A layer's `macs` and `pixels`."""
    if kind == "Dense":
        return 1, 1
    if kind not in ("Conv2D", "DepthwiseConv2D"):
        return 0, 0
    _, height, width, _ = layer.output.shape
    if height is None or width is None:
        raise KilnError(f"layer {layer.name!r} takes images of any size; its work can be counted at one size only")
    return int(np.prod(layer.kernel_size)) * height * width, height * width


def _groups(places: dict[str, Place], fixed: set[int]) -> list[Group]:
    """Channels by where they appear, in the order of the layers that make them."""
    enters: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    leaves: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    maker: dict[int, str] = {}
    for place in places.values():
        for found, ids in ((enters, place.enter), (leaves, place.leave)):
            for number in ids.tolist():
                found[number][place.name] += 1
        if place.kind in _MAKERS:
            maker |= {number: place.name for number in place.leave.tolist() if number not in maker}
    alike: dict[Any, list[int]] = defaultdict(list)
    for number in sorted(maker):
        if number not in fixed:
            alike[tuple(enters[number].items()), tuple(leaves[number].items())].append(number)
    return [
        Group(maker[members[0]], np.array(members, np.int64), dict(enters[members[0]]), dict(leaves[members[0]]))
        for members in alike.values()
    ]


def widths(before: Wiring, after: Wiring) -> dict[str, list[int]]:
    """Channels before and after a pruning, by the layer that makes them."""
    return {
        name: [len(place.leave), len(after.places[name].leave)]
        for name, place in before.places.items()
        if place.kind in _MAKERS
    }


def without(model: Any, wired: Wiring, keep: Keep) -> Any:
    """A plain copy of `model` that has only the channels kept, with the weights that belong to them."""

    def narrower(layer: Any) -> Any:
        if not hasattr(layer, "get_weights"):
            return layer  # an operation without weights or widths
        config, place = layer.get_config(), wired.places[layer.name]
        field = {"Conv2D": "filters", "Dense": "units"}.get(place.kind)
        return type(layer).from_config({**config, **({field: int(keep[place.leave].sum())} if field else {})})

    import keras

    small = keras.models.clone_model(model, clone_function=narrower)
    for layer in small.layers:
        place, old = wired.places[layer.name], model.get_layer(layer.name)
        layer.set_weights([_cut(place, array, keep) for array in old.get_weights()])
    return small


def _cut(place: Place, array: NDArray[Any], keep: Keep) -> NDArray[Any]:
    """The part of one weight that belongs to the channels kept."""
    enter, leave = keep[place.enter], keep[place.leave]
    if place.kind in _MAKERS:
        return array[leave] if array.ndim == 1 else array[..., enter, :][..., leave]
    if place.kind == "DepthwiseConv2D":
        return array[leave] if array.ndim == 1 else array[:, :, enter]
    if place.kind == "BatchNormalization":
        return array[enter]
    return array
