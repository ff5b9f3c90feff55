"""Tables and sizes as people read them, for the reports and the command line: nothing here loads TensorFlow.

Cells are shown as they are: names of layers and tensors may hold brackets, which rich reads as markup.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rich.console
import rich.table
import rich.text

# Columns that no table fills: a notebook scrolls what is wider than its page.
_ANY_WIDTH = 1000
_HTML = '<pre style="white-space: pre; overflow-x: auto; line-height: normal">{code}</pre>'


class NotebookTable:
    """What rich prints is what a notebook shows of a report that ends a cell; where there is no HTML, its `str`."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """The report for the display of IPython, by type."""
        del include, exclude
        console = rich.console.Console(width=_ANY_WIDTH, file=io.StringIO(), record=True, force_jupyter=False)
        console.print(self)
        return {"text/plain": str(self), "text/html": console.export_html(inline_styles=True, code_format=_HTML)}


def empty_table(columns: Mapping[str, str], title: str | None = None) -> rich.table.Table:
    """A table without rows. In a narrow terminal names wrap, and numbers do not: nothing is cut.

    Args:
        columns: heading -> "left" or "right", where numbers stand.
        title: stands above it; None for none.
    """
    result = rich.table.Table(title=None if title is None else rich.text.Text(title), title_justify="left")
    for heading, justify in columns.items():
        is_number = justify == "right"
        result.add_column(
            rich.text.Text(heading), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold"
        )
    return result


def add_row(table: rich.table.Table, cells: Iterable[object], style: str = "") -> None:
    """Adds a row of cells."""
    table.add_row(*(rich.text.Text(str(cell)) for cell in cells), style=style)


def rich_table(lines: Sequence[Sequence[str]]) -> rich.table.Table:
    """A table of lines of cells, of which the first has the headings; numbers, all but the first cell, stand right."""
    first, *numbers = lines[0]
    result = empty_table({first: "left", **dict.fromkeys(numbers, "right")})
    for line in lines[1:]:
        add_row(result, line)
    return result


def size(number_of_bytes: float) -> str:
    """A number of bytes: 512 B, 12.3 KiB, 4.5 MiB."""
    if number_of_bytes < 1024:
        return f"{number_of_bytes:.0f} B"
    if number_of_bytes < 1024**2:
        return f"{number_of_bytes / 1024:.1f} KiB"
    return f"{number_of_bytes / 1024**2:.1f} MiB"
