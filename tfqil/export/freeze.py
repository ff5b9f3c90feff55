"""Freezing: the integers that were trained."""

from __future__ import annotations

from typing import Any

from tfqil import _host
from tfqil.numerics.grid import WeightGrid
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer


def freeze(q_model: Any) -> dict[str, WeightGrid]:
    """The codes and steps of every quantized kernel.

    Args:
        q_model: a model from `quantize_model` or `quantize_apply` with a `LowBitScheme`.

    Returns:
        {layer name in the float model: grid}. Codes have the shape of the kernel, its output channels last (of a
        Conv2DTranspose (kh, kw, I, O)); where an exporter folds a batch
        normalization with a negative gamma into a channel, the file holds that channel's codes with opposite sign.

    Raises:
        TypeError, ValueError: no quantized model.
    """
    require_quantized(q_model)
    return {layer.layer.name: layer.grid() for layer in q_model.layers if isinstance(layer, QuantizedLayer)}


def require_quantized(q_model: Any) -> None:
    """Raises one sentence unless a model holds quantized layers."""
    _host.require_functional(q_model)
    if not any(isinstance(layer, (QuantizedLayer, QuantizeActivation)) for layer in q_model.layers):
        raise ValueError(
            f"Got the float model {q_model.name!r}, expected a quantized one: pass it through tfqil.quantize_model "
            "and train it first."
        )


def require_calibrated(q_model: Any) -> None:
    """Raises one sentence that names the tensors whose grids no data have set."""
    missing = [
        layer.name for layer in q_model.layers if isinstance(layer, QuantizeActivation) and not layer.is_initialized()
    ]
    if missing:
        raise ValueError(
            f"Got a model whose activation grids were never set ({', '.join(missing)}), expected a calibrated or "
            "trained one: call tfqil.calibrate(q_model, dataset) or q_model.fit first."
        )
