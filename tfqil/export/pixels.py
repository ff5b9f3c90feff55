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
    """The inputs behind which a normalization stays an operator, and why, in a few words, by their names."""
    return {name: reason for name, reason in _read(q_model).items() if isinstance(reason, str)}


def _read(q_model: Any) -> dict[str, Pixels | str]:
    """How each input that has a normalization can be read, or why it cannot be as pixels."""
    graph = _host.graph_of(q_model)
    found = {}
    for node in graph.nodes:
        if not node.inputs and _host.is_floating(node):
            layers = _normalizing_layers(graph, node)
            if layers is not None:
                found[node.layer.name] = _read_through(*layers)
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


def _are_pixels(raw: ActivationGrid) -> bool:
    """Whether the grid of an input is that of data in 0 .. 255, and not in [0, 1]."""
    return not raw.zero and _LARGEST_UNIT < raw.maximum < _LARGEST_BYTE + 0.5


def _read_through(before: Any, normalization: Any, behind: Any) -> Pixels | str:
    if not (_is_plain(before) and _is_plain(behind)):
        return "its values have fewer than 8 bits, or share a grid"
    raw = before.grid()
    if not _are_pixels(raw):
        return f"its data were in [{raw.minimum:.4g}, {raw.maximum:.4g}], which are no pixels of 0 to 255"
    scale_and_offset = _one_for_all_channels(normalization)
    if scale_and_offset is None:
        return "it is another one for each channel"
    scale, offset = scale_and_offset
    if scale <= 0:
        return f"its scale {scale:.4g} is not positive"
    zero = -offset / scale
    if abs(zero - round(zero)) > _TOLERANCE or not 0 <= round(zero) <= _LARGEST_BYTE:
        return f"it makes 0 of a pixel of {zero:.6g}, which is no byte"
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


def _is_affine(layer: Any) -> bool:
    return not isinstance(layer, QuantizedLayer) and kind_of(layer) is Kind.AFFINE


def _one_for_all_channels(layer: Any) -> tuple[float, float] | None:
    """Scale and offset of a Rescaling; None if they differ from channel to channel."""
    scale, offset = (np.unique(values.numpy()) for values in accumulator.scale_and_shift(layer))
    return (float(scale[0]), float(offset[0])) if scale.size == offset.size == 1 else None
