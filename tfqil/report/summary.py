"""The summary of a quantized model: bits, grid, bytes, multiplications and zeros of every layer, and why."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tfqil import _host
from tfqil.export.freeze import require_quantized
from tfqil.numerics.grid import WeightGrid
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer
from tfqil.scheme.report import LayerRows, Placement, placements

_HEADINGS = ("layer", "role", "bits", "grid", "weights", "bytes", "zeros", "MACs", "reason")
# The widths that a file can store codes in.
_STORED_BITS = (2, 4, 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One layer of a quantized model.

    Attributes:
        placement: what it got and why.
        grid: its levels in words; "not set" before calibration, None for a layer without a grid.
        weights: number of its quantized weights; None for other layers.
        bytes: size of their codes at 2, 4 or 8 bits each, the fewest that hold them.
        sparsity: share of zeros among them, between 0 and 1.
        macs: multiplications of one example.
    """

    placement: Placement
    grid: str | None = None
    weights: int | None = None
    bytes: int | None = None
    sparsity: float | None = None
    macs: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary(LayerRows[LayerSummary]):
    """One row per layer, in the order of the model; `str` gives a table with totals."""

    rows: tuple[LayerSummary, ...]
    unmatched_rules: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of all codes."""
        return sum(row.bytes or 0 for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiplications of one example by quantized kernels."""
        return sum(row.macs or 0 for row in self.rows)

    def to_dict(self) -> list[dict[str, Any]]:
        """The rows as plain values."""
        return [{**dataclasses.asdict(row.placement), **_numbers(row)} for row in self.rows]

    def _layer(self, row: LayerSummary) -> str:
        return row.placement.layer

    def _cells(self) -> list[tuple[str, ...]]:
        weights = sum(row.weights or 0 for row in self.rows)
        total = ("total", "", "", "", f"{weights:,}", f"{self.bytes:,}", "", f"{self.macs:,}", "")
        return [_HEADINGS, *map(_cells, self.rows), total]


def summary(q_model: Any) -> Summary:
    """Says of every layer of a quantized model what it got, what it costs, and why.

    Args:
        q_model: a model from `quantize_model` or `quantize_apply` with a `LowBitScheme`.

    Raises:
        TypeError, ValueError: no quantized model.
    """
    require_quantized(q_model)
    report = placements(q_model)
    kernels = {layer.layer.name: layer for layer in q_model.layers if isinstance(layer, QuantizedLayer)}
    tensors = {layer.name: layer for layer in q_model.layers if isinstance(layer, QuantizeActivation)}
    nodes = _host.graph_of(q_model).nodes
    rows = []
    for placement in report:
        if placement.role == "kernel" and placement.layer in kernels:
            wrapper = kernels[placement.layer]
            rows.append(_of_kernel(placement, wrapper, [node.keras_node for node in nodes if node.layer is wrapper]))
        elif placement.role == "tensor":
            rows.append(LayerSummary(placement=placement, grid=_levels(tensors[placement.layer])))
        else:
            rows.append(LayerSummary(placement=placement))
    return Summary(rows=tuple(rows), unmatched_rules=report.unmatched_rules)


def _of_kernel(placement: Placement, wrapper: QuantizedLayer, calls: list[Any]) -> LayerSummary:
    grid = wrapper.grid()
    stored = next(bits for bits in (*_STORED_BITS, math.inf) if grid.bits <= bits)
    stored = 16 if stored == math.inf else int(stored)
    return LayerSummary(
        placement=placement,
        grid=_codes(grid),
        weights=grid.codes.size,
        bytes=math.ceil(grid.codes.size * stored / 8),
        sparsity=float(np.mean(grid.codes == 0)),
        macs=_host.multiplications(wrapper, calls),
    )


def _codes(grid: WeightGrid) -> str:
    steps = np.unique(grid.step)
    step = f"{steps[0]:.3g}" if steps.size == 1 else f"{steps[0]:.3g} .. {steps[-1]:.3g} ({grid.step.size} channels)"
    return f"{step} x {grid.codes.min()} .. {grid.codes.max()}"


def _levels(layer: QuantizeActivation) -> str:
    if not layer.is_initialized():
        return "not set"
    grid = layer.grid()
    lower = f", minus {grid.lower:.3g} before" if grid.lower else ""
    return f"{grid.step:.3g} x {-grid.zero} .. {grid.highest - grid.zero}{lower}"


def _numbers(row: LayerSummary) -> dict[str, Any]:
    return {key: getattr(row, key) for key in ("grid", "weights", "bytes", "sparsity", "macs")}


def _cells(row: LayerSummary) -> tuple[str, ...]:
    placement = row.placement

    def number(value: int | None) -> str:
        return "-" if value is None else f"{value:,}"

    return (
        placement.layer,
        placement.role,
        str(placement.bits or "-"),
        row.grid or "-",
        number(row.weights),
        number(row.bytes),
        "-" if row.sparsity is None else f"{row.sparsity:.0%}",
        number(row.macs),
        placement.reason,
    )
