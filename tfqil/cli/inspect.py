"""Shows what a .tflite file holds: integers, bits really used, bytes, and what still computes in float."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator

import rich.table

from tfqil.cli import console
from tfqil.export.inspect import FileReport, inspect

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
    if arguments.json:
        console.print_json(report.to_dict())
    else:
        console.print_blocks(*render(report))
    return 0


def render(report: FileReport) -> Iterator[rich.table.Table | str]:
    """The report as tables, the verdict last, where the eye stays."""
    if report.weights:
        yield _weights(report)
    yield _operators(report)
    yield _activations(report)
    constants = ", ".join(f"{name} {console.size(number)}" for name, number in report.constant_bytes.items())
    total, compressed = console.size(report.bytes), console.size(report.gzipped_bytes)
    yield f"{total}, {compressed} gzipped; constants: {constants or 'none'}"
    if report.integer_only:
        yield "integer only: yes"
    else:
        in_float, of_all = len(report.float_leftovers), len(report.operators)
        yield f"integer only: no, {in_float} of {of_all} operators in float:"
        yield from (f"  {sentence}" for sentence in report.float_leftovers)


def _weights(report: FileReport) -> rich.table.Table:
    numbers = ("bits used", "codes", "zeros", "bytes")
    table = console.table(
        "Weights",
        {"tensor": "left", "operator": "left", "shape": "left", "stored": "left"} | dict.fromkeys(numbers, "right"),
    )
    for weight in report.weights:
        shape = "x".join(map(str, weight.shape))
        codes = f"{weight.distinct_codes} (2^k)" if weight.powers_of_two else weight.distinct_codes
        numbers_of_row = (weight.bits_used, codes, f"{weight.sparsity:.1%}", console.size(weight.bytes))
        console.add_row(table, weight.name, weight.operator, shape, weight.stored, *numbers_of_row)
    return table


def _operators(report: FileReport) -> rich.table.Table:
    table = console.table("Operators", {"operator": "left", "fused": "left", "kernels": "left", "count": "right"})
    kinds = Counter((entry.name, entry.fused_activation, entry.kernels) for entry in report.operators)
    for (name, fused, kernels), count in kinds.items():
        console.add_row(table, name, "" if fused == "NONE" else fused, kernels, count)
    return table


def _activations(report: FileReport) -> rich.table.Table:
    table = console.table(
        "Activations",
        {"tensor": "left", "stored": "left", "scale": "right", "zero point": "right", "levels": "right"},
    )
    for activation in report.activations:
        scale = "" if activation.scale is None else f"{activation.scale:.6g}"
        point, levels = ("" if value is None else value for value in (activation.zero_point, activation.levels))
        console.add_row(table, activation.name, activation.stored, scale, point, levels)
    return table
