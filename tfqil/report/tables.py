"""Tables of rich whose cells are shown as they are: names of layers may hold brackets, which rich reads as markup."""

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


def empty_table(columns: Mapping[str, str]) -> rich.table.Table:
    """A table without rows: names wrap in a narrow terminal, numbers do not.

    Args:
        columns: heading -> "left" or "right".
    """
    result = rich.table.Table()
    for heading, justify in columns.items():
        is_number = justify == "right"
        result.add_column(
            rich.text.Text(heading), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold"
        )
    return result


def add_row(table: rich.table.Table, cells: Iterable[str], style: str = "") -> None:
    """Adds a row of texts."""
    table.add_row(*map(rich.text.Text, cells), style=style)


def rich_table(lines: Sequence[Sequence[str]]) -> rich.table.Table:
    """A table of lines of cells, of which the first has the headings; numbers, all but the first cell, stand right."""
    first, *numbers = lines[0]
    result = empty_table({first: "left", **dict.fromkeys(numbers, "right")})
    for line in lines[1:]:
        add_row(result, line)
    return result
