"""The summary of a quantized model: bits, grid, bytes, multiplications and zeros of every layer, and why."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.text

from tfqil import _host
from tfqil._tables import NotebookTable
from tfqil.export.freeze import require_quantized
from tfqil.numerics.grid import WeightGrid
from tfqil.report import summary_table
from tfqil.scheme.kinds import Kind, kind_of
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer
from tfqil.scheme.report import LayerRows, Placement, placements

_HEADINGS = (
    "layer", "role", "method", "bits", "grid", "codes", "zeros", "weights", "bytes", "MACs", "precision", "reason"
)  # fmt: skip
# The widths that a file can store codes in.
_STORED_BITS = (2, 4, 8)
_FLOAT_BYTES = 4
FLOAT_BITS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One layer of a quantized model.

    Attributes:
        placement: what it got and why.
        grid: its levels in words; "not set" before calibration, None for a layer without a grid.
        steps: the smallest and the largest step of its channels; None where there is no grid, or none yet.
        codes_used: how many different codes its kernel has; None for other layers.
        codes_possible: how many its quantizer can give; None without a grid.
        weights: number of the weights of its kernel; None for other layers.
        bytes: size of their codes at 2, 4 or 8 bits each, the fewest that hold them (else 16); 4 bytes each in float.
            What a file takes depends on its storage: `inspect` says it.
        sparsity: share of zeros among the codes, between 0 and 1.
        macs: multiplications of one example.
        input_bits: width of the inputs that the kernel multiplies; 32 in float, None for other layers.
    """

    placement: Placement
    grid: str | None = None
    steps: tuple[float, float] | None = None
    codes_used: int | None = None
    codes_possible: int | None = None
    weights: int | None = None
    bytes: int | None = None
    sparsity: float | None = None
    macs: int | None = None
    input_bits: int | None = None

    @property
    def precision(self) -> str | None:
        """Bits of a weight and of an input of a kernel, as in "4x8", "float" if either is; None for other layers."""
        if self.input_bits is None:
            return None
        widths = (self.placement.bits or FLOAT_BITS, self.input_bits)
        return "float" if FLOAT_BITS in widths else "x".join(map(str, widths))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary(LayerRows[LayerSummary], NotebookTable):
    """One row per layer, in the order of the model; `str` gives a table with totals, rich's `print` one in color."""

    rows: tuple[LayerSummary, ...]
    unmatched_rules: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Number of the weights of all kernels."""
        return sum(row.weights or 0 for row in self.rows)

    @property
    def bytes(self) -> int:
        """Size of all kernels: codes, whatever the storage of a file, and 4 bytes for each weight in float."""
        return sum(row.bytes or 0 for row in self.rows)

    @property
    def float_bytes(self) -> int:
        """Size of all kernels with 4 bytes for each weight."""
        return _FLOAT_BYTES * self.weights

    @property
    def eight_bit_bytes(self) -> int:
        """Size of all kernels with 1 byte for each weight."""
        return self.weights

    @property
    def macs(self) -> int:
        """Multiplications of one example by kernels."""
        return sum(row.macs or 0 for row in self.rows)

    @property
    def macs_by_precision(self) -> dict[str, int]:
        """Multiplications of one example by the precision of their layers, as in "4x8"; most first."""
        counted: Counter[str] = Counter()
        for row in self.rows:
            if row.macs and row.precision:
                counted[row.precision] += row.macs
        return dict(counted.most_common())

    def to_dict(self) -> list[dict[str, Any]]:
        """The rows as plain values."""
        return [{**dataclasses.asdict(row.placement), **_numbers(row)} for row in self.rows]

    def totals(self) -> dict[str, Any]:
        """The totals as plain values."""
        names = ("weights", "bytes", "float_bytes", "eight_bit_bytes", "macs", "macs_by_precision")
        return {name: getattr(self, name) for name in names}

    def totals_in_words(self) -> list[str]:
        """The totals as lines: bytes against float and against 8 bits, and multiplications by precision."""
        lines = []
        if self.bytes:
            lines.append(
                f"{self.bytes:,} bytes of kernels; float {self.float_bytes:,} ({self.float_bytes / self.bytes:.1f}x), "
                f"8 bits {self.eight_bit_bytes:,} ({self.eight_bit_bytes / self.bytes:.1f}x)"
            )
        if self.macs:
            shares = (f"{name} {count:,} ({count / self.macs:.0%})" for name, count in self.macs_by_precision.items())
            lines.append(f"{self.macs:,} MACs of an example, weights x inputs: {', '.join(shares)}")
        return lines

    def table(self, *, everything: bool = False) -> Any:
        """The rows as a table of rich.

        Args:
            everything: also layers that have nothing to quantize, and a column with the reason of each row.
        """
        return summary_table.table(self.rows, everything=everything)

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *self.totals_in_words()])

    def __rich__(self) -> rich.console.Group:
        below = [*self.unmatched_in_words(), *self.totals_in_words()]
        return rich.console.Group(self.table(), *map(rich.text.Text, below))

    def _layer(self, row: LayerSummary) -> str:
        return row.placement.layer

    def _cells(self) -> list[tuple[str, ...]]:
        total = {"layer": "total", "weights": f"{self.weights:,}", "bytes": f"{self.bytes:,}", "MACs": f"{self.macs:,}"}
        rows = [*map(summary_table.cells, self.rows), total]
        return [_HEADINGS, *(tuple(row.get(heading, "") for heading in _HEADINGS) for row in rows)]


def summary(q_model: Any) -> Summary:
    """Says of every layer of a quantized model what it got, what it costs, and why.

    Bytes are those of the codes, not of a file, which a storage ("fastest", "smallest", "int8") may give more.

    Args:
        q_model: a model from `quantize_model` or `quantize_apply` with a `LowBitScheme`.

    Raises:
        TypeError, ValueError: no quantized model.
    """
    require_quantized(q_model)
    report, graph = placements(q_model), _host.graph_of(q_model)
    kernels = {layer.layer.name: layer for layer in q_model.layers if isinstance(layer, QuantizedLayer)}
    layers = {layer.name: layer for layer in q_model.layers}
    rows = []
    for placement in report:
        layer: Any = kernels.get(placement.layer, layers.get(placement.layer))
        if placement.role == "kernel":
            calls = [node for node in graph.nodes if node.layer is layer]
            rows.append(_of_kernel(placement, layer, calls, graph))
        elif placement.role == "tensor":
            rows.append(_of_tensor(placement, layer))
        else:
            rows.append(LayerSummary(placement=placement))
    return Summary(rows=tuple(rows), unmatched_rules=report.unmatched_rules)


class _InFloat(NamedTuple):
    """A layer whose kernel stays in float, in the place of the wrapper of one that does not."""

    layer: Any


def _of_kernel(placement: Placement, layer: Any, calls: list[_host.Node], graph: _host.Graph) -> LayerSummary:
    wrapper = layer if isinstance(layer, QuantizedLayer) else _InFloat(layer)
    macs = _host.multiplications(wrapper, [node.keras_node for node in calls])
    input_bits = max(_input_bits(graph, tensor) for node in calls for tensor in node.inputs)
    if isinstance(wrapper, _InFloat):
        weights = int(getattr(layer, str(_host.kernel_name(layer))).shape.num_elements())
        return LayerSummary(
            placement=placement, weights=weights, bytes=_FLOAT_BYTES * weights, macs=macs, input_bits=input_bits
        )
    grid = layer.grid()
    stored = next((bits for bits in _STORED_BITS if grid.bits <= bits), 16)
    return LayerSummary(
        placement=placement,
        grid=_codes(grid),
        steps=(float(grid.step.min()), float(grid.step.max())),
        codes_used=int(np.unique(grid.codes).size),
        codes_possible=layer.weight_quantizer.code_count,
        weights=grid.codes.size,
        bytes=math.ceil(grid.codes.size * stored / 8),
        sparsity=float(np.mean(grid.codes == 0)),
        macs=macs,
        input_bits=input_bits,
    )


def _of_tensor(placement: Placement, layer: QuantizeActivation) -> LayerSummary:
    if not layer.is_initialized():
        return LayerSummary(placement=placement, grid="not set", codes_possible=2**layer.quantizer.bits)
    grid = layer.grid()
    lower = f", minus {grid.lower:.3g} before" if grid.lower else ""
    return LayerSummary(
        placement=placement,
        grid=f"{grid.step:.3g} x {-grid.zero} .. {grid.highest - grid.zero}{lower}",
        steps=(grid.step, grid.step),
        codes_possible=grid.highest + 1,
    )


def _input_bits(graph: _host.Graph, tensor: int) -> int:
    """The bits of the grid that a tensor is on; 32 for one in float."""
    node = graph.producer(tensor)
    if isinstance(node.layer, QuantizeActivation):
        return int(node.layer.quantizer.bits)
    layer = node.layer.layer if isinstance(node.layer, QuantizedLayer) else node.layer
    if kind_of(layer) in (None, Kind.INPUT, Kind.LINEAR):
        return FLOAT_BITS
    return max(_input_bits(graph, number) for number in node.inputs)


def _codes(grid: WeightGrid) -> str:
    steps = np.unique(grid.step)
    step = f"{steps[0]:.3g}" if steps.size == 1 else f"{steps[0]:.3g} .. {steps[-1]:.3g} ({grid.step.size} channels)"
    return f"{step} x {grid.codes.min()} .. {grid.codes.max()}"


def _numbers(row: LayerSummary) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(row) if field.name != "placement"]
    return {name: getattr(row, name) for name in (*names, "precision")}
