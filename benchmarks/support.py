"""The support matrix: architectures x configs x storages, each cell from the float model to a verified file.

    python benchmarks/support.py [--architectures=resnet18,mobilenet_v2] [--configs=QIL 4/4] [--storages=int8]

Cells that the JSON file holds already are not run again without --again, so that an interrupted run goes on where it
stopped. The whole matrix takes hours of CPU.
"""

from __future__ import annotations

import itertools
import pathlib
import time

import architectures
import rich.console
import support_cell
import support_runs
import support_table
from absl import app, flags, logging

_NAMES = [name for name, architecture in architectures.ARCHITECTURES.items() if architecture.in_matrix]

_ARCHITECTURES = flags.DEFINE_list("architectures", _NAMES, "Names in benchmarks/architectures.py.")
_CONFIGS = flags.DEFINE_list("configs", list(support_cell.CONFIGS), "Method and bits of weights and activations.")
_STORAGES = flags.DEFINE_list("storages", list(support_cell.STORAGES), "Storages of the files.")
_OUTPUT = flags.DEFINE_string("output", "benchmarks/output/support.json", "JSON file of the cells.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "Markdown file of the matrix, such as docs/support.md.")
_PROCESSES = flags.DEFINE_integer("processes", 1, "Architectures at a time; each takes up to 8 GB.", lower_bound=1)
_AGAIN = flags.DEFINE_bool("again", False, "Run cells again that the JSON file holds.")


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    output = pathlib.Path(_OUTPUT.value)
    wanted = list(itertools.product(_ARCHITECTURES.value, _CONFIGS.value, _STORAGES.value))
    _require_known(wanted)
    cells = support_runs.read(output)
    missing = [key for key in wanted if _AGAIN.value or key not in cells]
    console = rich.console.Console(highlight=False)
    console.print(f"{len(missing)} of {len(wanted)} cells to run; {output} holds {len(cells)}.")
    started = time.perf_counter()
    for number, cell in enumerate(support_runs.run(missing, _PROCESSES.value), start=1):
        cells[cell.key] = cell
        support_runs.write(cells, output)
        minutes = (time.perf_counter() - started) / 60
        console.print(f"{minutes:6.1f} min  {number}/{len(missing)}  {_line(cell)}", markup=False)
    if _MARKDOWN.value:
        markdown = pathlib.Path(_MARKDOWN.value)
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(support_table.document(_ordered(cells)), encoding="utf-8")
        console.print(f"Wrote {markdown}.")
    console.print(support_table.summary(_ordered(cells)), markup=False)


def _require_known(wanted: list[support_runs.Key]) -> None:
    known = (list(architectures.ARCHITECTURES), list(support_cell.CONFIGS), list(support_cell.STORAGES))
    for key in wanted:
        for name, names in zip(key, known, strict=True):
            if name not in names:
                raise app.UsageError(f"Got {name!r}, expected one of {', '.join(names)}.")


def _line(cell: support_cell.Cell) -> str:
    result = "; ".join(support_table.reasons(cell)) or "supported"
    steps = "" if cell.median_lsb is None else f" (LSB: {cell.median_lsb:g}, {cell.high_lsb:.3g}, {cell.max_lsb:g})"
    return f"{', '.join(cell.key)}: {result}{steps}"


def _ordered(cells: dict[support_runs.Key, support_cell.Cell]) -> list[support_cell.Cell]:
    order = itertools.product(architectures.ARCHITECTURES, support_cell.CONFIGS, support_cell.STORAGES)
    return [cells[key] for key in order if key in cells]


if __name__ == "__main__":
    app.run(main)
