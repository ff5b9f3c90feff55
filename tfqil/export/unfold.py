"""Turns a spatial convolution into slices, concatenations and one FULLY_CONNECTED, which computes the same integers.

XNNPACK takes INT4 and INT2 weights in FULLY_CONNECTED only; in CONV_2D they fall back to the builtin kernels, which
round twice and shift low-bit outputs by up to a quarter of a step. So the windows of the convolution are laid out as
rows, (N, OH, OW, kh * kw * C) in the order of the kernel: first the kw columns of each window side by side, then the
kh rows. Only moving integers, this is exact with any kernels.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfqil.export import flatbuffer

# Versions of the operators with int8 tensors.
_VERSIONS = {"PAD": 2, "STRIDED_SLICE": 2, "CONCATENATION": 2}
# An operator, its output and their parts of the tables; 201 bytes in a file with 150 of them.
_BYTES_PER_OPERATOR = 200
# STRIDED_SLICE takes the whole of dimensions 0 and 3, whatever begin and end say.
_BATCH_AND_CHANNELS = 0b1001


def can_unfold(model: Any, graph: Any, node: Any) -> bool:
    """Whether the operator is a CONV_2D without groups and dilation, over an image of known size."""
    if flatbuffer.operator_name(model, node) != "CONV_2D":
        return False
    x, weights, options = graph.tensors[node.inputs[0]], graph.tensors[node.inputs[1]], node.builtinOptions
    return (
        x.shape[3] == weights.shape[3]
        and options.dilationHFactor == options.dilationWFactor == 1
        and min(flatbuffer.shape_of(x)[1:3]) > 0
    )


def bytes_added(graph: Any, node: Any) -> int:
    """About how many bytes the operators that lay out the windows take in the file."""
    _, height, width, _ = (int(size) for size in graph.tensors[node.inputs[1]].shape)
    slices = sum(window for window in (height, width) if window > 1)
    concatenations = sum(1 for window in (height, width) if window > 1)
    return _BYTES_PER_OPERATOR * (1 + slices + concatenations)


def unfold(model: Any, graph: Any, node: Any) -> None:
    """Rewrites a CONV_2D in place and inserts what lays out its windows before it; INT8 weights become (O, K)."""
    weights, options = graph.tensors[node.inputs[1]], node.builtinOptions
    outputs, kernel_height, kernel_width, _ = (int(size) for size in weights.shape)
    height, width = (int(size) for size in graph.tensors[node.outputs[0]].shape[1:3])
    inserter = _Inserter(model=model, graph=graph, position=_position(graph, node), operators=[])
    windows = _padded(inserter, graph, node, (kernel_height, kernel_width), (height, width))
    windows = _lay_out(inserter, windows, 2, kernel_width, int(options.strideW), width)
    windows = _lay_out(inserter, windows, 1, kernel_height, int(options.strideH), height)
    inserter.finish()
    node.inputs = np.array([windows, *node.inputs[1:]], np.int32)
    weights.shape, weights.shapeSignature = np.array([outputs, weights.shape[1:].prod()], np.int32), None
    node.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    node.builtinOptions = schema.FullyConnectedOptionsT()
    node.builtinOptions.fusedActivationFunction = options.fusedActivationFunction
    node.builtinOptions.keepNumDims = True
    flatbuffer.set_operator(model, node, "FULLY_CONNECTED", flatbuffer.OPERATOR_VERSIONS["FULLY_CONNECTED", "INT8"])


@dataclasses.dataclass(kw_only=True)
class _Inserter:
    """Collects operators and inserts them before a position of the graph."""

    model: Any
    graph: Any
    position: int
    operators: list[Any]

    def add(self, name: str, inputs: Sequence[int], options: Any, shape: Sequence[int]) -> int:
        """Appends an operator whose output has the type and grid of its first input; returns the output."""
        output = copy.copy(self.graph.tensors[inputs[0]])
        signature = output.shapeSignature
        output.name, output.shape, output.buffer = b"", np.array(shape, np.int32), 0
        if signature is not None and len(signature):
            output.shapeSignature = np.array([signature[0], *shape[1:]], np.int32)
        self.graph.tensors.append(output)
        operator = schema.OperatorT()
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array([len(self.graph.tensors) - 1], np.int32)
        operator.builtinOptions = options
        kind = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        flatbuffer.set_operator(self.model, operator, name, _VERSIONS[name])
        self.operators.append(operator)
        return len(self.graph.tensors) - 1

    def constant(self, values: Any) -> int:
        """The index of an INT32 constant; equal ones of the graph are one tensor."""
        array = np.asarray(values, np.int32)
        content = array.tobytes()
        for index, tensor in enumerate(self.graph.tensors):
            if tensor.type == schema.TensorType.INT32 and tuple(tensor.shape) == array.shape:
                data = self.model.buffers[tensor.buffer].data
                if data is not None and bytes(np.asarray(data, np.uint8)) == content and tensor.quantization is None:
                    return index
        buffer, tensor = schema.BufferT(), schema.TensorT()
        buffer.data = np.frombuffer(content, np.uint8)
        self.model.buffers.append(buffer)
        tensor.name, tensor.type, tensor.shape = b"", schema.TensorType.INT32, np.array(array.shape, np.int32)
        tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def finish(self) -> None:
        """Inserts the operators."""
        self.graph.operators[self.position : self.position] = self.operators


def _padded(inserter: _Inserter, graph: Any, node: Any, kernel: tuple[int, int], outputs: tuple[int, int]) -> int:
    """The input with the border that SAME padding reads; PAD fills it with the zero point."""
    source, options = int(node.inputs[0]), node.builtinOptions
    if options.padding == schema.Padding.VALID:
        return source
    shape = [int(size) for size in graph.tensors[source].shape]
    border = []
    for size, window, stride, count in zip(
        shape[1:3], kernel, (options.strideH, options.strideW), outputs, strict=True
    ):
        total = max((count - 1) * int(stride) + window - size, 0)
        border.append((total // 2, total - total // 2))
    if not np.any(border):
        return source
    paddings = inserter.constant([(0, 0), *border, (0, 0)])
    padded = [shape[0], *(size + sum(pair) for size, pair in zip(shape[1:3], border, strict=True)), shape[3]]
    return inserter.add("PAD", [source, paddings], schema.PadOptionsT(), padded)


def _lay_out(inserter: _Inserter, source: int, axis: int, window: int, stride: int, count: int) -> int:
    """Puts the `window` neighbours along an axis side by side in the channels, one window per output position."""
    shape = [int(size) for size in inserter.graph.tensors[source].shape]
    if window == stride == 1:
        return source
    shape[axis] = count
    parts = []
    for offset in range(window):
        begin, end, strides = ([0, 0, 0, 0] for _ in range(3))
        # Along the axes that are kept whole, begin and end count, so that the slice does not depend on the masks.
        end[1:3] = [int(size) for size in inserter.graph.tensors[source].shape[1:3]]
        begin[axis], end[axis] = offset, offset + (count - 1) * stride + 1
        strides = [1, 1, 1, 1]
        strides[axis] = stride
        options = schema.StridedSliceOptionsT()
        options.beginMask = options.endMask = _BATCH_AND_CHANNELS
        constants = [inserter.constant(values) for values in (begin, end, strides)]
        parts.append(inserter.add("STRIDED_SLICE", [source, *constants], options, shape))
    if window == 1:
        return parts[0]
    options = schema.ConcatenationOptionsT()
    options.axis = 3
    return inserter.add("CONCATENATION", parts, options, [*shape[:3], window * shape[3]])


def _position(graph: Any, node: Any) -> int:
    return next(index for index, other in enumerate(graph.operators) if other is node)
