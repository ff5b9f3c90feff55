"""Reads and writes .tflite files as objects of the schema: `load`, edit, `serialize`.

The names below are those of the schema (https://github.com/google-ai-edge/LiteRT, tflite/converter/schema): a
model has subgraphs; a subgraph has tensors and operators; a tensor names a buffer, an operator an operator
code.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import ArrayLike, NDArray

IDENTIFIER = b"TFL3"

# Bits per value of the types that hold quantized weights.
WEIGHT_BITS = {"INT8": 8, "INT4": 4, "INT2": 2}

# (operator, stored type of its weights) -> version to write, for int8 activations. FULLY_CONNECTED is version
# 4 with INT8 weights unless it keeps the number of dimensions. INT2 in convolutions is garbage in the
# runtime.
OPERATOR_VERSIONS = {
    ("CONV_2D", "INT8"): 3,
    ("CONV_2D", "INT4"): 7,
    ("DEPTHWISE_CONV_2D", "INT8"): 3,
    ("DEPTHWISE_CONV_2D", "INT4"): 7,
    ("FULLY_CONNECTED", "INT8"): 5,
    ("FULLY_CONNECTED", "INT4"): 10,
    ("FULLY_CONNECTED", "INT2"): 14,
}

# numpy types of the stored values; low-bit integers are unpacked to int8.
_DTYPES = {
    "BOOL": "?", "INT8": "<i1", "UINT8": "<u1", "INT16": "<i2", "UINT16": "<u2", "INT32": "<i4",
    "UINT32": "<u4", "INT64": "<i8", "UINT64": "<u8", "FLOAT16": "<f2", "FLOAT32": "<f4", "FLOAT64": "<f8",
}  # fmt: skip

# What reading beyond the end of a damaged file can raise in the generated code and in numpy.
_PARSE_ERRORS = (
    struct.error, ValueError, IndexError, TypeError, AttributeError, OverflowError, MemoryError,
    RecursionError,
)  # fmt: skip
# Operators that move values without computing any: the levels of their input are those of their output.
MOVING = (
    "DEPTH_TO_SPACE", "EXPAND_DIMS", "MAX_POOL_2D", "PAD", "REDUCE_MAX", "RESHAPE", "RESIZE_NEAREST_NEIGHBOR", "SLICE",
    "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE",
)  # fmt: skip


def load(tflite: bytes) -> Any:
    """Parses a .tflite file into a `ModelT` of the schema, with nothing missing.

    Raises:
        ValueError: empty, no .tflite file, or truncated or damaged.
    """
    data = bytes(tflite)
    if not data:
        raise ValueError("got an empty file, expected a .tflite file: convert the model again")
    if data[4:8] != IDENTIFIER:
        if len(data) < 8 and (len(data) <= 4 or IDENTIFIER.startswith(data[4:8])):
            raise _truncated(data, "it ends inside its header")
        raise ValueError(
            f"got {len(data)} bytes that start with {data[:8]!r}, expected a .tflite file, with "
            f"{IDENTIFIER!r} at offset 4: pass the bytes that TFLiteConverter or tfqil.convert returned"
        )
    # Builders write a multiple of four bytes; only a zip archive of attached files may follow.
    if len(data) % 4 and b"PK\x05\x06" not in data[-(22 + 65535) :]:
        raise _truncated(data, "its size is no multiple of four bytes")
    model = _parse(data)
    _check_strings(data, model)
    _check_references(data, model)
    return model


def serialize(model: Any) -> bytes:
    """Returns the file of a `ModelT`."""
    builder = _AligningBuilder(1024)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def pack_integers(integers: ArrayLike, bits: int) -> NDArray[np.uint8]:
    """Packs two's-complement integers, the first one in the lowest bits, flat over the whole tensor.

    Returns ceil(size * bits / 8) bytes; rows are not aligned, and unused bits are 0.

    Raises:
        ValueError: bits other than 2, 4, 8, or integers that do not fit.
    """
    per_byte = _per_byte(bits)
    flat = np.asarray(integers, np.int64).reshape(-1)
    lowest, highest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if flat.size and not (lowest <= flat.min() and flat.max() <= highest):
        raise ValueError(
            f"got integers in [{flat.min()}, {flat.max()}], expected [{lowest}, {highest}], which {bits} "
            "bits hold: store them with more bits"
        )
    padded = np.append(flat, np.zeros(-flat.size % per_byte, np.int64))
    fields = padded.reshape(-1, per_byte) & ((1 << bits) - 1)
    return (fields << (bits * np.arange(per_byte))).sum(axis=1).astype(np.uint8)


def unpack_integers(data: ArrayLike, bits: int, count: int) -> NDArray[np.int8]:
    """Inverse of `pack_integers`: the first `count` integers.

    Raises:
        ValueError: bits other than 2, 4, 8, or fewer bytes than `count` integers need.
    """
    per_byte = _per_byte(bits)
    stored = np.asarray(data, np.uint8).reshape(-1)
    if stored.size * per_byte < count:
        raise ValueError(
            f"got {stored.size} bytes, expected at least {-(-count // per_byte)} for {count} integers of "
            f"{bits} bits: check the shape of the tensor"
        )
    # Shifting the field to the top and back, as int8, extends its sign.
    fields = (stored[:, None] << (8 - bits - bits * np.arange(per_byte, dtype=np.uint8))).astype(np.uint8)
    return (fields.view(np.int8) >> (8 - bits)).reshape(-1)[:count]


def items(vector: Any) -> Any:
    """The elements of a vector of the schema, which is None when the file leaves it out."""
    return [] if vector is None else vector


def type_name(tensor: Any) -> str:
    """Name of the stored type, such as "INT8"."""
    return _TYPE_NAMES.get(tensor.type, f"type {tensor.type}")


def tensor_name(tensor: Any) -> str:
    """Name of a tensor as text; empty where it has none."""
    return (tensor.name or b"").decode("utf-8", "replace")


def shape_of(tensor: Any) -> tuple[int, ...]:
    """The shape with -1 where it is open."""
    signature = tensor.shapeSignature
    stored = tensor.shape if signature is None or len(signature) != len(tensor.shape) else signature
    return tuple(int(size) for size in stored)


def grid_of(tensor: Any) -> tuple[float, int] | None:
    """Scale and zero point of a tensor that has one of each: value = scale * (stored - zero point)."""
    quantization = tensor.quantization
    if quantization is None or len(items(quantization.scale)) != 1:
        return None
    points = items(quantization.zeroPoint)
    return float(quantization.scale[0]), int(points[0]) if len(points) else 0


def operator_name(model: Any, node: Any) -> str:
    """Name of an operator, such as "CONV_2D"; custom operators as "CUSTOM name"."""
    code = model.operatorCodes[node.opcodeIndex]
    # Old files hold the code in the deprecated field only.
    value = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = _OPERATOR_NAMES.get(value, f"operator {value}")
    return f"CUSTOM {(code.customCode or b'').decode('utf-8', 'replace')}" if name == "CUSTOM" else name


def operator_version(model: Any, node: Any) -> int:
    """Version of an operator, as its operator code says."""
    return int(model.operatorCodes[node.opcodeIndex].version)


def set_operator(model: Any, node: Any, name: str, version: int) -> None:
    """Points `node` to an operator code of that name and version, adding it if the file has none."""
    value = getattr(schema.BuiltinOperator, name)
    for index, code in enumerate(model.operatorCodes):
        if (max(code.builtinCode, code.deprecatedBuiltinCode), code.version) == (value, version):
            node.opcodeIndex = index
            return
    code = schema.OperatorCodeT()
    code.builtinCode, code.version = value, version
    # Runtimes from before 2021 read this field, a byte, and the placeholder 127 tells them to read the other.
    code.deprecatedBuiltinCode = min(value, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
    model.operatorCodes.append(code)
    node.opcodeIndex = len(model.operatorCodes) - 1


def fused_activation(node: Any) -> str:
    """Name of the fused activation, such as "RELU"; "NONE" where the operator has none."""
    value = getattr(node.builtinOptions, "fusedActivationFunction", 0)
    return _ACTIVATION_NAMES.get(value, f"activation {value}")


def is_constant(model: Any, tensor: Any) -> bool:
    """Whether the file holds the values of the tensor."""
    return size_of(model.buffers[tensor.buffer]) > 0


def size_of(buffer: Any) -> int:
    """Bytes of the values in a buffer, inside the flatbuffer or behind it."""
    return int(buffer.size) if buffer.offset > 1 else len(items(buffer.data))


def read_constant(model: Any, tensor: Any) -> NDArray:
    """Values of a constant in its shape; INT4 and INT2 are unpacked to int8.

    Raises:
        ValueError: no constant, a type that has no numpy counterpart, or a size that does not match the
            shape.
    """
    name, shape = type_name(tensor), tuple(int(size) for size in items(tensor.shape))
    count = math.prod(shape)
    data = model.buffers[tensor.buffer].data
    if data is None:
        raise ValueError(
            f"got tensor {tensor_name(tensor)!r} without values in the file, expected a constant: read a weight or bias"
        )
    raw = np.asarray(data, np.uint8)
    if name in WEIGHT_BITS and name != "INT8":
        return unpack_integers(raw, WEIGHT_BITS[name], count).reshape(shape)
    if name not in _DTYPES:
        raise ValueError(
            f"got tensor {tensor_name(tensor)!r} of {name}, expected one of {[*_DTYPES, 'INT4', 'INT2']}: "
            "it has no numpy type"
        )
    dtype = np.dtype(_DTYPES[name])
    if raw.size != count * dtype.itemsize:
        raise ValueError(
            f"got {raw.size} bytes for tensor {tensor_name(tensor)!r}, expected {count * dtype.itemsize} "
            f"for shape {shape} of {name}: the file is damaged, convert the model again"
        )
    return np.frombuffer(raw.tobytes(), dtype).reshape(shape)


class _AligningBuilder(flatbuffers.Builder):  # type: ignore[misc]
    """Aligns byte vectors to 16, as the schema demands of buffers and the generated Python code does not.

    The runtime reads biases and float constants in place; on some processors that needs alignment.
    """

    def CreateNumpyVector(self, x: NDArray) -> int:  # noqa: N802 - overrides
        if x.dtype != np.uint8 or not x.size:
            return int(super().CreateNumpyVector(x))
        self.StartVector(1, x.size, 16)
        self.head = self.Head() - x.size
        self.Bytes[self.Head() : self.Head() + x.size] = x.tobytes()
        return int(self.EndVector())


def _per_byte(bits: int) -> int:
    if bits not in (2, 4, 8):
        raise ValueError(f"got {bits} bits, expected 2, 4 or 8: a .tflite file stores integers in these widths only")
    return 8 // bits


def _parse(data: bytes) -> Any:
    try:
        return schema.ModelT.InitFromPackedBuf(data, 0)
    except _PARSE_ERRORS as error:
        raise _truncated(data, "it refers to bytes that are not there") from error


def _check_strings(data: bytes, model: Any) -> None:
    """Finds a cut through a string, which the generated code shortens without a word."""
    strings = _strings(model)
    for string in strings:
        # A whole string is followed by a zero byte: none may be the last thing in the file.
        if string and data.endswith(struct.pack("<I", len(string)) + string):
            raise _truncated(data, "it ends inside a name")
    if any(data.endswith(string) for string in strings) and strings != _strings(_parse(data + bytes(1024))):
        raise _truncated(data, "it ends inside a name")


def _strings(value: Any) -> list[bytes]:
    if isinstance(value, bytes):
        return [value]
    if isinstance(value, list):
        return [string for item in value for string in _strings(item)]
    if type(value).__module__ == schema.__name__:
        return [string for item in vars(value).values() for string in _strings(item)]
    return []


def _check_references(data: bytes, model: Any) -> None:
    buffers, codes = model.buffers or [], model.operatorCodes or []
    intact = bool(model.subgraphs) and model.version == 3
    for graph in model.subgraphs or []:
        tensors = graph.tensors or []
        intact &= all(0 <= tensor.buffer < len(buffers) for tensor in tensors)
        intact &= all(0 <= index < len(tensors) for side in (graph.inputs, graph.outputs) for index in items(side))
        for node in graph.operators or []:
            intact &= 0 <= node.opcodeIndex < len(codes)
            used = [*items(node.inputs), *items(node.outputs)]
            intact &= all(-1 <= index < len(tensors) for index in used)
    # Constants of files beyond 2 GB lie behind the flatbuffer; 0 and 1 mean that there are none.
    intact &= all(buffer.offset <= 1 or buffer.offset + buffer.size <= len(data) for buffer in buffers)
    if not intact:
        raise _truncated(data, "its parts do not refer to each other consistently")


def _truncated(data: bytes, reason: str) -> ValueError:
    return ValueError(
        f"got {len(data)} bytes of a truncated or damaged .tflite file ({reason}), expected a whole file: "
        "copy or convert it again"
    )


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if not name.startswith("_")}


_TYPE_NAMES = _names(schema.TensorType)
_OPERATOR_NAMES = _names(schema.BuiltinOperator)
_ACTIVATION_NAMES = _names(schema.ActivationFunctionType)
