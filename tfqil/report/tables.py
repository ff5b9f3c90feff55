"""Tables of rich whose cells are shown as they are: names of layers may hold brackets, which rich reads as markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import rich.table
import rich.text


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
