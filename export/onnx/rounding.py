"""Rounds the weights of a network's layers by GPTQ, for int8; the mean of the error that is left goes into the bias.

A channel's scale is that of its largest weight, put up to the next of eight to the octave below the layer's largest: a
weight's step is 4% wider in the mean, and a layer has few scales instead of one that nothing compresses for every
channel, and so have the biases (of MobileNetV2 with four of five weights pruned they were a seventh of the file after
gzip). One scale of a whole kernel stays what it is, and so do zeros.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import write_atomic
from export.onnx import calibration
from export.onnx import graph as onnx_graph
from export.onnx.gptq import LEVELS, Floats, few_of, together
from export.onnx.graph import PRODUCTS

IMAGES = 256  # of those that calibrate
ROWS = 4096  # patches of a layer's input at least, and four for each weight of a filter
MOST_BYTES = 2**28  # of moments held at a time


@dataclass(frozen=True)
class Layer:
    """A product of the graph, its constant kernel, and its bias, if it has one."""

    node: Any
    kernel: NDArray[np.float32]
    bias: NDArray[np.float32] | None

    @property
    def rows(self) -> Floats:
        """The kernel as float64 `[groups, filters, inputs]`."""
        groups = onnx_graph.attributes(self.node).get("group", 1) if self.node.op_type == "Conv" else 1
        rows = self.filters(self.kernel).astype(np.float64)
        return rows.reshape(groups, len(rows) // groups, -1)

    def filters(self, kernel: NDArray[np.float32]) -> NDArray[np.float32]:
        """A kernel of this layer's shape with the output channels first, whichever way the node has it."""
        return kernel.T if self.axis else kernel

    def kernel_of(self, rows: Floats) -> NDArray[np.float32]:
        """The kernel that has these rows."""
        if self.axis:
            return np.ascontiguousarray(rows[0].T.astype(np.float32))
        return rows.reshape(self.kernel.shape).astype(np.float32)

    @property
    def axis(self) -> int:
        """The kernel's axis of output channels."""
        return 0 if self.node.op_type == "Conv" or self._turned else 1

    @property
    def _turned(self) -> bool:
        return bool(onnx_graph.attributes(self.node).get("transB", 0))


@dataclass(frozen=True)
class Rounded:
    """A layer's kernel and bias, still float32: every weight is a whole number of steps of its scale."""

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    steps: NDArray[np.float32]  # scales: of every output channel, or one


Roundings = dict[str, tuple[Rounded, Rounded]]  # by node name, to scales by channel and to one of the whole kernel


@dataclass(frozen=True)
class Moments:
    """Of a layer's inputs, by group: means `[groups, inputs]` and covariances `[groups, inputs, inputs]`.

    Without a bias that could take the error of the mean, means are 0 and covariances are around 0.
    """

    mean: Floats
    covariance: Floats


