"""Observing tensors: the range and the histogram from which intervals start."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from tfqil.numerics import interval_search

# The first training batches that set the intervals of a model that was not calibrated.
FIRST_BATCHES = 4


class Observation:
    """What calibration sees of a tensor; what a quantizer does not ask for is not computed.

    Entries that are not finite count as 0, and 0 counts as seen.
    """

    def __init__(self, inputs: tf.Tensor) -> None:
        """Observes one batch of a tensor."""
        inputs = tf.cast(inputs, tf.float32)
        self._inputs = tf.where(tf.math.is_finite(inputs), inputs, tf.zeros_like(inputs))

    @functools.cached_property
    def minimum(self) -> tf.Tensor:
        """The lower end of the range, float32 scalar <= 0."""
        return tf.minimum(tf.reduce_min(self._inputs), 0.0)

    @functools.cached_property
    def maximum(self) -> tf.Tensor:
        """The upper end of the range, float32 scalar >= 0."""
        return tf.maximum(tf.reduce_max(self._inputs), 0.0)

    @functools.cached_property
    def counts(self) -> tf.Tensor:
        """Histogram of the positive part over [0, maximum], float32 (`interval_search.BINS`,)."""
        return interval_search.histogram(self._inputs, self.maximum)

    @functools.cached_property
    def positive_root_mean_square(self) -> tf.Tensor:
        """That of the strictly positive entries, float32 scalar; 0 if there are none."""
        positive = tf.maximum(self._inputs, 0.0)
        count = tf.math.count_nonzero(positive, dtype=tf.float32)
        # In units of the maximum, whose square may be no float32.
        relative = tf.math.divide_no_nan(positive, self.maximum)
        return self.maximum * tf.sqrt(tf.math.divide_no_nan(tf.reduce_sum(relative * relative), count))


def initialize_on_first_batches(quantizer: Any, inputs: tf.Tensor, variables: Any) -> None:
    """Lets the first training batches of an uncalibrated model set its intervals."""
    current = {name: tf.convert_to_tensor(value) for name, value in variables.items()}
    counter = current["observed_batches"]
    is_first = counter < FIRST_BATCHES

    def fitted() -> dict[str, tf.Tensor]:
        return {**current, **quantizer.fitted(Observation(tf.stop_gradient(inputs)), current)}

    # The branches return values only: a branch cannot assign to a variable that replicas share.
    values = tf.cond(is_first, fitted, lambda: current)
    values["observed_batches"] = counter + tf.cast(is_first, counter.dtype)
    for name, variable in variables.items():
        variable.assign(values[name])


def running_mean(variables: Any, name: str, value: tf.Tensor, *, valid: tf.Tensor) -> tf.Tensor:
    """The mean of a variable over the observed batches and a value; one that is not valid changes nothing."""
    current, batches = tf.convert_to_tensor(variables[name]), tf.convert_to_tensor(variables["observed_batches"])
    mean = current + (value - current) / tf.cast(batches + 1, current.dtype)
    updated = tf.where(batches > 0, mean, value)  # The first value replaces whatever was there.
    return tf.where(valid, updated, current)


def range_over_replicas(inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The ends of the range of a batch, 0 included, of which each replica has a part: float32 scalars."""
    ends = tf.cast(tf.stack([-tf.reduce_min(inputs), tf.reduce_max(inputs)]), tf.float32)
    replica = tf.distribute.get_replica_context()  # None outside of a replica, as where a strategy builds a model.
    if replica is not None and replica.num_replicas_in_sync > 1:
        ends = tf.reduce_max(replica.all_gather(ends[tf.newaxis], axis=0), axis=0)
    return -tf.maximum(ends[0], 0.0), tf.maximum(ends[1], 0.0)
