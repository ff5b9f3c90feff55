"""Widths for the weights of each layer that lose least within a budget of bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.table
from numpy.typing import NDArray

from tfqil._tables import NotebookTable, rich_table
from tfqil.report.sensitivity import EIGHT, LayerSensitivity, Sensitivity, require_count, weight_quantizer
from tfqil.scheme.config import LowBitQuantizeConfig
from tfqil.scheme.report import LayerRows
from tfqil.scheme.scheme import LowBitScheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerBits:
    """The width of one layer.

    Attributes:
        layer: its name.
        weights: number of its weights.
        bits: width of its weights.
        bytes: size of its codes.
        loss: what it loses of the metric, as measured.
    """

    layer: str
    weights: int
    bits: int
    bytes: int
    loss: float


class SuggestedBits(LowBitScheme, LayerRows[LayerBits], NotebookTable):
    """A scheme with a rule for each layer, which `quantize_model` takes; `str` and rich's `print` give a table.

    Attributes:
        rows: the layers and their widths, in the order of the model.
        rules: name -> config, as `LowBitScheme` takes them.
        max_bytes: the budget.
        count: how bytes were counted, "stored" or "packed".
        other_bytes: size of the codes of kernels that are in no row.
    """

    def __init__(
        self,
        rows: Sequence[LayerBits],
        rules: dict[str, LowBitQuantizeConfig],
        config: LowBitQuantizeConfig,
        *,
        max_bytes: int,
        count: str,
        other_bytes: int,
    ) -> None:
        super().__init__(config, rules=rules)
        self.rows = tuple(rows)
        self.max_bytes, self.count, self.other_bytes = max_bytes, count, other_bytes

    @property
    def bytes(self) -> int:
        """Size of all codes."""
        return self.other_bytes + sum(row.bytes for row in self.rows)

    @property
    def loss(self) -> float:
        """What the layers lose of the metric, each on its own, in the sum."""
        return sum(row.loss for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The rows and totals as plain values."""
        totals = {name: getattr(self, name) for name in ("bytes", "loss", "max_bytes", "count", "other_bytes")}
        return {**totals, "layers": [dataclasses.asdict(row) for row in self.rows]}

    def __rich__(self) -> rich.table.Table:
        return rich_table(self._cells())

    def _layer(self, row: LayerBits) -> str:
        return row.layer

    def _cells(self) -> list[tuple[str, ...]]:
        rows = [(r.layer, f"{r.weights:,}", str(r.bits), f"{r.bytes:,}", f"{r.loss:.4f}") for r in self.rows]
        others = [("others", "", "", f"{self.other_bytes:,}", "")] if self.other_bytes else []
        total = (f"total of at most {self.max_bytes:,}", "", "", f"{self.bytes:,}", f"{self.loss:.4f}")
        return [("layer", "weights", "bits", f"bytes, {self.count}", "loss"), *rows, *others, total]


