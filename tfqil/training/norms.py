"""Batch normalizations after training: their statistics anew, from the weights as they have become."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfqil import _host
from tfqil.scheme.inputs import input_batches
from tfqil.scheme.layers import QuantizeActivation
from tfqil.training.relaxation_schedule import relaxations


def reestimate_norms(model: Any, dataset: Any, batches: int = 100) -> Any:
    """Sets the means and variances of batch normalizations to those of some batches; nothing else changes.

    In training they are moving averages, which still hold what earlier weights have caused. Where a quantized weight
    moves by a whole level, or the step of LBW to the next power of two, late in training, they are not those of the
    network that is left, and it loses accuracy, or swings from epoch to epoch.

    Forward: m = mean over examples of the mean of their batch; the same of the variance. Batches are computed with what
        inference computes with: exactly quantized weights, and intervals that do not move. Frozen normalizations stay.

    Args:
        model: a trained model, quantized or not, on one device.
        dataset: as for `calibrate`; batches as large as those of training.
        batches: how many batches to use at most.

    Returns:
        `model`, for chaining.

    Raises:
        ValueError: no batch, one of another shape, or activations that are not finite; the statistics are then as they
            were.

    Reference: Nagel et al., "Overcoming Oscillations in Quantization-Aware Training" (ICML 2022), section 4.
    """
    _host.require_functional(model)
    norms = _host.batch_norms(model)
    statistics = [variable for layer in norms for variable in (layer.moving_mean, layer.moving_variance)]
    sums, count = [np.zeros(variable.shape) for variable in statistics], 0

    @tf.function
    def see(inputs: list[tf.Tensor]) -> None:
        model(inputs if len(inputs) > 1 else inputs[0], training=True)

    with _as_inference(model, norms):
        for inputs in input_batches(model, dataset, batches, "data"):
            see(inputs)
            examples = int(inputs[0].shape[0])
            sums = [total + examples * variable.numpy() for total, variable in zip(sums, statistics, strict=True)]
            count += examples
    if not all(np.all(np.isfinite(total)) for total in sums):
        raise ValueError(
            "Got NaN or Inf in an activation, expected finite numbers: check the data, or restore a checkpoint of the "
            "weights."
        )
    for variable, total in zip(statistics, sums, strict=True):
        variable.assign(total / count)
    return model


@contextlib.contextmanager
def _as_inference(model: Any, norms: list[Any]) -> Iterator[None]:
    """Lets normalizations take the statistics of single batches, and quantizers do what they do in inference."""
    before, momenta = model.get_weights(), [layer.momentum for layer in norms]
    learning = [layer for layer in model.submodules if isinstance(layer, QuantizeActivation) and layer.trainable]
    try:
        for layer in norms:
            layer.momentum = 0.0
        for layer in learning:
            layer.trainable = False
        for relaxation in relaxations(model):
            relaxation.assign(math.inf)
        yield
    finally:
        for layer in learning:
            layer.trainable = True
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
        model.set_weights(before)
