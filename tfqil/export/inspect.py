"""Says what a .tflite file holds: inputs and outputs, integers and their bits, and what still computes in float.

`inspect` measures the file and nothing else: it does not know how the model was trained. `read_weights` hands
out the stored integers in the layout of Keras.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import pathlib
from collections.abc import Container, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfqil.export import arithmetic, flatbuffer, runtime
from tfqil.export.io_tensors import IOTensor, io_tensors_of
from tfqil.export.leftovers import Leftover, float_leftovers

# Operators whose second input is a weight tensor.
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "PRELU", "TRANSPOSE_CONV")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatorReport:
    """One operator, in the order of the file."""

    # Name in the schema, such as "CONV_2D".
    name: str
    version: int
    # "NONE", "RELU", "RELU6", ...
    fused_activation: str
    # "xnnpack", "builtin", or "unknown" where the runtime refuses the file.
    kernels: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightReport:
    """One constant weight tensor. Of float weights, codes are the values themselves.

    A FLOAT16 constant behind a DEQUANTIZE is the weight tensor of the operator that reads it as float32.
    """

    name: str
    # The first operator that reads it, and the kernels that run that: "xnnpack", "builtin" or "unknown".
    operator: str
    kernels: str
    # As in the file.
    shape: tuple[int, ...]
    # Type in the file, such as "INT8".
    stored: str
    # The fewest bits of two's complement that hold all integers; of float weights, the bits of the type.
    bits_used: int
    distinct_codes: int
    # Whether every code, or float, is 0 or plus or minus a power of two.
    powers_of_two: bool
    # Share of zeros, between 0 and 1.
    sparsity: float
    # Size in the file.
    bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationReport:
    """One tensor that is computed from the inputs, or an input."""

    name: str
    # Type in the file, such as "INT8".
    stored: str
    # value = scale * (stored - zero_point); None where the tensor is not quantized.
    scale: float | None
    zero_point: int | None
    # Number of levels that a fused activation leaves; None where nothing clamps the lower end.
    levels: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileReport:
    """What `inspect` found."""

    # Whether every operator computes on integers; QUANTIZE of an input and DEQUANTIZE to an output may be
    # there.
    integer_only: bool
    # One sentence per operator that computes in float.
    float_leftovers: tuple[str, ...]
    # In the order of the file.
    inputs: tuple[IOTensor, ...]
    outputs: tuple[IOTensor, ...]
    operators: tuple[OperatorReport, ...]
    weights: tuple[WeightReport, ...]
    activations: tuple[ActivationReport, ...]
    # Size of the file.
    bytes: int
    # Size of the download, if it is compressed.
    gzipped_bytes: int
    # Stored type -> bytes of all constants of that type.
    constant_bytes: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The report in plain types, ready for JSON."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}


def inspect(tflite: bytes | str | os.PathLike[str]) -> FileReport:
    """Describes a .tflite file.

    Args:
        tflite: the content of the file, or its path.

    Raises:
        ValueError: no file at that path, or no whole .tflite file.
    """
    content = read_content(tflite)
    model = flatbuffer.load(content)
    operators = _operators(content, model)
    leftovers = _leftovers(model)
    inputs, outputs = io_tensors_of(model)
    return FileReport(
        integer_only=not leftovers,
        float_leftovers=tuple(leftover.sentence for leftover in leftovers),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        operators=operators,
        weights=tuple(
            _weight(model, tensor, operator, operators[position].kernels)
            for tensor, operator, position in _weight_tensors(model)
        ),
        activations=tuple(report for graph in model.subgraphs for report in _activations(model, graph)),
        bytes=len(content),
        gzipped_bytes=len(gzip.compress(content, compresslevel=9, mtime=0)),
        constant_bytes=_constant_bytes(model),
    )


def read_leftovers(tflite: bytes | str | os.PathLike[str]) -> list[Leftover]:
    """The operators of a .tflite file that compute in float.

    Raises:
        ValueError: no file at that path, or no whole .tflite file.
    """
    return _leftovers(flatbuffer.load(read_content(tflite)))


def read_weights(
    tflite: bytes | str | os.PathLike[str],
) -> dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]]:
    """The stored integers of each weight tensor, laid out as the Keras kernel, and its scales.

    Convolutions give (kh, kw, inputs, outputs), depthwise ones (kh, kw, channels * multiplier), transposed
    ones (kh, kw, outputs, inputs), dense layers and 1x1 convolutions stored as FULLY_CONNECTED (inputs,
    outputs), PReLUs (..., channels). The scales are float32, one per output channel or a single one. Float weights are
    left out; of tensors with the same name, the second is called "name#2" and so on.

    Raises:
        ValueError: no file at that path, or no whole .tflite file.
    """
    weights: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]] = {}
    for tensor, values in _kernels(flatbuffer.load(read_content(tflite))):
        if flatbuffer.type_name(tensor) in flatbuffer.WEIGHT_BITS:
            scales = flatbuffer.items(tensor.quantization.scale if tensor.quantization is not None else None)
            weights[_new_name(tensor, weights)] = values, np.asarray(scales, np.float32)
    return weights


def read_float_weights(tflite: bytes | str | os.PathLike[str]) -> dict[str, NDArray[np.float32]]:
    """The values of each float weight tensor, of float16 ones too, laid out and named as by `read_weights`.

    Raises:
        ValueError: no file at that path, or no whole .tflite file.
    """
    weights: dict[str, NDArray[np.float32]] = {}
    for tensor, values in _kernels(flatbuffer.load(read_content(tflite))):
        if values.dtype.kind == "f":
            weights[_new_name(tensor, weights)] = values.astype(np.float32)
    return weights


def read_content(tflite: bytes | str | os.PathLike[str]) -> bytes:
    """The content of a .tflite file that is given by itself or by its path.

    Raises:
        TypeError: neither bytes nor a path.
        ValueError: no file at that path.
    """
    if isinstance(tflite, (bytes, bytearray, memoryview)):
        return bytes(tflite)
    if not isinstance(tflite, (str, os.PathLike)):
        raise TypeError(f"got {type(tflite).__name__}, expected the bytes or the path of a .tflite file: pass one")
    path = pathlib.Path(tflite)
    if not path.is_file():
        raise ValueError(f"got path {str(path)!r}, expected an existing .tflite file: check the path")
    return path.read_bytes()


def _leftovers(model: Any) -> list[Leftover]:
    return [leftover for graph in model.subgraphs for leftover in float_leftovers(model, graph)]


def _operators(content: bytes, model: Any) -> tuple[OperatorReport, ...]:
    try:
        taken = runtime.delegated_operators(content)
        kernels = ["xnnpack" if delegated else "builtin" for delegated in taken]
    except ValueError:
        kernels = []
    # The runtime shows the nodes of the first subgraph; those of others (bodies of loops) run builtin.
    others = "builtin" if kernels else "unknown"
    nodes = [node for graph in model.subgraphs for node in flatbuffer.items(graph.operators)]
    kernels += [others] * (len(nodes) - len(kernels))
    return tuple(
        OperatorReport(
            name=flatbuffer.operator_name(model, node),
            version=flatbuffer.operator_version(model, node),
            fused_activation=flatbuffer.fused_activation(node),
            kernels=chosen,
        )
        for node, chosen in zip(nodes, kernels, strict=True)
    )


def _kernels(model: Any) -> Iterator[tuple[Any, NDArray]]:
    """(tensor, values in the layout of Keras) of each constant weight tensor."""
    for tensor, operator, _ in _weight_tensors(model):
        values = flatbuffer.read_constant(model, tensor)
        if operator == "DEPTHWISE_CONV_2D":
            values = values[0]
        elif operator == "TRANSPOSE_CONV":
            values = values.transpose(1, 2, 0, 3)
        elif operator != "PRELU":  # Slopes have their channels last.
            values = np.moveaxis(values, 0, -1)
        yield tensor, np.ascontiguousarray(values)


def _new_name(tensor: Any, taken: Container[str]) -> str:
    name = base = flatbuffer.tensor_name(tensor)
    count = 1
    while name in taken:
        count += 1
        name = f"{base}#{count}"
    return name


def _weight_tensors(model: Any) -> list[tuple[Any, str, int]]:
    """(tensor, operator, its position) of each constant weight tensor, in the order of the operators.

    The operator reads it by itself or through a DEQUANTIZE.
    """
    found: dict[tuple[int, int], tuple[Any, str, int]] = {}
    position = -1
    for number, graph in enumerate(model.subgraphs):
        dequantized = _dequantized(model, graph)
        for node in flatbuffer.items(graph.operators):
            position += 1
            operator = flatbuffer.operator_name(model, node)
            if operator in _WEIGHTED and len(flatbuffer.items(node.inputs)) > 1:
                index = int(node.inputs[1])
                tensor = graph.tensors[dequantized.get(index, index)]
                if flatbuffer.is_constant(model, tensor):
                    found.setdefault((number, index), (tensor, operator, position))
    return list(found.values())


def _dequantized(model: Any, graph: Any) -> dict[int, int]:
    """Output -> input of the DEQUANTIZE operators of a graph."""
    return {
        int(node.outputs[0]): int(node.inputs[0])
        for node in flatbuffer.items(graph.operators)
        if flatbuffer.operator_name(model, node) == "DEQUANTIZE"
    }


def _weight(model: Any, tensor: Any, operator: str, kernels: str) -> WeightReport:
    codes = flatbuffer.read_constant(model, tensor)
    distinct = np.unique(codes)
    if codes.dtype.kind == "f":
        bits = 8 * codes.dtype.itemsize
    else:
        # n bits hold [-2^(n-1), 2^(n-1) - 1]; ~x mirrors the negative half onto the positive one.
        widest = int(np.max(np.where(distinct < 0, ~distinct, distinct), initial=0))
        bits = widest.bit_length() + 1
    fractions, _ = np.frexp(np.abs(distinct.astype(np.float64)))
    return WeightReport(
        name=flatbuffer.tensor_name(tensor),
        operator=operator,
        kernels=kernels,
        shape=tuple(int(size) for size in flatbuffer.items(tensor.shape)),
        stored=flatbuffer.type_name(tensor),
        bits_used=bits,
        distinct_codes=int(distinct.size),
        powers_of_two=bool(np.all((fractions == 0) | (fractions == 0.5))),
        sparsity=float(np.mean(codes == 0)) if codes.size else 0.0,
        bytes=flatbuffer.size_of(model.buffers[tensor.buffer]),
    )


def _activations(model: Any, graph: Any) -> list[ActivationReport]:
    order = [int(index) for index in flatbuffer.items(graph.inputs)]
    levels: dict[int, int | None] = {}
    for node in flatbuffer.items(graph.operators):
        if _reads_constants_only(model, graph, node):
            continue
        for index in (int(output) for output in flatbuffer.items(node.outputs)):
            order.append(index)
            levels[index] = _levels(model, graph, node, index, levels)
    return [_activation(graph.tensors[index], levels.get(index)) for index in dict.fromkeys(order) if index >= 0]


def _reads_constants_only(model: Any, graph: Any, node: Any) -> bool:
    """Whether an operator computes a constant, as DEQUANTIZE does of a FLOAT16 kernel."""
    inputs = [graph.tensors[index] for index in flatbuffer.items(node.inputs) if index >= 0]
    return bool(inputs) and all(flatbuffer.is_constant(model, tensor) for tensor in inputs)


def _activation(tensor: Any, levels: int | None) -> ActivationReport:
    grid = flatbuffer.grid_of(tensor)
    return ActivationReport(
        name=flatbuffer.tensor_name(tensor),
        stored=flatbuffer.type_name(tensor),
        scale=None if grid is None else grid[0],
        zero_point=None if grid is None else grid[1],
        levels=levels,
    )


def _levels(model: Any, graph: Any, node: Any, output: int, known: dict[int, int | None]) -> int | None:
    tensor, grid = graph.tensors[output], flatbuffer.grid_of(graph.tensors[output])
    fused = flatbuffer.fused_activation(node).lower()
    if grid is None or flatbuffer.type_name(tensor) != "INT8":
        return None
    if fused in ("relu", "relu6", "relu_n1_to_1"):
        low, high = arithmetic.fused_range(arithmetic.Int8Grid(scale=grid[0], zero_point=grid[1]), fused)
        return high - low + 1
    operator, operands = flatbuffer.operator_name(model, node), [int(index) for index in flatbuffer.items(node.inputs)]
    source = operands[1 if operator == "SPLIT" else 0] if operands else -1  # The first operand of SPLIT is the axis.
    moved = operator in flatbuffer.MOVING and source >= 0 and flatbuffer.grid_of(graph.tensors[source]) == grid
    return known.get(source) if moved else None


def _constant_bytes(model: Any) -> dict[str, int]:
    totals: dict[str, int] = {}
    seen: set[int] = set()
    for graph in model.subgraphs:
        for tensor in flatbuffer.items(graph.tensors):
            if flatbuffer.is_constant(model, tensor) and tensor.buffer not in seen:
                seen.add(tensor.buffer)
                name = flatbuffer.type_name(tensor)
                totals[name] = totals.get(name, 0) + flatbuffer.size_of(model.buffers[tensor.buffer])
    return dict(sorted(totals.items()))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