def suggest_bits(
    sensitivity: Sensitivity,
    *,
    max_bytes: int,
    activation_bits: int = EIGHT,
    count: str = "stored",
    choose_edges: bool = False,
) -> SuggestedBits:
    """Chooses the widths of the weights, layer by layer, that lose least of the metric within a budget.

    The sum of the losses that were measured is as small as any choice within the budget has it, and among such choices
    the bytes are fewest. Layers lose more or less together than one by one, and training wins some of it back: compare
    the trained result with a uniform one.

        scheme = suggest_bits(sensitivity(model, data, "loss"), max_bytes=100_000)
        q_model = quantize_model(model, scheme)

    Args:
        sensitivity: what `tfqil.sensitivity` measured.
        max_bytes: the most that the codes of all kernels may take; `Sensitivity.uniform_bytes` is that of one width.
        activation_bits: width of what the layers read; edges read 8 bits.
        count: "stored" counts the 2, 4 or 8 bits that a file can store a code in (16 for powers of two beyond INT8),
            which is what a phone keeps and `tfqil.summary` counts: 3 bits take 4. "packed" counts the width itself, for
            hardware that packs any, and as papers do.
        choose_edges: choose the widths of layers at model inputs and outputs too, instead of 8 bits as `LowBitScheme`
            gives them.

    Returns:
        A `LowBitScheme` for `quantize_model` or `quantize_apply`, whose `rules` have the config of each layer.

    Raises:
        TypeError: no sensitivity, or a budget that is no whole number.
        ValueError: a budget below the fewest bytes that any choice takes, or another count or width.

    Reference: Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11 (the multiple-choice problem).
    """
    if not isinstance(sensitivity, Sensitivity):
        raise TypeError(f"Got {type(sensitivity).__name__}, expected what tfqil.sensitivity returns.")
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, (int, np.integer)):
        raise TypeError(f"Got max_bytes={max_bytes!r}, expected a whole number of bytes.")
    require_count(count)
    activations: Any = sensitivity.config.activations
    if activations is not None:
        activations = activations.with_bits(activation_bits)
    widths = [_widths(row, sensitivity, choose_edges) for row in sensitivity.rows]
    costs = [
        np.array([row.bytes(bits, count) for bits in of_row], np.int64)
        for row, of_row in zip(sensitivity.rows, widths, strict=True)
    ]
    losses = [
        np.array([row.losses[bits] for bits in of_row]) for row, of_row in zip(sensitivity.rows, widths, strict=True)
    ]
    least = sensitivity.other_bytes + sum(int(of_row.min()) for of_row in costs)
    if max_bytes < least:
        raise ValueError(
            f"Got max_bytes={max_bytes:,}, expected at least {least:,}, the fewest that the widths "
            f"{', '.join(map(str, sensitivity.bits))} allow, counted as {count!r}: allow more bytes"
            f"{'' if choose_edges else ', or set choose_edges=True'}."
        )
    chosen = _least_loss(costs, losses, int(max_bytes) - sensitivity.other_bytes)
    rows, rules = [], {}
    for row, of_row, choice in zip(sensitivity.rows, widths, chosen, strict=True):
        bits = of_row[choice]
        rows.append(
            LayerBits(
                layer=row.layer,
                weights=sum(row.weights),
                bits=bits,
                bytes=row.bytes(bits, count),
                loss=row.losses[bits],
            )
        )
        if not row.is_edge or choose_edges:
            weights = weight_quantizer(sensitivity.config, bits)
            reads = None if row.is_edge else activations
            rules[row.layer] = LowBitQuantizeConfig(weights=weights, activations=reads)
    default = LowBitQuantizeConfig(weights=weight_quantizer(sensitivity.config, EIGHT), activations=activations)
    return SuggestedBits(
        rows, rules, default, max_bytes=int(max_bytes), count=count, other_bytes=sensitivity.other_bytes
    )


def _widths(row: LayerSensitivity, sensitivity: Sensitivity, choose_edges: bool) -> tuple[int, ...]:
    return sensitivity.bits if choose_edges or not row.is_edge else (EIGHT,)


def _least_loss(costs: Sequence[NDArray[np.int64]], losses: Sequence[NDArray[Any]], budget: int) -> list[int]:
    """One choice per layer with the least summed loss, and of those the least cost, within a budget that allows one.

    Dynamic programming over the layers: of all choices for the layers so far only those are kept that lose less than
    every one that costs no more.
    """
    rest = sum(int(of_layer.min()) for of_layer in costs)
    cost, loss = np.zeros(1, np.int64), np.zeros(1)
    steps = []
    for of_costs, of_losses in zip(costs, losses, strict=True):
        rest -= int(of_costs.min())
        all_costs = np.add.outer(cost, of_costs).ravel()
        all_losses = np.add.outer(loss, of_losses).ravel()
        order = np.lexsort((all_losses, all_costs))
        order = order[all_costs[order] <= budget - rest]
        sorted_losses = all_losses[order]
        lowest_before = np.minimum.accumulate(np.concatenate([[np.inf], sorted_losses[:-1]]))
        kept = order[sorted_losses < lowest_before]
        cost, loss = all_costs[kept], all_losses[kept]
        steps.append((kept // len(of_costs), kept % len(of_costs)))
    state = len(cost) - 1
    chosen = []
    for before, choice in reversed(steps):
        chosen.append(int(choice[state]))
        state = int(before[state])
    return chosen[::-1]
