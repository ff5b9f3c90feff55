"""Lines of text cells as a table of rich."""

from __future__ import annotations

from collections.abc import Sequence

import rich.table
import rich.text


def rich_table(lines: Sequence[Sequence[str]]) -> rich.table.Table:
    """A table whose first line has the headings; numbers stand right, and nothing is read as markup."""
    result = rich.table.Table()
    for number, heading in enumerate(lines[0]):
        result.add_column(rich.text.Text(heading), justify="right" if number else "left", overflow="fold")
    for line in lines[1:]:
        result.add_row(*map(rich.text.Text, line))
    return result
