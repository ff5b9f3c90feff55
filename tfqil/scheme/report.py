"""The report of a quantized model: what every layer got, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from tfqil import _host
from tfqil.scheme.kinds import LEAKY_SLOPE_UNIT, Kind, kind_of, why_float
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer

Row = TypeVar("Row")

_REASONS = {
    Kind.NORM: "is folded into the layer before it, or becomes a depthwise layer",
    Kind.AFFINE: "is folded into the layer before it, or becomes a depthwise layer",
    Kind.INPUT: "its tensor is quantized by the layer behind it",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """What one layer of a quantized model got.

    Attributes:
        layer: its name; for a kernel the name in the float model.
        role: "kernel", "tensor" or what the layer does to a grid.
        bits: width of the grid; None where the layer has none of its own.
        quantizer: the class of the quantizer, and of the one that it relaxes; None where there is none.
        reason: why.
    """

    layer: str
    role: str
    bits: int | None
    quantizer: str | None
    reason: str


class LayerRows(Generic[Row]):
    """Rows of the layers of a model, found by the layer's name.

    A subclass has `rows` and says what each shows in a table.
    """

    rows: tuple[Row, ...]
    unmatched_rules: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, layer: str) -> Row:
        rows = {self._layer(row): row for row in self.rows}
        if layer not in rows:
            raise KeyError(f"Got the layer name {layer!r}, expected one of {', '.join(rows)}.")
        return rows[layer]

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]) - 1)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in cells]
        return "\n".join(line.rstrip() for line in [*lines, *self.unmatched_in_words()])

    def unmatched_in_words(self) -> list[str]:
        """A line that names the rules that matched no layer; none where all did."""
        if not self.unmatched_rules:
            return []
        return [f"Rules that matched no layer: {', '.join(map(repr, self.unmatched_rules))}."]

    def _layer(self, row: Row) -> str:
        """The name of a row's layer."""
        raise NotImplementedError

    def _cells(self) -> list[tuple[str, ...]]:
        """The lines of the table: headings, rows and totals."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacementReport(LayerRows[Placement]):
    """One `Placement` per layer, in the order of the model; `str` gives a table.

    Attributes:
        rows: the placements.
        unmatched_rules: patterns of `LowBitScheme(rules=...)` that no layer matched; not known of a reloaded model.
    """

    rows: tuple[Placement, ...]
    unmatched_rules: tuple[str, ...] = ()

    def to_dict(self) -> list[dict[str, Any]]:
        """The rows as plain values."""
        return [dataclasses.asdict(row) for row in self.rows]

    def _layer(self, row: Placement) -> str:
        return row.layer

    def _cells(self) -> list[tuple[str, ...]]:
        rows = [(r.layer, r.role, str(r.bits or "-"), r.quantizer or "-", r.reason) for r in self.rows]
        return [("layer", "role", "bits", "quantizer", "reason"), *rows]


def float_layers(model: Any) -> list[Any]:
    """The layers of a model that stay in float since their arithmetic is not known."""
    return [
        layer
        for layer in model.layers
        if not isinstance(layer, (QuantizedLayer, QuantizeActivation)) and why_float(layer)
    ]


def with_reasons(layers: Iterable[Any]) -> str:
    """Such layers in words, each with the reason."""
    return ", ".join(f"{layer.name!r} ({why_float(layer)})" for layer in layers)


def require_no_float_layers(model: Any) -> None:
    """Raises one sentence that lists all such layers, if there are any."""
    found = float_layers(model)
    if found:
        raise ValueError(
            f"Got layers that have no integer arithmetic: {with_reasons(found)}; expected none with "
            "require_integer_only=True: replace them, or leave that out to keep them in float."
        )


def placements(q_model: Any) -> PlacementReport:
    """Says for every layer of a quantized model what it got and why."""
    rows = [row for layer in q_model.layers for row in _placements(layer)]
    return PlacementReport(rows=tuple(rows), unmatched_rules=_host.note(q_model, "unmatched_rules", ()))


def _placements(layer: Any) -> list[Placement]:
    """The row of a layer, and of each layer that it replaces."""
    replaced = sum(layer.replaces, ()) if isinstance(layer, QuantizeActivation) else ()
    clips = [
        Placement(layer=name, role="clip", bits=None, quantizer=None, reason=f"is the clip of {layer.name}")
        for name in replaced
    ]
    return [*clips, _placement(layer)]


def _placement(layer: Any) -> Placement:
    if isinstance(layer, QuantizedLayer):
        return _quantized(layer.layer.name, "kernel", layer.weight_quantizer, layer.reason)
    if isinstance(layer, QuantizeActivation):
        return _quantized(layer.name, "tensor", layer.quantizer, layer.reason)
    kind = kind_of(layer)
    if kind is Kind.LINEAR:
        reason = "stays in float: edge_bits is None, or its config has no weight quantizer"
        return Placement(layer=layer.name, role="kernel", bits=None, quantizer=None, reason=reason)
    if kind is None:
        reason = f"stays in float: {why_float(layer)}"
        return Placement(layer=layer.name, role="float", bits=None, quantizer=None, reason=reason)
    reason = _REASONS.get(kind, "has nothing to quantize of its own")
    if type(layer) is _host.keras.layers.LeakyReLU:
        reason = f"its slope is {float(layer.alpha) / LEAKY_SLOPE_UNIT:.0f}/256: the runtime has multiples of 1/256"
    return Placement(layer=layer.name, role=kind.value, bits=None, quantizer=None, reason=reason)


def _quantized(name: str, role: str, quantizer: Any, reason: str) -> Placement:
    return Placement(layer=name, role=role, bits=quantizer.bits, quantizer=quantizer.label, reason=reason)
