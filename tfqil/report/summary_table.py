"""The cells of the summary, and its table in color."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import rich.table

from tfqil._tables import add_row, empty_table

if TYPE_CHECKING:
    from tfqil.report.summary import LayerSummary

_COLUMNS = {
    "layer": "left", "method": "left", "bits": "right", "step": "right", "codes": "right", "zeros": "right",
    "weights": "right", "bytes": "right", "MACs": "right", "precision": "right",
}  # fmt: skip
_TITLES = {"codes": "codes used", "precision": "weights x inputs"}
_BYTES = "bytes: of the codes, at 2, 4 or 8 bits each; those of a file depend on its storage"
# What the rows of a table are about; other layers have nothing to quantize.
_SHOWN_ROLES = ("kernel", "tensor", "float")


def cells(row: LayerSummary) -> dict[str, str]:
    """What a row says, by heading; "-" where there is nothing to say."""
    placement = row.placement
    return {
        "layer": placement.layer,
        "role": placement.role,
        "method": _method(row),
        "bits": str(placement.bits or "-"),
        "grid": row.grid or "-",
        "step": _step(row),
        "codes": "-" if row.codes_used is None else f"{row.codes_used} of {row.codes_possible}",
        "zeros": "-" if row.sparsity is None else f"{row.sparsity:.0%}",
        "weights": _number(row.weights),
        "bytes": _number(row.bytes),
        "MACs": _number(row.macs),
        "precision": row.precision or "-",
        "reason": placement.reason,
    }


def table(rows: Sequence[LayerSummary], *, everything: bool) -> rich.table.Table:
    """The rows in color: kernels, dimmed tensors, and what stays in float; with `everything` all, with reasons."""
    columns = {**_COLUMNS, "reason": "left"} if everything else _COLUMNS
    made = empty_table({_TITLES.get(heading, heading): justify for heading, justify in columns.items()})
    left_out = 0
    notes = [_BYTES]
    for row in rows:
        if not everything and row.placement.role not in _SHOWN_ROLES:
            left_out += 1
            continue
        texts = {heading: "" if text == "-" else text for heading, text in cells(row).items()}
        add_row(made, (texts[heading] for heading in columns), _style(row))
    if left_out:
        notes.append(f"{left_out} more layers have no grid of their own")
    made.caption = "\n".join(notes)
    return made


def _style(row: LayerSummary) -> str:
    if row.placement.role == "kernel" and row.grid:
        return ""
    return "dim" if row.placement.role == "tensor" else "yellow" if row.placement.role in _SHOWN_ROLES else "dim"


def _method(row: LayerSummary) -> str:
    """The quantizer without the word, or that there is none."""
    placement = row.placement
    if placement.quantizer:
        return re.sub(r"(Weight|Activation)?Quantizer\b", "", placement.quantizer)
    return "in float" if placement.role in ("kernel", "float") else "-"


def _step(row: LayerSummary) -> str:
    if row.steps is None:
        return row.grid or "-"
    smallest, largest = (f"{step:.3g}" for step in row.steps)
    return smallest if smallest == largest else f"{smallest} .. {largest}"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
