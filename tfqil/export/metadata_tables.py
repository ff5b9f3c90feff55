"""The flatbuffer of a file's metadata: what of `ModelMetadata` an app needs, written and read by field number.

The schema is TensorFlow Lite's (https://github.com/tensorflow/tflite-support, metadata_schema.fbs, version 1.0.0),
which the Support, Task and MediaPipe libraries read; no package that tfqil depends on holds generated code for it.
The numbers below are the positions of the fields in its tables, which never change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flatbuffers
from flatbuffers.number_types import Float32Flags, Uint8Flags
from flatbuffers.table import Table

IDENTIFIER = b"M001"

_PARSER_VERSION = "1.0.0"
_FEATURE_PROPERTIES, _IMAGE_PROPERTIES = 1, 2
_NORMALIZATION_OPTIONS = 1
_TENSOR_AXIS_LABELS = 2
# Color spaces by the number of channels: grayscale and RGB.
COLOR_SPACES = {1: 2, 3: 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorTable:
    """What the metadata say of an input or output.

    Attributes:
        name: of the tensor in the signature.
        channels: 1 or 3 if it holds images; None for anything else.
        mean, std: of a normalization, one number or one per channel; empty without one.
        label_file: name of the attached file that holds a label per line, of the last axis; empty without one.
    """

    name: str
    channels: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    label_file: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelTable:
    """What the metadata say of a model: its name, and its inputs and outputs in the order of the file."""

    name: str
    inputs: tuple[TensorTable, ...]
    outputs: tuple[TensorTable, ...]


def write(model: ModelTable) -> bytes:
    """The content of the metadata buffer."""
    builder = flatbuffers.Builder(256)
    inputs, outputs = (
        _vector(builder, [_write_tensor(builder, tensor) for tensor in tensors])
        for tensors in (model.inputs, model.outputs)
    )
    subgraph = _table(builder, 7, {2: inputs, 3: outputs})
    root = _table(
        builder,
        8,
        {
            0: builder.CreateString(model.name),
            3: _vector(builder, [subgraph]),
            7: builder.CreateString(_PARSER_VERSION),
        },
    )
    builder.Finish(root, IDENTIFIER)
    return bytes(builder.Output())


def read(content: bytes) -> ModelTable:
    """The inverse of `write`; of other writers' metadata what `ModelTable` has fields for.

    Raises:
        ValueError: another identifier.
        struct.error, IndexError, TypeError and others: damaged content.
    """
    if content[4:8] != IDENTIFIER:
        raise ValueError(f"identifier {content[4:8]!r}")
    root = Table(content, Table(content, 0).Indirect(0))
    subgraphs = _read_tables(root, 3)
    inputs, outputs = (
        tuple(_read_tensor(table) for graph in subgraphs[:1] for table in _read_tables(graph, field))
        for field in (2, 3)
    )
    return ModelTable(name=_read_string(root, 0), inputs=inputs, outputs=outputs)


def _write_tensor(builder: Any, tensor: TensorTable) -> int:
    fields: dict[int, int] = {0: builder.CreateString(tensor.name)}
    if tensor.channels is None:
        properties, kind = _table(builder, 0, {}), _FEATURE_PROPERTIES
    else:
        properties, kind = _table(builder, 2, {}, {0: COLOR_SPACES[tensor.channels]}), _IMAGE_PROPERTIES
    fields[3] = _table(builder, 3, {1: properties}, {0: kind})
    if tensor.mean:
        options = _table(builder, 2, {0: _floats(builder, tensor.mean), 1: _floats(builder, tensor.std)})
        fields[4] = _vector(builder, [_table(builder, 2, {1: options}, {0: _NORMALIZATION_OPTIONS})])
    if tensor.label_file:
        file = _table(builder, 4, {0: builder.CreateString(tensor.label_file)}, {2: _TENSOR_AXIS_LABELS})
        fields[6] = _vector(builder, [file])
    return _table(builder, 7, fields)


def _table(builder: Any, size: int, offsets: dict[int, int], codes: dict[int, int] | None = None) -> int:
    """A table of `size` fields: offsets of what was written before, and bytes, by their positions."""
    builder.StartObject(size)
    for field, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(field, offset, 0)
    for field, code in (codes or {}).items():
        builder.PrependUint8Slot(field, code, 0)
    return int(builder.EndObject())


def _vector(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _floats(builder: Any, values: Sequence[float]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return int(builder.EndVector())


def _read_tensor(table: Any) -> TensorTable:
    channels = {code: count for count, code in COLOR_SPACES.items()}
    images = _read_union(_read_child(table, 3), _IMAGE_PROPERTIES)
    options = _read_union(_read_tables(table, 4), _NORMALIZATION_OPTIONS)
    files = [_read_string(file, 0) for file in _read_tables(table, 6) if _read_code(file, 2) == _TENSOR_AXIS_LABELS]
    return TensorTable(
        name=_read_string(table, 0),
        channels=channels.get(_read_code(images[0], 0)) if images else None,
        mean=_read_floats(options[0], 0) if options else (),
        std=_read_floats(options[0], 1) if options else (),
        label_file=files[0] if files else "",
    )


def _read_union(owners: Sequence[Any], kind: int) -> list[Any]:
    """The tables of a kind that are the unions of others, which have the kind as their first field."""
    return [child for owner in owners if _read_code(owner, 0) == kind for child in _read_child(owner, 1)]


def _position(table: Any, field: int) -> int:
    """Where a field lies, relative to the table; 0 where it is left out."""
    return int(table.Offset(4 + 2 * field))


def _read_code(table: Any, field: int) -> int:
    position = _position(table, field)
    return int(table.Get(Uint8Flags, position + table.Pos)) if position else 0


def _read_string(table: Any, field: int) -> str:
    position = _position(table, field)
    return bytes(table.String(position + table.Pos)).decode() if position else ""


def _read_child(table: Any, field: int) -> list[Any]:
    """The table that a field refers to; empty where it is left out."""
    position = _position(table, field)
    return [Table(table.Bytes, table.Indirect(position + table.Pos))] if position else []


def _read_each(table: Any, field: int, read_at: Callable[[int], Any]) -> list[Any]:
    """What a vector holds, each read at its place in the buffer."""
    position = _position(table, field)
    if not position:
        return []
    start = table.Vector(position)
    return [read_at(start + 4 * number) for number in range(table.VectorLen(position))]


def _read_tables(table: Any, field: int) -> list[Any]:
    return _read_each(table, field, lambda at: Table(table.Bytes, table.Indirect(at)))


def _read_floats(table: Any, field: int) -> tuple[float, ...]:
    return tuple(_read_each(table, field, lambda at: float(table.Get(Float32Flags, at))))
