"""Builds .tflite files of one or a few operators without TensorFlow.

The shortest way to ask a runtime one question: does it take this operator, and what does it compute?

    model = TinyModel()
    x = model.activation("x", (1, 8), scale=0.1, zero_point=-3)
    y = model.activation("y", (1, 8), scale=0.2, zero_point=5)
    model.operator("QUANTIZE", [x], [y])
    content = model.to_bytes([x], [y])
"""

from __future__ import annotations

from collections.abc import Sequence

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

DTYPES = {"INT8": np.int8, "INT32": np.int32, "FLOAT32": np.float32, "INT16": np.int16, "FLOAT16": np.float16}

# Versions as the TensorFlow converter writes them for int8 tensors.
VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 5, "ADD": 2, "SUB": 2, "MEAN": 2,
    "AVERAGE_POOL_2D": 2, "MAX_POOL_2D": 2, "LOGISTIC": 2, "TANH": 2, "SOFTMAX": 2, "QUANTIZE": 2,
    "DEQUANTIZE": 2, "RESHAPE": 1, "RELU": 2, "MUL": 2, "TRANSPOSE_CONV": 3,
}  # fmt: skip


class TinyModel:
    """Collects tensors and operators of one graph, and serializes them."""

    def __init__(self) -> None:
        self.graph = schema.SubGraphT()
        self.graph.name, self.graph.tensors, self.graph.operators = b"main", [], []
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.subgraphs = [self.graph]
        self.model.buffers = [schema.BufferT()]  # Buffer 0 means "no data".
        self.model.operatorCodes = []

    def activation(
        self, name: str, shape: Sequence[int], *, scale: float | None = None, zero_point: int = 0,
        stored: str = "INT8", signature: Sequence[int] | None = None,
    ) -> int:  # fmt: skip
        """Adds a tensor without data; returns its index."""
        tensor = schema.TensorT()
        tensor.name = name.encode()
        tensor.shape = np.array(shape, np.int32)
        if signature is not None:
            tensor.shapeSignature = np.array(signature, np.int32)
        tensor.type = getattr(schema.TensorType, stored)
        tensor.buffer = 0
        tensor.quantization = schema.QuantizationParametersT()
        if scale is not None:
            self._quantize(tensor, [scale], zero_point, 0)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(
        self, name: str, values: np.ndarray, *, scales: Sequence[float] | None = None, zero_point: int = 0,
        axis: int = 0, stored: str = "INT8",
    ) -> int:  # fmt: skip
        """Adds a constant of a whole-byte type; returns its index."""
        index = self.activation(name, np.shape(values), stored=stored)
        tensor = self.graph.tensors[index]
        if scales is not None:
            self._quantize(tensor, scales, zero_point, axis)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.asarray(values, DTYPES[stored]).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.buffer = len(self.model.buffers) - 1
        return index

    def operator(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: object | None = None,
        version: int | None = None,
    ) -> None:  # fmt: skip
        """Appends an operator; `options` is an object of the schema, see `options`."""
        value, version = getattr(schema.BuiltinOperator, name), version or VERSIONS[name]
        codes = self.model.operatorCodes
        known = [i for i, code in enumerate(codes) if (code.builtinCode, code.version) == (value, version)]
        if not known:
            code = schema.OperatorCodeT()
            code.builtinCode, code.version, code.deprecatedBuiltinCode = value, version, min(value, 127)
            codes.append(code)
        node = schema.OperatorT()
        node.opcodeIndex = known[0] if known else len(codes) - 1
        node.inputs, node.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if options is not None:
            node.builtinOptions = options
            node.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
        self.graph.operators.append(node)

    def to_bytes(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """Returns the file with these graph inputs and outputs."""
        self.graph.inputs, self.graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    @staticmethod
    def _quantize(tensor, scales, zero_point, axis) -> None:
        parameters = tensor.quantization
        parameters.scale = np.asarray(scales, np.float32)
        parameters.zeroPoint = np.full(parameters.scale.shape, zero_point, np.int64)
        parameters.quantizedDimension = axis


def options(kind: str, **fields: object) -> object:
    """An options object of the schema, e.g. options("AddOptions", fusedActivationFunction="RELU")."""
    result = getattr(schema, kind + "T")()
    for name, value in fields.items():
        if name == "fusedActivationFunction":
            value = getattr(schema.ActivationFunctionType, str(value))
        elif name == "padding":
            value = getattr(schema.Padding, str(value))
        setattr(result, name, value)
    return result


def convolution_options(*, fused: str = "NONE", padding: str = "SAME", stride: int = 1) -> object:
    """Options of CONV_2D."""
    return options(
        "Conv2DOptions", fusedActivationFunction=fused, padding=padding, strideH=stride, strideW=stride,
        dilationHFactor=1, dilationWFactor=1,
    )  # fmt: skip


def weighted(
    operator: str, integers: np.ndarray, *, x_shape: Sequence[int], y_shape: Sequence[int],
    x_grid: tuple[float, int] = (0.03, -7), y_grid: tuple[float, int] = (0.05, 0),
    scales: Sequence[float], bias: np.ndarray, fused: str = "NONE",
) -> bytes:  # fmt: skip
    """One CONV_2D, DEPTHWISE_CONV_2D (stride 1, SAME) or FULLY_CONNECTED (rank kept), int8 throughout."""
    model = TinyModel()
    axis = 3 if operator == "DEPTHWISE_CONV_2D" else 0
    x = model.activation("x", x_shape, scale=x_grid[0], zero_point=x_grid[1])
    w = model.constant("w", integers, scales=scales, axis=axis)
    bias_scales = np.float32(x_grid[0]) * np.asarray(scales, np.float32)
    b = model.constant("b", bias, scales=bias_scales, stored="INT32")
    y = model.activation("y", y_shape, scale=y_grid[0], zero_point=y_grid[1])
    if operator == "FULLY_CONNECTED":
        chosen = options("FullyConnectedOptions", fusedActivationFunction=fused, keepNumDims=True)
    elif operator == "CONV_2D":
        chosen = convolution_options(fused=fused)
    else:
        chosen = options(
            "DepthwiseConv2DOptions", fusedActivationFunction=fused, padding="SAME", strideH=1, strideW=1,
            depthMultiplier=1, dilationHFactor=1, dilationWFactor=1,
        )  # fmt: skip
    model.operator(operator, [x, w, b], [y], chosen)
    return model.to_bytes([x], [y])


def unary(
    operator: str, shape: Sequence[int], x_grid: tuple[float, int] | None, y_grid: tuple[float, int] | None,
    chosen: object | None = None, *, y_shape: Sequence[int] | None = None,
    constants: Sequence[np.ndarray] = (), version: int | None = None,
) -> bytes:  # fmt: skip
    """One operator with one input, e.g. QUANTIZE; a grid None means float32, constants are INT32."""
    model = TinyModel()

    def edge(name, shape, grid):
        if grid is None:
            return model.activation(name, shape, stored="FLOAT32")
        return model.activation(name, shape, scale=grid[0], zero_point=grid[1])

    x, y = edge("x", shape, x_grid), edge("y", shape if y_shape is None else y_shape, y_grid)
    more = [model.constant(f"c{i}", values, stored="INT32") for i, values in enumerate(constants)]
    model.operator(operator, [x, *more], [y], chosen, version)
    return model.to_bytes([x], [y])


def binary(
    operator: str, a_shape: Sequence[int], b: Sequence[int] | np.ndarray, a_grid: tuple[float, int],
    b_grid: tuple[float, int], y_grid: tuple[float, int], *, fused: str = "NONE",
) -> bytes:  # fmt: skip
    """ADD or SUB; `b` is a shape (an input of the file) or an int8 array (a constant)."""
    model = TinyModel()
    a = model.activation("a", a_shape, scale=a_grid[0], zero_point=a_grid[1])
    if isinstance(b, np.ndarray):
        second, b_shape = model.constant("b", b, scales=[b_grid[0]], zero_point=b_grid[1]), b.shape
    else:
        second, b_shape = model.activation("b", b, scale=b_grid[0], zero_point=b_grid[1]), tuple(b)
    y_shape = np.broadcast_shapes(tuple(a_shape), b_shape)
    y = model.activation("y", y_shape, scale=y_grid[0], zero_point=y_grid[1])
    kind = {"ADD": "AddOptions", "SUB": "SubOptions"}[operator]
    model.operator(operator, [a, second], [y], options(kind, fusedActivationFunction=fused))
    return model.to_bytes([a] if isinstance(b, np.ndarray) else [a, second], [y])
