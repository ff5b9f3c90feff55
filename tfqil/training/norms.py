"""Batch normalizations after training: their statistics anew, from the weights as they have become."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfqil import _host
from tfqil.scheme.inputs import input_tensors


def reestimate_norms(model: Any, dataset: Iterable[Any], batches: int = 100) -> Any:
    """Sets the means and variances of batch normalizations to those of some batches; nothing else changes.

    In training they are moving averages, which still hold what earlier weights have caused. Where a quantized weight
    moves by a whole level, or the step of LBW to the next power of two, late in training, they are not those of the
    network that is left, and it loses accuracy, or swings from epoch to epoch.

    Forward: m = mean over batches of the mean of a batch; the same of the variance. Frozen normalizations stay.

    Args:
        model: a trained model, quantized or not, on one device.
        dataset: a `tf.data.Dataset` or other iterable of batches as in training, each the inputs or a tuple that
            starts with them.
        batches: how many batches to use at most.

    Returns:
        `model`, for chaining.

    Raises:
        ValueError: no batch, one of another shape, or activations that are not finite; the statistics are then as they
            were.

    Reference: Nagel et al., "Overcoming Oscillations in Quantization-Aware Training" (ICML 2022), section 4.
    """
    _host.require_functional(model)
    if not isinstance(batches, int) or batches < 1:
        raise ValueError(f"Got batches={batches!r}, expected a whole number of at least 1.")
    norms = _host.batch_norms(model)
    statistics = [variable for layer in norms for variable in (layer.moving_mean, layer.moving_variance)]
    before, momenta = model.get_weights(), [layer.momentum for layer in norms]
    sums, count = [np.zeros(variable.shape) for variable in statistics], 0

    @tf.function
    def see(inputs: list[tf.Tensor]) -> None:
        model(inputs if len(inputs) > 1 else inputs[0], training=True)

    try:
        for layer in norms:
            layer.momentum = 0.0  # The statistics are then those of one batch.
        for batch in itertools.islice(dataset, batches):
            see(input_tensors(model, batch[0] if isinstance(batch, tuple) else batch, "data"))
            sums = [total + variable.numpy() for total, variable in zip(sums, statistics, strict=True)]
            count += 1
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
        model.set_weights(before)  # Ranges have moved too.
    if not count:
        raise ValueError("Got a data set without a batch, expected at least one: pass some training examples.")
    if not all(np.all(np.isfinite(total)) for total in sums):
        raise ValueError(
            "Got NaN or Inf in an activation, expected finite numbers: check the data, or restore a checkpoint of the "
            "weights."
        )
    for variable, total in zip(statistics, sums, strict=True):
        variable.assign(total / count)
    return model
