"""When an interval is dead, so that its layer learns or passes nothing, and what helps."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfqil.quantizers.qil import SMALLEST_HALF_WIDTH
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer
from tfqil.training.interval_measures import Measures, Parameters

# Nine zeros of ten are what pruning at 2 bits aims at; 99 of 100 leave nothing to learn from.
_ALMOST_ALL = 0.99
_SLOWER = "let intervals learn slower than weights (tfqil.optimizers.IntervalRateOptimizer)"


def complaints(layer: QuantizedLayer | QuantizeActivation, measures: Measures) -> dict[str, str]:
    """What is wrong with a tensor as it is quantized: kind -> sentence with the layer and the remedy.

    Kinds: "zeros" (99 of 100 codes are 0), "one code", "clipped" (99 of 100 values lie beyond the outermost level);
    without these "channels" (intervals of channels that prune or clip all).
    """
    if measures.values.size < 2:
        return {}
    found, what = {}, _subject(layer)
    if measures.pruning_ratio >= _ALMOST_ALL:
        remedy = _remedy_of_zeros(layer) if _is_nothing(measures) else _remedy(layer)
        found["zeros"] = f"Got {measures.pruning_ratio:.1%} codes of 0 in {what}, expected levels in use: {remedy}."
    elif measures.codes_used == 1:
        code = measures.codes.flat[0]
        found["one code"] = f"Got the code {code} alone in {what}, expected several levels: {_remedy(layer)}."
    if measures.clipped_share >= _ALMOST_ALL:
        found["clipped"] = (
            f"Got {measures.clipped_share:.1%} of {what} beyond the outermost level, expected an interval around them: "
            f"{_remedy(layer)}."
        )
    dead = measures.dead_channels
    # A channel of one weight has nothing in between.
    if not found and dead is not None and dead.any() and measures.values.size > dead.size:
        found["channels"] = (
            f"Got {dead.sum()} of {dead.size} channels in {what} whose codes are all 0, or whose weights all lie "
            f"beyond the outermost level, expected intervals around them: {_remedy(layer)}."
        )
    return found


def complaint_of_width(layer: QuantizedLayer | QuantizeActivation, parameters: Parameters) -> str | None:
    """What is wrong with an interval whose half-width is at its least value; None if nothing is."""
    half_width = parameters.get("half_width")
    if half_width is None or not np.any(half_width <= SMALLEST_HALF_WIDTH):
        return None
    closed = f" ({np.sum(half_width <= SMALLEST_HALF_WIDTH)} of {half_width.size} channels)" if half_width.ndim else ""
    return (
        f"Got the least half-width, {SMALLEST_HALF_WIDTH:g}{closed}, in the interval of {_subject(layer)}, expected a "
        f"wider one: {_remedy(layer)}."
    )


def _subject(layer: Any) -> str:
    if isinstance(layer, QuantizedLayer):
        return f"the weights of layer {layer.layer.name!r}"
    return f"the tensor of layer {layer.name!r}"


def _remedy(layer: Any) -> str:
    if isinstance(layer, QuantizeActivation):
        return f"fit it to data again (tfqil.calibrate), and {_SLOWER}"
    if "half_width" in layer.quantizer_variables:
        return f"fit it to the weights again (q_model.get_layer({layer.name!r}).initialize()), and {_SLOWER}"
    return "give the layer more bits, or lower the learning rate"


def _remedy_of_zeros(layer: Any) -> str:
    if isinstance(layer, QuantizedLayer):
        return "the float weights are 0 too, so check how they are initialized and whether a gradient reaches them"
    return "it is never positive, so the layers before it are dead; lower the learning rate, or restore a checkpoint"


def _is_nothing(measures: Measures) -> bool:
    """Whether there is nothing that any interval could put on a level."""
    values = np.abs(measures.values) if measures.is_kernel else measures.values
    return not np.any(values > 0)
