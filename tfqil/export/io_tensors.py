"""The inputs and outputs of a file as integers of their grids, which an app hands in and gets.

What a file has there:

    float32   QUANTIZE behind an input, DEQUANTIZE in front of an output
    int8      neither: the tensor on its grid is the input, or the output
    uint8     the same grid with all integers, and the zero point, 128 higher: a QUANTIZE that adds or takes 128
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tfqil.export import arithmetic, flatbuffer
from tfqil.export.arithmetic import Int8Grid
from tfqil.export.compact import compact

TYPES = ("float32", "int8", "uint8")

# What is added to an int8 to store it as uint8.
_SHIFT = {"INT8": 0, "UINT8": 128}
_DTYPES = {"INT8": np.int8, "UINT8": np.uint8}


@dataclasses.dataclass(frozen=True, kw_only=True)
class IOTensor:
    """An input or an output tensor of a file.

    Attributes:
        name: in the file's signature; of a file without one, that of the tensor.
        shape: -1 where it is open.
        stored: its type, such as "INT8".
        scale, zero_point: value = scale * (stored - zero_point); None where it is not quantized.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    scale: float | None
    zero_point: int | None

    @property
    def is_integer(self) -> bool:
        """Whether it holds the integers of a grid."""
        return self.stored in _SHIFT and self.scale is not None

    def integers(self, values: NDArray[Any]) -> NDArray[Any]:
        """What to hand in for float values: the nearest levels, as QUANTIZE rounds; for bytes, the bytes.

        Tensors that hold no integers of a grid take the values as they are.
        """
        if not self.is_integer:
            return values
        is_float = values.dtype.kind == "f"
        int8 = arithmetic.quantize(values, self.int8_grid) if is_float else values.astype(np.int32) - 128
        stored = int8 + _SHIFT[self.stored]
        return stored.astype(_DTYPES[self.stored])

    def values(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The float32 values of integers, as DEQUANTIZE computes them; of other tensors what is stored."""
        if not self.is_integer or self.zero_point is None:
            return stored
        levels = stored.astype(np.int32) - self.zero_point
        return levels.astype(np.float32) * np.float32(self.scale)

    @property
    def int8_grid(self) -> Int8Grid:
        """The grid of the integers, as int8 holds them: that of a uint8 tensor less 128."""
        return Int8Grid(scale=self.scale or 0.0, zero_point=(self.zero_point or 0) - _SHIFT[self.stored])


def require_type(argument: str, stored: Any) -> None:
    """Raises one sentence unless a file can have inputs and outputs of a type."""
    if not isinstance(stored, str) or stored not in TYPES:  # tf.uint8 == "uint8".
        raise ValueError(f"Got {argument}={stored!r}, expected one of {', '.join(map(repr, TYPES))}.")


def read_io_tensors(tflite: bytes) -> tuple[list[IOTensor], list[IOTensor]]:
    """The inputs and the outputs of a file, in its order.

    Raises:
        ValueError: no whole .tflite file.
    """
    return io_tensors_of(flatbuffer.load(tflite))


def io_tensors_of(model: Any) -> tuple[list[IOTensor], list[IOTensor]]:
    """What `read_io_tensors` says of a file, of its object form."""
    signature = _signature(model)
    graph = model.subgraphs[0 if signature is None else signature.subgraphIndex]
    inputs, outputs = (
        [
            _io_tensor(graph.tensors[index], _names(signature, side).get(int(index)))
            for index in flatbuffer.items(getattr(graph, side))
        ]
        for side in ("inputs", "outputs")
    )
    return inputs, outputs


def with_integer_io(tflite: bytes, input_type: str, output_type: str) -> bytes:
    """The file with inputs and outputs of other types; those that are no float32 stay as they are.

    Args:
        tflite: what TFLiteConverter, or `pack`, made of a model.
        input_type: one of `TYPES`.
        output_type: one of `TYPES`.

    Raises:
        ValueError: an operator in float reads the input, or computes the output.
    """
    if input_type == output_type == "float32":
        return tflite
    model = flatbuffer.load(tflite)
    signature = _signature(model)
    graph = model.subgraphs[0 if signature is None else signature.subgraphIndex]
    io = _InputsAndOutputs(model, graph, signature)
    if input_type != "float32":
        for place in range(len(graph.inputs)):
            io.replace_input(place, input_type.upper())
    if output_type != "float32":
        for place in range(len(graph.outputs)):
            io.replace_output(place, output_type.upper())
    compact(model)
    return flatbuffer.serialize(model)


class _InputsAndOutputs:
    """Changes the inputs and outputs of one graph in place."""

    def __init__(self, model: Any, graph: Any, signature: Any) -> None:
        self._model, self._graph, self._signature = model, graph, signature

    def replace_input(self, place: int, stored: str) -> None:
        """An input of another type: as int8 without its QUANTIZE, as uint8 with one of integers."""
        index = int(self._graph.inputs[place])
        source = self._graph.tensors[index]
        if flatbuffer.type_name(source) != "FLOAT32":
            return
        readers = [node for node in self._graph.operators if index in node.inputs]
        if not readers:
            return
        quantized = {int(node.outputs[0]) for node in readers}
        if len(quantized) > 1 or any(self._name(node) != "QUANTIZE" for node in readers):
            raise ValueError(
                f"Got the input {flatbuffer.tensor_name(source)!r}, which an operator in float reads, expected one "
                "that is quantized first: leave it as float32."
            )
        (first,) = quantized
        target = self._graph.tensors[first]
        if stored == "UINT8":
            _become(source, target, stored)
            return
        target.name, target.shape, target.shapeSignature = source.name, source.shape, source.shapeSignature
        self._graph.operators = [node for node in self._graph.operators if node not in readers]
        self._renumber("inputs", index, first)

    def replace_output(self, place: int, stored: str) -> None:
        """An output of another type: as int8 without its DEQUANTIZE, as uint8 behind a QUANTIZE instead."""
        index = int(self._graph.outputs[place])
        target = self._graph.tensors[index]
        if flatbuffer.type_name(target) != "FLOAT32":
            return
        producer = next((node for node in self._graph.operators if index in node.outputs), None)
        source = None if producer is None else self._graph.tensors[int(producer.inputs[0])]
        if producer is None or source is None or self._name(producer) != "DEQUANTIZE":
            raise ValueError(
                f"Got the output {flatbuffer.tensor_name(target)!r}, which an operator in float computes, expected one "
                "on a grid: leave it as float32."
            )
        if any(index in node.inputs for node in self._graph.operators):
            raise ValueError(
                f"Got the output {flatbuffer.tensor_name(target)!r}, which an operator in float reads too, expected "
                "one that none reads: leave it as float32."
            )
        if stored == "UINT8":
            _become(target, source, stored)
            flatbuffer.set_operator(self._model, producer, "QUANTIZE", 2)
            producer.builtinOptionsType = schema.BuiltinOptions.QuantizeOptions
            producer.builtinOptions = schema.QuantizeOptionsT()
            return
        self._graph.operators = [node for node in self._graph.operators if node is not producer]
        self._renumber("outputs", index, int(producer.inputs[0]))

    def _name(self, node: Any) -> str:
        return flatbuffer.operator_name(self._model, node)

    def _renumber(self, side: str, old: int, new: int) -> None:
        indices = np.array(getattr(self._graph, side), np.int32)
        setattr(self._graph, side, np.where(indices == old, np.int32(new), indices))
        for entry in [] if self._signature is None else getattr(self._signature, side):
            if int(entry.tensorIndex) == old:
                entry.tensorIndex = new


def _become(tensor: Any, int8: Any, stored: str) -> None:
    """Gives a float tensor the grid of an int8 one."""
    tensor.type = getattr(schema.TensorType, stored)
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = np.array(int8.quantization.scale, np.float32)
    tensor.quantization.zeroPoint = np.array(int8.quantization.zeroPoint, np.int64) + _SHIFT[stored]


def _signature(model: Any) -> Any:
    """The signature of a file that has one."""
    signatures = flatbuffer.items(model.signatureDefs)
    return signatures[0] if len(signatures) == 1 else None


def _names(signature: Any, side: str) -> Mapping[int, str]:
    """Names in the signature, by the index of the tensor."""
    entries = [] if signature is None else flatbuffer.items(getattr(signature, side))
    return {int(entry.tensorIndex): (entry.name or b"").decode("utf-8", "replace") for entry in entries}


def _io_tensor(tensor: Any, name: str | None) -> IOTensor:
    scale, zero_point = flatbuffer.grid_of(tensor) or (None, None)
    return IOTensor(
        name=name or flatbuffer.tensor_name(tensor),
        shape=flatbuffer.shape_of(tensor),
        stored=flatbuffer.type_name(tensor),
        scale=scale,
        zero_point=zero_point,
    )
