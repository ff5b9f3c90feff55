"""Labels and normalization in a file, where an app finds them.

They are TensorFlow Lite's model metadata: a buffer named TFLITE_METADATA (`metadata_tables.py`), and labels as text
files, one label per line, in a ZIP archive behind the flatbuffer, which runtimes do not look at. The archive is not
compressed, since the readers in C++ take it as it is.
"""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfqil.export import flatbuffer, metadata_tables
from tfqil.export.inspect import read_content
from tfqil.export.io_tensors import IOTensor, read_io_tensors
from tfqil.export.metadata_tables import COLOR_SPACES, ModelTable, TensorTable

_NAME = b"TFLITE_METADATA"
# What reading beyond the end of damaged metadata raises.
_PARSE_ERRORS = (struct.error, IndexError, MemoryError, OverflowError, TypeError, UnicodeDecodeError)
# The same content at any time gives the same file.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalization:
    """How a pixel becomes a value of the input: (pixel - mean) / std.

    Attributes:
        mean, std: one number for all channels or one per channel, in the units of the pixel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputMetadata:
    """What the metadata say of an input; its scale and zero point are those of its tensor.

    Attributes:
        name: in the file's signature.
        stored: its type in the file, such as "UINT8".
        scale, zero_point: integer = round(value / scale) + zero point; None where it takes floats.
        normalization: how pixels become values; None if the metadata do not say.
    """

    name: str
    stored: str
    scale: float | None
    zero_point: int | None
    normalization: Normalization | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputMetadata:
    """What the metadata say of an output; its scale and zero point are those of its tensor.

    Attributes:
        name: in the file's signature.
        stored: its type in the file.
        scale, zero_point: value = scale * (integer - zero point); None where it gives floats.
        labels: names of the entries of its last axis; empty without any.
    """

    name: str
    stored: str
    scale: float | None
    zero_point: int | None
    labels: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileMetadata:
    """What `read_metadata` found.

    Attributes:
        name: of the model.
        inputs, outputs: in the order of the file.
    """

    name: str
    inputs: tuple[InputMetadata, ...]
    outputs: tuple[OutputMetadata, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same in plain types, ready for JSON."""
        return dataclasses.asdict(self)


def read_metadata(tflite: bytes | str | os.PathLike[str]) -> FileMetadata:
    """The labels and the normalization that a file holds for the app that runs it.

    Args:
        tflite: the content of the file, or its path.

    Raises:
        TypeError: neither bytes nor a path.
        ValueError: no file at that path, no whole .tflite file, no metadata in it, metadata of another format, or
            labels that are not there or not as many as the output has classes.
    """
    content = read_content(tflite)
    buffer = _buffer(flatbuffer.load(content))
    if buffer is None:
        raise ValueError(
            "Got a file without metadata, expected one with labels or a normalization: convert the model with "
            "tfqil.convert(..., labels=[...])."
        )
    table = _parsed(buffer)
    inputs, outputs = read_io_tensors(content)
    if (len(table.inputs), len(table.outputs)) != (len(inputs), len(outputs)):
        raise ValueError(
            f"Got metadata of {len(table.inputs)} inputs and {len(table.outputs)} outputs in a file with {len(inputs)} "
            f"and {len(outputs)}, expected those of this file: convert the model again."
        )
    return FileMetadata(
        name=table.name,
        inputs=tuple(
            InputMetadata(
                **_of(tensor), normalization=Normalization(mean=entry.mean, std=entry.std) if entry.mean else None
            )
            for tensor, entry in zip(inputs, table.inputs, strict=True)
        ),
        outputs=tuple(
            OutputMetadata(
                **_of(tensor), labels=_labels(content, entry.label_file, tensor.shape) if entry.label_file else ()
            )
            for tensor, entry in zip(outputs, table.outputs, strict=True)
        ),
    )


