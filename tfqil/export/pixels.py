"""Inputs of bytes whose normalization is the grid of the input, so that no operator of the file computes it.

A byte p stands for the value x = scale p + offset behind the normalization. If -offset / scale is a whole number z in
0 .. 255, that is the grid {scale, zero point z}: the byte is its own level, and nothing is rounded.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfqil import _host
from tfqil.export.arithmetic import Int8Grid
from tfqil.numerics.grid import ActivationGrid
from tfqil.numerics.storable import storable
from tfqil.scheme import accumulator
from tfqil.scheme.kinds import Kind, kind_of
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer

_LARGEST_BYTE = 255
# How far -offset / scale may be from a whole number, in levels: what 16 significant bits of a scale move level 255 by.
_TOLERANCE = 2.0**-8
# Images in [0, 1] end here, with what rounding their step adds.
_LARGEST_UNIT = 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    """How a model reads an input of bytes.

    Attributes:
        passed: names of the layers that such an input passes unchanged: the quantizer in front of the normalization,
            and the normalization itself.
        quantizer: name of the quantizer behind them, whose grid becomes `grid`.
        grid: the grid of the file's input, stored as int8: byte - 128.
        scale, offset: of the normalization, x = scale * byte + offset.
        highest: the largest byte that the data of the intervals had; what is above it is not clipped.
    """

    passed: tuple[str, str]
    quantizer: str
    grid: Int8Grid
    scale: float
    offset: float
    highest: int


def find_pixels(q_model: Any) -> dict[str, Pixels]:
    """The inputs of a calibrated model that can be bytes of pixels, by their names.

    Nothing but a Rescaling or Normalization reads such an input, with one scale > 0 and one offset for all channels,
    of which -offset / scale is a whole number in 0 .. 255; the values that its data had are in 0 .. 255, some above 1
    (images in [0, 1] have no bytes); and its normalized values have 8 bits.
    """
    return {name: pixels for name, pixels in _read(q_model).items() if isinstance(pixels, Pixels)}


def normalized_inputs(q_model: Any) -> frozenset[str]:
    """The names of the inputs that the model normalizes itself, and whose data were pixels of 0 to 255."""
    graph = _host.graph_of(q_model)
    inputs = [node for node in graph.nodes if not node.inputs and _host.is_floating(node)]
    found = {node.layer.name: _normalizing_layers(graph, node) for node in inputs}
    return frozenset(name for name, layers in found.items() if layers is not None and _are_pixels(layers[0].grid()))


def kept_normalizations(q_model: Any) -> dict[str, str]:
    """The inputs behind which a normalization stays an operator: by their names, why, and what would spare it."""
    return {name: reason for name, reason in _read(q_model).items() if isinstance(reason, str)}


def _read(q_model: Any) -> dict[str, Pixels | str]:
    """How each input that has a normalization can be read, or why it cannot be as pixels."""
    graph = _host.graph_of(q_model)
    found: dict[str, Pixels | str] = {}
    for node in graph.nodes:
        if not node.inputs and _host.is_floating(node):
            layers = _normalizing_layers(graph, node)
            normalization = _first_normalization(graph, node)
            if layers is not None:
                found[node.layer.name] = _read_through(*layers)
            elif normalization is not None:
                found[node.layer.name] = _why_not_alone(graph, normalization)
    return found


def _normalizing_layers(graph: _host.Graph, node: _host.Node) -> tuple[Any, Any, Any] | None:
    """The quantizer of an input, the normalization behind it, and its quantizer; None if anything else is there."""
    chain = [node]
    for _ in range(3):
        readers = graph.readers(chain[-1].outputs[0])
        if len(readers) != 1 or len(readers[0].outputs) != 1 or chain[-1].outputs[0] in graph.outputs:
            return None
        chain.append(readers[0])
    before, normalization, behind = (reader.layer for reader in chain[1:])
    are_known = all(isinstance(layer, QuantizeActivation) for layer in (before, behind)) and _is_affine(normalization)
    return (before, normalization, behind) if are_known else None


def _first_normalization(graph: _host.Graph, node: _host.Node) -> _host.Node | None:
    """The first normalization behind an input, with nothing before it but layers that keep values."""
    waiting = list(graph.readers(node.outputs[0]))
    while waiting:
        reader = waiting.pop(0)
        if _is_affine(reader.layer) or _is_norm(reader.layer):
            return reader
        if isinstance(reader.layer, QuantizeActivation) or kind_of(reader.layer) is Kind.KEEP:
            waiting += [behind for tensor in reader.outputs for behind in graph.readers(tensor)]
    return None


def _why_not_alone(graph: _host.Graph, normalization: _host.Node) -> str:
    """Why a normalization is not the one thing between an input's quantizer and another one, and the remedy."""
    if _is_norm(normalization.layer):
        return (
            "a BatchNormalization computes it, whose numbers training changes: put a Rescaling or Normalization in its "
            "place"
        )
    path = [normalization]
    while path[-1].inputs:
        path.append(graph.producer(path[-1].inputs[0]))
    on_path = {tensor for node in path for tensor in node.outputs}
    for node in path[1:]:
        others = [reader for reader in graph.readers(node.outputs[0]) if on_path.isdisjoint(reader.outputs)]
        if others:
            return f"{others[0].layer.name!r} reads the input too: let one normalization be all that reads it"
        if node.outputs[0] in graph.outputs:
            return "the model returns the input too: leave out that output"
        if node.inputs and not isinstance(node.layer, QuantizeActivation):
            return f"{node.layer.name!r} stands in front of it: put the normalization right behind the input"
    behind = [reader.layer for reader in graph.readers(normalization.outputs[0])]
    first = next((layer for layer in behind if not isinstance(layer, QuantizeActivation)), None)
    if first is not None:
        return (
            f"{first.name!r} reads its values before they have 8 bits of their own: put a layer with a kernel between, "
            "or leave that one out"
        )
    return "its values are not put on one grid of 8 bits: give the layers that read them edge_bits=8"


