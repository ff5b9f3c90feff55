"""Packs the INT8 weights that TFLiteConverter writes into INT4 and INT2, where their integers fit and kernels exist.

    storage     spatial                            depthwise              dense, pointwise
    "int8"      INT8                               INT8                   INT8
    "fastest"   INT8                               INT8                   INT4 where XNNPACK takes it
    "smallest"  INT2 or INT4 as FULLY_CONNECTED    INT4 where it rounds   INT2, else INT4
                (see `unfold`) where that saves    well, else INT8
                bytes, else as depthwise

Integers and scales stay what they are, and the runtime computes the same from either type with the same kernels.
Only INT4 in CONV_2D and DEPTHWISE_CONV_2D moves an operator from XNNPACK to the builtin kernels, which round twice;
that is done where the second rounding shifts no output by more than `_LARGEST_SHIFT` of a step.
Float kernels become FLOAT16 where that is exact (see `float_constants`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfqil.export import flatbuffer
from tfqil.export.compact import compact
from tfqil.export.float_constants import drop_casts, store_in_float16
from tfqil.export.fold_dense import fold_dense_layers, is_pointwise, readers, to_fully_connected
from tfqil.export.unfold import bytes_added, can_unfold, unfold

STORAGES = ("fastest", "smallest", "int8")

# INT2 in convolutions, and both in TRANSPOSE_CONV and others, are refused by the runtime or silently garbage.
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")

# How far, in steps of the output, the builtin kernels may be off on average: hardly more than ties occur anyway.
_LARGEST_SHIFT = 1 / 64

# XNNPACK wants rows of whole bytes: the number of inputs must be a multiple of this.
_WHOLE_BYTE_ROWS = {"INT4": 2, "INT2": 4}


def pack(tflite: bytes, storage: str) -> bytes:
    """Returns the file with dense layers as FULLY_CONNECTED and weights in as few bits as `storage` allows.

    Args:
        tflite: what TFLiteConverter wrote from 8-bit fake quantization.
        storage: "fastest", "smallest" or "int8", see above.

    Raises:
        ValueError: another storage, or no whole .tflite file.
    """
    if storage not in STORAGES:
        raise ValueError(f"got storage={storage!r}, expected one of {STORAGES}: choose how weights are stored")
    model = flatbuffer.load(tflite)
    if any(buffer.offset > 1 for buffer in model.buffers):
        raise ValueError("got a file with constants behind its flatbuffer, expected less than 2 GB: split the model")
    drop_casts(model)
    store_in_float16(model)
    fold_dense_layers(model)
    if storage != "int8":
        for graph in model.subgraphs:
            for node in list(graph.operators):
                _narrow(model, graph, node, smallest=storage == "smallest")
    compact(model)
    return flatbuffer.serialize(model)


def _narrow(model: Any, graph: Any, node: Any, *, smallest: bool) -> None:
    operator = flatbuffer.operator_name(model, node)
    if operator not in (*_CONVOLUTIONS, "FULLY_CONNECTED") or not _may_narrow(model, graph, node):
        return
    integers = flatbuffer.read_constant(model, graph.tensors[node.inputs[1]])
    pointwise = is_pointwise(model, graph, node)
    if operator == "FULLY_CONNECTED" or pointwise:
        stored = _dense_type(integers, smallest=smallest, odd_rows=smallest and not pointwise)
        if stored is not None:
            if pointwise:
                to_fully_connected(model, graph, node, keep_dimensions=True)
            _store(model, graph, node, "FULLY_CONNECTED", stored)
            return
    if not smallest or operator not in _CONVOLUTIONS:
        return
    stored = _dense_type(integers.reshape(len(integers), -1), smallest=True, odd_rows=False)
    if (
        stored is not None
        and can_unfold(model, graph, node)
        and _bytes_saved(integers, stored) > bytes_added(graph, node)
    ):
        unfold(model, graph, node)
        _store(model, graph, node, "FULLY_CONNECTED", stored)
    elif _fits(integers, "INT4") and _rounds_well_in_builtin(graph, node):
        _store(model, graph, node, operator, "INT4")


def _bytes_saved(integers: np.ndarray, stored: str) -> int:
    return int(integers.size * (8 - flatbuffer.WEIGHT_BITS[stored]) // 8)


def _rounds_well_in_builtin(graph: Any, node: Any) -> bool:
    """Whether the first of the builtin kernels' two roundings hardly matters.

    With a multiplier s_x s_w / s_y in [2^-r-1, 2^-r) they round to multiples of 2^-r first, and ties of those go up: a
    shift of 2^-r-1 of a step on average.
    """
    x, weights, y = (graph.tensors[index] for index in (node.inputs[0], node.inputs[1], node.outputs[0]))
    scales = np.asarray(weights.quantization.scale, np.float64)
    multipliers = float(x.quantization.scale[0]) * scales / float(y.quantization.scale[0])
    return bool(np.all(multipliers <= _LARGEST_SHIFT))


def _may_narrow(model: Any, graph: Any, node: Any) -> bool:
    """int8 activations, and constant INT8 weights with zero points 0 that nobody else reads.

    With other activations some kernels compute garbage from low-bit weights without an error.
    """
    int8 = schema.TensorType.INT8
    index = int(node.inputs[1])
    x, weights, y = graph.tensors[node.inputs[0]], graph.tensors[index], graph.tensors[node.outputs[0]]
    if not (x.type == weights.type == y.type == int8 and flatbuffer.is_constant(model, weights)):
        return False
    if weights.quantization is None or weights.quantization.scale is None or np.any(weights.quantization.zeroPoint):
        return False
    # Grouped convolutions have fewer input channels in the weights; no kernel was checked with low-bit
    # weights.
    grouped = flatbuffer.operator_name(model, node) == "CONV_2D" and x.shape[-1] != weights.shape[-1]
    sparse = weights.sparsity is not None
    shuffled = getattr(node.builtinOptions, "weightsFormat", 0) != 0
    users = [tensor for any_graph in model.subgraphs for tensor in any_graph.tensors if tensor.buffer == weights.buffer]
    alone = len(users) == 1 and len(readers(graph, index)) == 1 and index not in graph.outputs
    return alone and not (grouped or sparse or shuffled)


def _dense_type(integers: np.ndarray, *, smallest: bool, odd_rows: bool) -> str | None:
    """The narrowest type for weights of FULLY_CONNECTED; None if INT8 it is."""
    row = integers.shape[-1]
    if smallest and _fits(integers, "INT2") and row % _WHOLE_BYTE_ROWS["INT2"] == 0:
        return "INT2"
    if _fits(integers, "INT4") and (odd_rows or row % _WHOLE_BYTE_ROWS["INT4"] == 0):
        return "INT4"
    return None


def _fits(integers: np.ndarray, stored: str) -> bool:
    highest = 1 << (flatbuffer.WEIGHT_BITS[stored] - 1)
    return bool(integers.size and integers.min() >= -highest and integers.max() < highest)


def _store(model: Any, graph: Any, node: Any, operator: str, stored: str) -> None:
    weights = graph.tensors[node.inputs[1]]
    integers = flatbuffer.read_constant(model, weights)
    buffer = model.buffers[weights.buffer]
    buffer.data = flatbuffer.pack_integers(integers, flatbuffer.WEIGHT_BITS[stored])
    weights.type = getattr(schema.TensorType, stored)
    quantization = weights.quantization
    if operator == "FULLY_CONNECTED" and len(quantization.scale) == 1:
        # XNNPACK takes INT2, and older releases INT4, only with one scale per channel.
        channels = int(weights.shape[0])
        quantization.scale = np.repeat(quantization.scale, channels)
        quantization.zeroPoint = np.zeros(channels, np.int64)
        quantization.quantizedDimension = 0
    flatbuffer.set_operator(model, node, operator, flatbuffer.OPERATOR_VERSIONS[operator, stored])
