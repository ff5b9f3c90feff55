"""Compares a .tflite file with the trained model that it was made from, on given inputs.

The exit status is 0 if the file is accepted and 1 if it is not.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import rich.table

from tfqil._tables import add_row, empty_table
from tfqil.cli import console, trained_model

USAGE = "MODEL FILE.tflite --inputs=INPUTS.npy [--per-layer] [--json]"

_INPUTS = "an array that numpy.save wrote (.npy), a batch of inputs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the arguments of the command."""
    parser.add_argument("model", metavar="MODEL", help="the trained model: .keras, .h5 or a SavedModel folder")
    parser.add_argument("file", metavar="FILE.tflite", help="the file that was made from it")
    parser.add_argument(
        "--inputs",
        metavar="INPUTS.npy",
        action="append",
        required=True,
        help="a batch of inputs, as numpy.save writes it; once per input of the model",
    )
    parser.add_argument("--per-layer", action="store_true", help="compare every quantized tensor too")


def run(arguments: argparse.Namespace) -> int:
    """Compares the two and prints the report."""
    console.require_path(arguments.model, what=trained_model.MODEL)
    content = console.read_file(arguments.file, what="a .tflite file")
    inputs = [_read_inputs(path) for path in arguments.inputs]
    model = trained_model.load(arguments.model)
    from tfqil.export.verify import verify  # Loads TensorFlow: only after the files were found to be there.

    try:
        report = verify(model, content, inputs, per_layer=arguments.per_layer)
    except (TypeError, ValueError) as error:
        raise console.InputError(console.one_sentence(error)) from error
    if arguments.json:
        console.print_json(report.to_dict())
    else:
        console.print_blocks(*render(report.to_dict(), accepted=report.accepted))
    return 0 if report.accepted else 1


def render(report: Mapping[str, Any], *, accepted: bool) -> Iterator[rich.table.Table | str]:
    """The report as tables, the verdict last, where the eye stays.

    Args:
        report: names -> numbers, or lists of such mappings, one per layer.
        accepted: the verdict.
    """
    report = {name: value for name, value in report.items() if name != "accepted"}
    measures = {name: value for name, value in report.items() if not isinstance(value, (dict, list, tuple))}
    table = empty_table({"measure": "left", "value": "right"}, "File and model")
    for name, value in measures.items():
        add_row(table, (_words(name), _number(value)))
    yield table
    for name, value in report.items():
        if name not in measures and value:
            yield from _details(_words(name), value)
    yield f"accepted: {'yes' if accepted else 'no'}"


def _details(title: str, value: Any) -> Iterator[rich.table.Table | str]:
    if isinstance(value, dict):
        rows: list[Any] = [
            {"name": key, **entry} if isinstance(entry, dict) else {"name": key, "value": entry}
            for key, entry in value.items()
        ]
    else:
        rows = list(value)
    if not all(isinstance(row, dict) for row in rows):
        yield f"{title}: {', '.join(map(str, rows))}"
        return
    headings = list(dict.fromkeys(key for row in rows for key in row))
    table = empty_table({_words(heading): "left" for heading in headings}, title)
    for row in rows:
        add_row(table, (_number(row.get(heading, "")) for heading in headings))
    yield table


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _read_inputs(path: str) -> np.ndarray:
    content = console.read_file(path, what=_INPUTS)
    try:
        # Pickles run code: what is no plain array is refused.
        inputs = np.load(io.BytesIO(content), allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        raise console.InputError(
            f"got {path!r}, which is no array, expected {_INPUTS}: write it with numpy.save"
        ) from error
    if not isinstance(inputs, np.ndarray):
        raise console.InputError(f"got the archive {path!r}, expected {_INPUTS}: write one array with numpy.save")
    if inputs.dtype.kind not in "biuf" or inputs.ndim == 0 or inputs.size == 0:
        raise console.InputError(
            f"got {path!r} with {inputs.dtype} values of shape {inputs.shape}, expected {_INPUTS}: "
            "give numbers, with the batch as the first dimension"
        )
    return inputs
