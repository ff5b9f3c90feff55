"""Shows what a .tflite file holds: inputs and outputs, bits really used, bytes, metadata, what computes in float."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence

import rich.table

from tfqil._tables import add_row, empty_table, size
from tfqil.cli import console
from tfqil.export.inspect import FileReport, inspect
from tfqil.export.metadata import FileMetadata, has_metadata, read_metadata

USAGE = "FILE.tflite [--json]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the arguments of the command."""
    parser.add_argument("file", metavar="FILE.tflite", help="the file to look into")


def run(arguments: argparse.Namespace) -> int:
    """Reads the file and prints the report."""
    content = console.read_file(arguments.file, what="a .tflite file")
    try:
        report = inspect(content)
    except ValueError as error:
        raise console.InputError(f"{arguments.file}: {console.one_sentence(error)}") from error
    metadata, problem = _metadata_of(content)
    if arguments.json:
        known = None if metadata is None else metadata.to_dict()
        console.print_json({**report.to_dict(), "metadata": known, "metadata_problem": problem})
    else:
        console.print_blocks(*render(report, metadata, problem))
    return 0


def render(
    report: FileReport, metadata: FileMetadata | None = None, problem: str | None = None
) -> Iterator[rich.table.Table | str]:
    """The report as tables, the verdict last, where the eye stays."""
    if report.weights:
        yield _weights(report)
    yield _operators(report)
    yield _activations(report)
    yield _inputs_and_outputs(report)
    if metadata is not None:
        yield _metadata(metadata)
    if problem is not None:
        yield f"metadata: {problem}"
    constants = ", ".join(f"{name} {size(number)}" for name, number in report.constant_bytes.items())
    total, compressed = size(report.bytes), size(report.gzipped_bytes)
    yield f"{total}, {compressed} gzipped; constants: {constants or 'none'}"
    if report.integer_only:
        yield "integer only: yes"
    else:
        in_float, of_all = len(report.float_leftovers), len(report.operators)
        yield f"integer only: no, {in_float} of {of_all} operators in float:"
        yield from (f"  {sentence}" for sentence in report.float_leftovers)


def _metadata_of(content: bytes) -> tuple[FileMetadata | None, str | None]:
    """What the metadata of a file say, or what is wrong with them; nothing of a file without any."""
    if not has_metadata(content):
        return None, None
    try:
        return read_metadata(content), None
    except ValueError as error:  # A file runs with whatever metadata.
        return None, console.one_sentence(error)


def _inputs_and_outputs(report: FileReport) -> rich.table.Table:
    texts = dict.fromkeys(("kind", "name", "shape", "stored"), "left")
    table = empty_table({**texts, "scale": "right", "zero point": "right"}, "Inputs and outputs")
    for kind, tensors in (("input", report.inputs), ("output", report.outputs)):
        for tensor in tensors:
            shape = f"({', '.join('any' if axis == -1 else str(axis) for axis in tensor.shape)})"
            grid = _grid(tensor.scale, tensor.zero_point)
            add_row(table, (kind, tensor.name, shape, tensor.stored, *grid))
    return table


def _grid(scale: float | None, zero_point: int | None) -> tuple[str, str]:
    """Cells for value = scale * (stored - zero point), empty where a tensor holds no integers."""
    # All digits of float32, which an app may copy.
    return "" if scale is None else f"{scale:.9g}", "" if zero_point is None else str(zero_point)


def _metadata(metadata: FileMetadata) -> rich.table.Table:
    table = empty_table({"name": "left", "normalization": "left", "labels": "left"}, f"Metadata of {metadata.name}")
    for entry in metadata.inputs:
        given = entry.normalization
        text = "" if given is None else f"(pixel - {_numbers(given.mean)}) / {_numbers(given.std)}"
        add_row(table, (entry.name, text, ""))
    for output in metadata.outputs:
        labels = f"{len(output.labels)}: {', '.join(output.labels)}" if output.labels else ""
        add_row(table, (output.name, "", labels))
    return table


def _numbers(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"({', '.join(f'{value:g}' for value in values)})"


def _weights(report: FileReport) -> rich.table.Table:
    numbers = ("bits used", "codes", "zeros", "bytes")
    table = empty_table(
        {"tensor": "left", "operator": "left", "shape": "left", "stored": "left"} | dict.fromkeys(numbers, "right"),
        "Weights",
    )
    for weight in report.weights:
        shape = "x".join(map(str, weight.shape))
        codes = f"{weight.distinct_codes} (2^k)" if weight.powers_of_two else weight.distinct_codes
        numbers_of_row = (weight.bits_used, codes, f"{weight.sparsity:.1%}", size(weight.bytes))
        add_row(table, (weight.name, weight.operator, shape, weight.stored, *numbers_of_row))
    return table


def _operators(report: FileReport) -> rich.table.Table:
    table = empty_table({"operator": "left", "fused": "left", "run by": "left", "count": "right"}, "Operators")
    kinds = Counter((entry.name, entry.fused_activation, entry.kernels) for entry in report.operators)
    for (name, fused, kernels), count in kinds.items():
        add_row(table, (name, "" if fused == "NONE" else fused, console.RUN_BY[kernels], count))
    return table


def _activations(report: FileReport) -> rich.table.Table:
    table = empty_table(
        {"tensor": "left", "stored": "left", "scale": "right", "zero point": "right", "levels": "right"},
        "Activations",
    )
    for activation in report.activations:
        levels = "" if activation.levels is None else activation.levels
        grid = _grid(activation.scale, activation.zero_point)
        add_row(table, (activation.name, activation.stored, *grid, levels))
    return table
