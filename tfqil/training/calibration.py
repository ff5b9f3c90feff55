"""Calibration: activation intervals from data, before the first training step."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfqil import _host
from tfqil.quantizers.observation import FIRST_BATCHES, Observation
from tfqil.scheme.inputs import input_batches
from tfqil.scheme.layers import QuantizeActivation


def calibrate(q_model: Any, dataset: Any, batches: int = 8) -> Any:
    """Sets the activation intervals of a quantized model from data; its weights do not change.

    Each interval becomes the one that minimises the squared error to the tensor (ranges: its ends), averaged over
    the batches. Tensors flow unrounded between layers, so the order of layers does not matter.

    Args:
        q_model: a model from `quantize_model` or `quantize_apply`.
        dataset: a `tf.data.Dataset` or other iterable of batches, each the inputs or a tuple that starts with them;
            or an array of examples, or for several inputs a list or tuple of arrays, or a dictionary by their names.
        batches: how many batches to use at most.

    Returns:
        `q_model`, for chaining.

    Raises:
        ValueError: no quantized tensors, no batch, a batch of another shape or without one of the inputs, or NaN or Inf
            in a batch; the intervals are then as they were.
    """
    _host.require_functional(q_model)
    quantizing = [layer for layer in q_model.layers if isinstance(layer, QuantizeActivation)]
    if not quantizing:
        raise ValueError(f"Got the float model {q_model.name!r}, expected one from tfqil.quantize_model.")
    data = list(input_batches(q_model, dataset, batches, "calibration data"))
    _require_finite_tensors(q_model, data[0])
    counters = [
        variables["observed_batches"]
        for layer in quantizing
        for variables in map(layer.site_variables, range(layer.sites))
        if "observed_batches" in variables
    ]
    for counter in counters:
        counter.assign(0)
    for batch in data:
        _host.evaluate(q_model, batch, _initializing)
    for counter in counters:
        # Training batches set the intervals no more, however few batches calibration had; but those of a tensor of
        # zeros, of which nothing is known.
        if int(tf.convert_to_tensor(counter)) > 0:
            counter.assign(max(len(data), FIRST_BATCHES))
    return q_model


def _initializing(node: _host.Node, tensors: list[Any]) -> Any:
    """Runs a layer, but lets a quantizer look at its tensor instead of rounding it."""
    layer = node.layer
    if not isinstance(layer, QuantizeActivation):
        return _host.run_as_before(node, layer, tensors)
    site = _host.keyword(node, "site", 0)
    tensor = layer.clipped(tensors[0], site)
    layer.quantizer.initialize(Observation(tensor), layer.site_variables(site))
    return _host.with_mask(_passed(layer, tensor), tensors[0])


def _passed(layer: QuantizeActivation, clipped: tf.Tensor) -> tf.Tensor:
    """A clipped tensor as it goes on unrounded: unsigned grids begin at 0 themselves."""
    return clipped if layer.quantizer.is_signed else tf.nn.relu(clipped)


def _require_finite_tensors(q_model: Any, batch: list[tf.Tensor]) -> None:
    """Raises one sentence that names the first tensor with NaN or Inf: its weights are broken."""

    def call(node: _host.Node, tensors: list[Any]) -> Any:
        if not isinstance(node.layer, QuantizeActivation):
            return _host.run_as_before(node, node.layer, tensors)
        if not bool(tf.reduce_all(tf.math.is_finite(tensors[0]))):
            raise ValueError(
                f"Got NaN or Inf in the tensor that {node.layer.name!r} quantizes, expected finite numbers: the "
                "weights before it are broken; restore a checkpoint."
            )
        tensor = _passed(node.layer, node.layer.clipped(tensors[0], _host.keyword(node, "site", 0)))
        return _host.with_mask(tensor, tensors[0])

    _host.evaluate(q_model, batch, call)