def _of(tensor: IOTensor) -> dict[str, Any]:
    """What an input and an output say alike."""
    return {name: getattr(tensor, name) for name in ("name", "stored", "scale", "zero_point")}


def has_metadata(tflite: bytes) -> bool:
    """Whether a file has metadata, of whatever format.

    Raises:
        ValueError: no whole .tflite file.
    """
    return _buffer(flatbuffer.load(tflite)) is not None


def with_metadata(
    tflite: bytes,
    *,
    name: str,
    normalizations: Sequence[Normalization | None],
    labels: Sequence[Sequence[str]],
) -> bytes:
    """A file with metadata.

    Args:
        tflite: content of a file without metadata.
        name: of the model.
        normalizations: of each input, in the order of the file; None for one without.
        labels: of each output, one per entry of its last axis; empty for one without.
    """
    inputs, outputs = read_io_tensors(tflite)
    files = {
        tensor.name: f"labels_{number}.txt" if number > 1 else "labels.txt"
        for number, tensor in enumerate(
            (tensor for tensor, names in zip(outputs, labels, strict=True) if names), start=1
        )
    }
    table = ModelTable(
        name=name,
        inputs=tuple(
            TensorTable(
                name=tensor.name,
                channels=_channels(tensor.shape),
                mean=given.mean if given else (),
                std=given.std if given else (),
            )
            for tensor, given in zip(inputs, normalizations, strict=True)
        ),
        outputs=tuple(TensorTable(name=tensor.name, label_file=files.get(tensor.name, "")) for tensor in outputs),
    )
    model = flatbuffer.load(tflite)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(metadata_tables.write(table), np.uint8)
    model.buffers.append(buffer)
    entry.name, entry.buffer = _NAME, len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    texts = {
        files[tensor.name]: "".join(f"{label}\n" for label in names)
        for tensor, names in zip(outputs, labels, strict=True)
        if names
    }
    return _with_files(flatbuffer.serialize(model), texts)


def _channels(shape: tuple[int, ...]) -> int | None:
    """The number of channels of images, batch and height and width before them; None of anything else."""
    return shape[-1] if len(shape) == 4 and shape[-1] in COLOR_SPACES else None


def _buffer(model: Any) -> bytes | None:
    """The content of the metadata buffer of a file; None without one."""
    for entry in flatbuffer.items(model.metadata):
        if entry.name == _NAME:
            if not 0 <= entry.buffer < len(model.buffers):
                return b""
            return bytes(np.asarray(flatbuffer.items(model.buffers[entry.buffer].data), np.uint8))
    return None


def _parsed(buffer: bytes) -> ModelTable:
    if buffer[4:8] != metadata_tables.IDENTIFIER:
        raise ValueError(
            f"Got metadata of another format (identifier {buffer[4:8]!r}), expected "
            f"{metadata_tables.IDENTIFIER!r}, TensorFlow Lite's ModelMetadata: read them with the tool that wrote them."
        )
    try:
        return metadata_tables.read(buffer)
    except _PARSE_ERRORS as error:
        raise ValueError(
            f"Got {len(buffer)} bytes of damaged metadata, expected a whole ModelMetadata table: convert the model "
            "again."
        ) from error


def _labels(content: bytes, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The lines of an attached file."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            text = archive.read(name).decode()
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, NotImplementedError) as error:
        raise ValueError(
            f"Got metadata that name the label file {name!r}, which is not there or not readable, expected it in a ZIP "
            "archive at the end of the file: convert the model again, and copy the whole file."
        ) from error
    labels = tuple(text.splitlines())
    if len(labels) != shape[-1]:
        raise ValueError(
            f"Got {len(labels)} labels in {name!r} for an output with {shape[-1]} classes, expected as many: convert "
            "the model again with the right labels."
        )
    return labels


def _with_files(content: bytes, texts: Mapping[str, str]) -> bytes:
    if not texts:
        return content
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), text)
    return file.getvalue()