def rounded(model: Any, name: str, images: NDArray[np.uint8], pixels: calibration.Batches) -> Roundings:
    """By node name, every layer with a constant kernel: rounded to scales by channel, and to one of the whole kernel.

    Args:
        model: The float network, ONNX, BatchNorm folded.
        name: Of its input.
        images: Calibration images uint8 `[N, H, W, 3]`, of which `IMAGES` are used.
        pixels: Makes the input of images.
    """
    few = images[:: max(1, len(images) // IMAGES)]
    session, names = onnx_graph.exposed(model)
    seen, found = {name, *names}, {}
    for some in _in_parts([layer for layer in layers(model.graph) if layer.node.input[0] in seen]):
        kept = _sampled(session, some, name, few, pixels)
        for layer in some:
            moments = _moments(kept.pop(layer.node.name), layer.bias is not None)
            found[layer.node.name] = (_round(layer, moments, False), _round(layer, moments, True))
    return found


def kept(path: Path | None, make: Callable[[], Roundings]) -> Roundings:
    """What `make` returns, from `path` where an earlier conversion of the same export left it."""
    if path is not None and path.is_file():
        with np.load(path) as held:
            return {name: (_read(held, name, "channel"), _read(held, name, "whole")) for name in held["names"].tolist()}
    made = make()
    if path is not None:
        arrays = {"names": np.array(list(made))}
        for name, pair in made.items():
            for mode, one in zip(("channel", "whole"), pair, strict=True):
                arrays |= {f"{name} {mode}": one.kernel, f"{name} {mode} steps": one.steps}
                arrays |= {} if one.bias is None else {f"{name} {mode} bias": one.bias}
        with io.BytesIO() as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            write_atomic(path, file.getvalue())
    return made


def _read(held: Any, name: str, mode: str) -> Rounded:
    return Rounded(held[f"{name} {mode}"], held.get(f"{name} {mode} bias"), held[f"{name} {mode} steps"])


def put(graph: Any, node: Any, rounded: Rounded) -> None:
    """Gives a node of the graph its rounded kernel and bias."""
    from onnx import numpy_helper

    for place, values in ((1, rounded.kernel), (2, rounded.bias)):
        if values is not None:
            tensor = onnx_graph.initializer(graph, node.input[place])
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def layers(graph: Any) -> list[Layer]:
    """Those with a kernel of their own that the graph holds as a constant."""
    from onnx import numpy_helper

    used = [name for node in graph.node for name in node.input]
    tensors = {tensor.name: tensor for tensor in graph.initializer if used.count(tensor.name) == 1}
    found = []
    for node in graph.node:
        if node.op_type not in PRODUCTS or node.input[1] not in tensors:
            continue
        layer = Layer(node, numpy_helper.to_array(tensors[node.input[1]]), None)
        if layer.kernel.ndim != (4 if node.op_type == "Conv" else 2):
            continue
        bias = tensors.get(node.input[2]) if len(node.input) > 2 else None
        held = None if bias is None else numpy_helper.to_array(bias)
        alike = held is not None and held.size == len(layer.filters(layer.kernel))
        found.append(dataclasses.replace(layer, bias=held) if alike else layer)
    return found


def _in_parts(whole: list[Layer]) -> Iterator[list[Layer]]:
    """Layers in order, as many at a time as memory is given for; a pass over the images costs less than the memory."""
    part: list[Layer] = []
    held = 0
    for layer in whole:
        groups, _, inputs = layer.rows.shape
        size = 4 * groups * inputs * _most(inputs)
        if part and held + size > MOST_BYTES:
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    if part:
        yield part


def _most(inputs: int) -> int:
    """Patches that a layer with so many weights a filter is judged by."""
    return max(ROWS, 4 * inputs)


def _sampled(
    session: Any, some: list[Layer], name: str, images: NDArray[np.uint8], pixels: calibration.Batches
) -> dict[str, NDArray[np.float32]]:
    """By node what its filters are laid on, float32 `[groups, patches, inputs]`."""
    names = sorted({layer.node.input[0] for layer in some} - {name})
    rng, step = np.random.default_rng(0), 16
    parts: dict[str, list[NDArray[np.float32]]] = {layer.node.name: [] for layer in some}
    for start in range(0, len(images), step):
        feed = pixels(images[start : start + step])
        made = {name: feed, **dict(zip(names, session.run(names, {name: feed}) if names else (), strict=True))}
        for layer in some:
            share = -(-_most(layer.rows.shape[2]) * len(feed) // len(images))
            parts[layer.node.name].append(_patches(layer, made[layer.node.input[0]], share, rng))
    return {node: np.concatenate(batches, axis=1) for node, batches in parts.items()}


def _patches(layer: Layer, values: NDArray[np.float32], most: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """At most that many rows of inputs `[groups, rows, inputs]`, drawn without order from one batch of the tensor."""
    groups = len(layer.rows)
    if layer.node.op_type != "Conv":
        flat = values.reshape(-1, values.shape[-1])
        return flat[rng.permutation(len(flat))[:most]][None]
    windows = _windows(layer, values)  # [N, C, rows, columns, height, width]
    count, _, high, wide = windows.shape[:4]
    chosen = np.unravel_index(rng.permutation(count * high * wide)[:most], (count, high, wide))
    rows = windows[chosen[0], :, chosen[1], chosen[2]]  # [rows, C, height, width]
    return rows.reshape(len(rows), groups, -1).transpose(1, 0, 2)


def _windows(layer: Layer, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """All windows that a convolution's kernel is laid on, as a view of the padded input."""
    given = onnx_graph.attributes(layer.node)
    kernel = layer.kernel.shape[2:]
    strides, dilations = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = given.get("pads", [0, 0, 0, 0])
    same = given.get("auto_pad", b"NOTSET").decode()
    if same.startswith("SAME"):
        whole = [
            max(0, (-(-size // step) - 1) * step + span - size)
            for size, step, span in zip(values.shape[2:], strides, reach, strict=True)
        ]
        less, more = [size // 2 for size in whole], [size - size // 2 for size in whole]
        pads = [*less, *more] if same == "SAME_UPPER" else [*more, *less]
    padded = np.pad(values, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, (2, 3))
    return windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]


def _moments(inputs: NDArray[np.float32], centred: bool) -> Moments:
    groups, rows, size = inputs.shape
    mean = inputs.mean(axis=1, dtype=np.float64) if centred else np.zeros((groups, size))
    moved = inputs - mean[:, None].astype(np.float32)
    return Moments(mean, (moved.transpose(0, 2, 1) @ moved).astype(np.float64) / max(1, rows))


def _round(layer: Layer, moments: Moments, whole: bool) -> Rounded:
    """The layer with its weights rounded; `whole`: to one scale."""
    rows = layer.rows
    largest = np.abs(rows).max(axis=2)
    tops = np.full_like(largest, largest.max()) if whole else few_of(largest)
    made = together(rows, tops, moments.covariance)
    bias = layer.bias
    if bias is not None:
        owed = np.einsum("gfi,gi->gf", rows - made, moments.mean)
        bias = (bias + owed.reshape(bias.shape)).astype(np.float32)
    steps = (tops.reshape(-1)[: 1 if whole else None] / LEVELS).astype(np.float32)
    return Rounded(layer.kernel_of(made), bias, steps)
