"""The float parts of a converted file: kernels that float16 holds exactly, and the casts that kept them in float."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tfqil.export import flatbuffer

# Operators with float kernels that take a kernel behind DEQUANTIZE.
_OPERATORS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# The first version of DEQUANTIZE that reads float16.
_DEQUANTIZE_VERSION = 3


def is_exact_in_float16(values: NDArray[np.float32]) -> bool:
    """Whether float16 holds every value, as it does 2^-24 .. 2^15."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))


def drop_casts(model: Any) -> None:
    """Removes every CAST to float64 with the CAST back, which `layers.kept_in_float` wrote for the converter."""
    for graph in model.subgraphs:
        casts = [node for node in graph.operators if flatbuffer.operator_name(model, node) == "CAST"]
        widened = {int(node.outputs[0]): int(node.inputs[0]) for node in casts if _is_double(graph, node.outputs[0])}
        back = {int(node.outputs[0]): widened[node.inputs[0]] for node in casts if node.inputs[0] in widened}
        for node in graph.operators:
            node.inputs = np.array([back.get(int(index), index) for index in flatbuffer.items(node.inputs)], np.int32)
        graph.operators = [node for node in graph.operators if node.outputs[0] not in widened.keys() | back.keys()]


def store_in_float16(model: Any) -> None:
    """Stores kernels in FLOAT16, behind a DEQUANTIZE, where that loses nothing: half the bytes, the same numbers."""
    for graph in model.subgraphs:
        kernels = {
            int(node.inputs[1]) for node in graph.operators if flatbuffer.operator_name(model, node) in _OPERATORS
        }
        for index in sorted(kernels):
            tensor = graph.tensors[index]
            if tensor.type != schema.TensorType.FLOAT32 or not flatbuffer.is_constant(model, tensor):
                continue
            values = flatbuffer.read_constant(model, tensor)
            if is_exact_in_float16(values):
                graph.operators.insert(0, _dequantize(model, graph, index, values.astype(np.float16)))


def _dequantize(model: Any, graph: Any, index: int, values: NDArray[np.float16]) -> Any:
    """Moves the values of a float32 constant to a float16 one; returns the operator between the two."""
    buffer, constant, target = schema.BufferT(), schema.TensorT(), graph.tensors[index]
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    constant.name, constant.type, constant.shape = target.name, schema.TensorType.FLOAT16, target.shape
    constant.buffer = len(model.buffers) - 1
    graph.tensors.append(constant)
    target.name, target.buffer = (target.name or b"") + b"/float32", 0
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = (np.array([i], np.int32) for i in (len(graph.tensors) - 1, index))
    operator.builtinOptionsType, operator.builtinOptions = (
        schema.BuiltinOptions.DequantizeOptions,
        schema.DequantizeOptionsT(),
    )
    flatbuffer.set_operator(model, operator, "DEQUANTIZE", _DEQUANTIZE_VERSION)
    return operator


def _is_double(graph: Any, index: int) -> bool:
    return bool(graph.tensors[index].type == schema.TensorType.FLOAT64)
