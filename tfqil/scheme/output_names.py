"""The names of a model's outputs: those of the float model, whatever layers produce them in the quantized one.

Layers are split and quantizers placed behind them, so that the layer at an output has another name. A quantizing layer
of the model holds the names, so that every way of saving and copying the model keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfqil.scheme.layers import QuantizeActivation


def note_output_names(q_model: Any, names: Sequence[str | None]) -> None:
    """Notes in a quantized model what its outputs are called in the float model; None for what is not known."""
    holders = [layer for layer in q_model.layers if isinstance(layer, QuantizeActivation)]
    pairs = zip(q_model.output_names, names, strict=True)
    for layer in holders[:1]:
        layer.output_names = tuple((own, name) for own, name in pairs if name is not None)


def noted_output_names(q_model: Any) -> Mapping[str, str]:
    """What `note_output_names` noted, by the model's own names; nothing of what earlier versions have quantized."""
    holders = [layer for layer in q_model.layers if isinstance(layer, QuantizeActivation)]
    return {own: name for layer in holders for own, name in layer.output_names}
