"""Turns 1x1 convolutions into FULLY_CONNECTED operators, which compute the same integers.

A 1x1 convolution of stride 1 multiplies each row of C consecutive values with the weights, and so does
FULLY_CONNECTED. RESHAPE moves no value. So a dense layer that was written as RESHAPE, 1x1 convolution,
RESHAPE (the converter refuses per-channel scales in dense layers) becomes the one operator that it is.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfqil.export import flatbuffer

# What computes the shape of a RESHAPE, or moves nothing: removed when nobody reads the result any more.
_SHAPE_OPERATORS = ("RESHAPE", "SHAPE", "STRIDED_SLICE", "PACK")


def is_pointwise(model: Any, graph: Any, node: Any) -> bool:
    """Whether the operator is an int8 1x1 CONV_2D of stride 1, without groups, with constant weights."""
    if flatbuffer.operator_name(model, node) != "CONV_2D":
        return False
    x, weights = graph.tensors[node.inputs[0]], graph.tensors[node.inputs[1]]
    return (
        len(x.shape) == len(weights.shape) == 4
        and tuple(weights.shape[1:3]) == (1, 1)
        and node.builtinOptions.strideH == node.builtinOptions.strideW == 1
        and x.shape[3] == weights.shape[3]
        and x.type == weights.type == schema.TensorType.INT8
        and flatbuffer.is_constant(model, weights)
    )


def fold_dense_layers(model: Any) -> None:
    """Replaces every RESHAPE, pointwise CONV_2D, RESHAPE by one FULLY_CONNECTED, in place.

    The new operator reads what the first RESHAPE reads, if there is one, and writes what the second one
    writes. Where that has another shape than FULLY_CONNECTED can write, the second RESHAPE stays. A tensor in
    between that someone else reads, or that is an output of the graph, stays as well, with the operators that
    compute it.
    """
    for graph in model.subgraphs:
        for node in list(graph.operators):
            if is_pointwise(model, graph, node):
                _fold(model, graph, node)
        _remove_dead_operators(model, graph)


def to_fully_connected(model: Any, graph: Any, node: Any, *, keep_dimensions: bool) -> None:
    """Rewrites a pointwise CONV_2D in place; weights (O, 1, 1, C) become (O, C)."""
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = node.builtinOptions.fusedActivationFunction
    options.keepNumDims = keep_dimensions
    node.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    node.builtinOptions = options
    weights = graph.tensors[node.inputs[1]]
    if len(readers(graph, node.inputs[1])) > 1:  # The other readers need the four dimensions.
        weights = copy.deepcopy(weights)
        graph.tensors.append(weights)
        node.inputs = np.array([node.inputs[0], len(graph.tensors) - 1, *node.inputs[2:]], np.int32)
    weights.shape = np.array([weights.shape[0], weights.shape[3]], np.int32)
    weights.shapeSignature = None
    version = flatbuffer.OPERATOR_VERSIONS["FULLY_CONNECTED", "INT8"] if keep_dimensions else 4
    flatbuffer.set_operator(model, node, "FULLY_CONNECTED", version)


def readers(graph: Any, tensor: int) -> list[Any]:
    """Operators that read the tensor, once per operator."""
    return [node for node in graph.operators if tensor in flatbuffer.items(node.inputs)]


def _fold(model: Any, graph: Any, node: Any) -> None:
    x, y = int(node.inputs[0]), int(node.outputs[0])
    following = readers(graph, y)
    if y in graph.outputs or not following:
        return
    reshaped = _reshape_source(model, graph, x)
    before = x if reshaped is None else reshaped
    outputs, channels = (int(size) for size in graph.tensors[node.inputs[1]].shape[[0, 3]])
    all_reshapes = all(
        flatbuffer.operator_name(model, reader) == "RESHAPE" and int(reader.inputs[0]) == y for reader in following
    )
    if all_reshapes and len(following) == 1:
        after = int(following[0].outputs[0])
        source, target = flatbuffer.shape_of(graph.tensors[before]), flatbuffer.shape_of(graph.tensors[after])
        keeps_rank = source[-1] == channels and target == (*source[:-1], outputs)
        if _same_grid(graph, y, after) and (keeps_rank or (len(target) == 2 and target[1] == outputs)):
            to_fully_connected(model, graph, node, keep_dimensions=keeps_rank and len(source) > 2)
            _connect(node, before, after)
            graph.operators = [operator for operator in graph.operators if operator is not following[0]]
            return
    if reshaped is None:
        return
    if all_reshapes:
        to_fully_connected(model, graph, node, keep_dimensions=False)
        _flatten(graph.tensors[y])
        _connect(node, before, y)
    elif (
        all(is_pointwise(model, graph, reader) for reader in following)
        and min(flatbuffer.shape_of(graph.tensors[y])[1:]) > 0
    ):
        # The converter cancels the RESHAPE pair between two dense layers: move the first one behind this
        # operator.
        to_fully_connected(model, graph, node, keep_dimensions=False)
        _connect(node, before, _insert_reshape(model, graph, node, y))


def _connect(node: Any, source: int, target: int) -> None:
    node.inputs = np.array([source, *node.inputs[1:]], np.int32)
    node.outputs = np.array([target], np.int32)


def _insert_reshape(model: Any, graph: Any, node: Any, y: int) -> int:
    """Adds the operator that gives a new, flat tensor the shape of `y`; returns the new tensor."""
    flat, shape = copy.deepcopy(graph.tensors[y]), schema.TensorT()
    flat.name = (flat.name or b"") + b"/flat"
    _flatten(flat)
    values = np.array([-1, *flatbuffer.shape_of(graph.tensors[y])[1:]], np.int32)
    shape.name, shape.type, shape.shape = (
        flat.name + b"/shape",
        schema.TensorType.INT32,
        np.array([4], np.int32),
    )
    shape.quantization = schema.QuantizationParametersT()
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    shape.buffer = len(model.buffers) - 1
    graph.tensors += [flat, shape]
    reshape = schema.OperatorT()
    reshape.inputs = np.array([len(graph.tensors) - 2, len(graph.tensors) - 1], np.int32)
    reshape.outputs = np.array([y], np.int32)
    flatbuffer.set_operator(model, reshape, "RESHAPE", 1)
    graph.operators.insert(next(i for i, other in enumerate(graph.operators) if other is node) + 1, reshape)
    return len(graph.tensors) - 2


def _reshape_source(model: Any, graph: Any, tensor: int) -> int | None:
    """What the RESHAPE that computes `tensor` reads; None if something else computes it."""
    for node in graph.operators:
        if tensor in flatbuffer.items(node.outputs) and flatbuffer.operator_name(model, node) == "RESHAPE":
            source = int(node.inputs[0])
            return (
                source
                if _same_grid(graph, source, tensor) and len(flatbuffer.shape_of(graph.tensors[source])) > 1
                else None
            )
    return None


def _same_grid(graph: Any, first: int, second: int) -> bool:
    a, b = (graph.tensors[index].quantization for index in (first, second))
    return (
        graph.tensors[first].type == graph.tensors[second].type
        and np.array_equal(a.scale, b.scale)
        and np.array_equal(a.zeroPoint, b.zeroPoint)
    )


def _flatten(tensor: Any) -> None:
    """(N, H, W, O) becomes (N * H * W, O)."""
    signature = tensor.shapeSignature
    rows = int(np.prod(tensor.shape[:-1]))
    tensor.shape = np.array([rows, tensor.shape[-1]], np.int32)
    if signature is not None and len(signature):
        open_rows = -1 if np.any(np.asarray(signature[:-1]) < 0) else rows
        tensor.shapeSignature = np.array([open_rows, signature[-1]], np.int32)


def _remove_dead_operators(model: Any, graph: Any) -> None:
    while True:
        read = {int(index) for node in graph.operators for index in flatbuffer.items(node.inputs) if index >= 0}
        read |= {int(index) for index in graph.outputs}
        alive = [
            node
            for node in graph.operators
            if flatbuffer.operator_name(model, node) not in _SHAPE_OPERATORS
            or not read.isdisjoint(map(int, node.outputs))
        ]
        if len(alive) == len(graph.operators):
            return
        graph.operators = alive
