"""Observing tensors: the range and the histogram from which intervals start."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfqil.numerics import interval_search
from tfqil.quantizers.base import FIRST_BATCHES, ActivationQuantizer, Observation, Variables


def observe(inputs: tf.Tensor) -> Observation:
    """The observation of one batch; entries that are not finite count as 0."""
    inputs = tf.cast(inputs, tf.float32)
    inputs = tf.where(tf.math.is_finite(inputs), inputs, tf.zeros_like(inputs))
    maximum = tf.maximum(tf.reduce_max(inputs), 0.0)
    counts = interval_search.histogram(inputs, maximum)
    positive = tf.maximum(inputs, 0.0)
    count = tf.math.count_nonzero(positive, dtype=tf.float32)
    # In units of the maximum, whose square may be no float32.
    relative = tf.math.divide_no_nan(positive, maximum)
    mean_square = tf.math.divide_no_nan(tf.reduce_sum(relative * relative), count)
    return Observation(
        minimum=tf.minimum(tf.reduce_min(inputs), 0.0),
        maximum=maximum,
        counts=counts,
        positive_root_mean_square=maximum * tf.sqrt(mean_square),
    )


def initialize_on_first_batches(quantizer: ActivationQuantizer, inputs: tf.Tensor, variables: Variables) -> None:
    """Lets the first training batches of an uncalibrated model set its intervals."""
    is_first = tf.convert_to_tensor(variables["observed_batches"]) < FIRST_BATCHES

    def observed() -> Observation:
        return observe(tf.stop_gradient(inputs))

    def nothing() -> Observation:
        zero = tf.constant(0.0)
        return Observation(
            minimum=zero, maximum=zero, counts=tf.zeros(interval_search.BINS), positive_root_mean_square=zero
        )

    # The branches return values only: a branch cannot assign to a variable that replicas share.
    observation = tf.cond(is_first, observed, nothing)
    quantizer.initialize(observation, variables, when=is_first)


def running_mean(variable: Any, value: tf.Tensor, batches: tf.Tensor, *, valid: tf.Tensor) -> None:
    """Averages a value over the batches that are counted so far; one that is not valid changes nothing."""
    current = tf.convert_to_tensor(variable)
    mean = current + (value - current) / tf.cast(batches + 1, current.dtype)
    updated = tf.where(batches > 0, mean, value)  # The first value replaces whatever was there.
    variable.assign(tf.where(valid, updated, current))