def _are_pixels(raw: ActivationGrid) -> bool:
    """Whether the grid of an input is that of data in 0 .. 255, and not in [0, 1]."""
    return not raw.zero and _LARGEST_UNIT < raw.maximum < _LARGEST_BYTE + 0.5


def _read_through(before: Any, normalization: Any, behind: Any) -> Pixels | str:
    for quantizing in (before, behind):
        if not _is_plain(quantizing):
            return _why_not_plain(quantizing)
    raw = before.grid()
    if not _are_pixels(raw):
        return (
            f"its data were in [{raw.minimum:.4g}, {raw.maximum:.4g}], which are no pixels of 0 to 255: train and "
            "calibrate on pixels, and leave it to this layer to normalize them"
        )
    scale_and_offset = _one_for_all_channels(normalization)
    if scale_and_offset is None:
        return (
            "it is another one for each channel: train with one mean and one variance for all, as "
            "Normalization(axis=None) has"
        )
    scale, offset = scale_and_offset
    if scale <= 0:
        return f"its scale {scale:.4g} is not positive: train with a positive one"
    zero = -offset / scale
    if abs(zero - round(zero)) > _TOLERANCE or not 0 <= round(zero) <= _LARGEST_BYTE:
        nearest = min(max(round(zero), 0), _LARGEST_BYTE)
        return (
            f"it makes 0 of a pixel of {zero:.6g}, which is no byte: train with the offset "
            f"{0.0 - scale * nearest:.6g}, which makes 0 of {nearest}"
        )
    return Pixels(
        passed=(before.name, normalization.name),
        quantizer=behind.name,
        grid=Int8Grid(scale=float(storable(scale)), zero_point=round(zero) - 128),
        scale=scale,
        offset=offset,
        highest=min(round(raw.maximum), _LARGEST_BYTE),
    )


def _is_plain(layer: Any) -> bool:
    """Whether a layer puts one tensor on 8-bit levels, and does nothing else to it."""
    return (
        isinstance(layer, QuantizeActivation)
        and layer.clips == ((None, None),)
        and layer.quantizer.bits == 8
        and not layer.grid().lower
        and float(layer.stored_grid().normalizer) == 1.0
    )


def _why_not_plain(layer: Any) -> str:
    """What else a quantizer around a normalization does than to put one tensor on 8-bit levels, and the remedy."""
    if layer.sites > 1:
        return f"{layer.name!r} puts other tensors on the same grid: read the normalized values by one layer only"
    clipping = [name for names in layer.replaces for name in names]
    if layer.clips != ((None, None),):
        return f"{', '.join(map(repr, clipping))} clips its values: leave that layer out"
    return f"{layer.name!r} has {layer.quantizer.bits} bits or a grid of another kind: quantize with edge_bits=8"


def _is_norm(layer: Any) -> bool:
    return not isinstance(layer, QuantizedLayer) and kind_of(layer) is Kind.NORM


def _is_affine(layer: Any) -> bool:
    return not isinstance(layer, QuantizedLayer) and kind_of(layer) is Kind.AFFINE


def _one_for_all_channels(layer: Any) -> tuple[float, float] | None:
    """Scale and offset of a Rescaling; None if they differ from channel to channel."""
    scale, offset = (np.unique(values.numpy()) for values in accumulator.scale_and_shift(layer))
    return (float(scale[0]), float(offset[0])) if scale.size == offset.size == 1 else None
