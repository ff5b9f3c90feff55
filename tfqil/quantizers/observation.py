"""Observing tensors: the range and the histogram from which intervals start."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf

from tfqil.numerics import interval_search

if TYPE_CHECKING:
    from tfqil.quantizers.base import ActivationQuantizer

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


class Fit(NamedTuple):
    """What one batch says of the variables of a quantizer.

    Attributes:
        values: by the names of the variables; names that a quantizer has no variable for are left out.
        valid: bool scalar, whether it says anything: a batch of zeros does not.
    """

    values: dict[str, tf.Tensor]
    valid: tf.Tensor


def averaged(fit: Fit, variables: Mapping[str, Any], *, later: float | None = None) -> dict[str, tf.Tensor]:
    """The variables that a fit is of, and their counter: the mean over all valid batches up to now.

    What is not valid changes nothing but a counter of 0, which becomes -1: something was seen.

    Args:
        fit: of one more batch.
        variables: of the quantizer, or their values.
        later: the weight of a batch after the first ones, which are then all that is counted.
    """
    counter = tf.convert_to_tensor(variables["observed_batches"])
    seen = tf.maximum(counter, 0)
    weight, counted = 1.0 / tf.cast(seen + 1, tf.float32), seen + 1
    if later is not None:
        weight = tf.where(seen < FIRST_BATCHES, weight, later)
        counted = tf.where(seen < FIRST_BATCHES, counted, counter)
    updated = {"observed_batches": tf.where(fit.valid, counted, tf.where(seen > 0, counter, -1))}
    for name, value in fit.values.items():
        if name in variables:
            current = tf.convert_to_tensor(variables[name])
            # The first value replaces whatever was there.
            mean = tf.where(seen > 0, current + weight * (value - current), value)
            updated[name] = tf.where(fit.valid, mean, current)
    return updated


def initialize_on_first_batches(
    quantizer: ActivationQuantizer, inputs: tf.Tensor, variables: Mapping[str, Any]
) -> None:
    """Lets the first training batches of an uncalibrated model set its intervals.

    Of several replicas, those count whose part of a batch says something.
    """
    current = {name: tf.convert_to_tensor(value) for name, value in variables.items() if isinstance(value, tf.Variable)}
    is_first = current["observed_batches"] < FIRST_BATCHES

    def fit() -> Fit:
        return quantizer.fitted(Observation(tf.stop_gradient(inputs)))

    # The branches return values only: a branch cannot assign to a variable that replicas share, nor add them up.
    if _replicas() == 1:
        values = tf.cond(is_first, lambda: {**current, **averaged(fit(), current)}, lambda: current)
    else:
        unchanged = {name: value for name, value in current.items() if name != "observed_batches"}

        def fitted() -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            found = fit()
            return {name: found.values.get(name, value) for name, value in unchanged.items()}, found.valid

        values, valid = tf.cond(is_first, fitted, lambda: (unchanged, tf.constant(False)))
        values = {**current, **averaged(_mean_over_replicas(Fit(values, valid)), current)}
    for name, value in values.items():
        variables[name].assign(value)


def _replicas() -> int:
    """How many replicas take this step together; 1 outside of a replica, as where a strategy builds a model."""
    replica = tf.distribute.get_replica_context()
    return 1 if replica is None else int(replica.num_replicas_in_sync)


def _mean_over_replicas(fit: Fit) -> Fit:
    """The mean of the valid fits of all replicas."""
    parts = [tf.where(fit.valid, value, tf.zeros_like(value)) for value in fit.values.values()]
    sums = tf.stack([*parts, tf.cast(fit.valid, tf.float32)])
    total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)
    means = {name: tf.math.divide_no_nan(total[number], total[-1]) for number, name in enumerate(fit.values)}
    return Fit(means, total[-1] > 0)


def range_over_replicas(inputs: tf.Tensor) -> Fit:
    """The ends of the range of a batch, 0 included, of which each replica has a part: `minimum` and `maximum`."""
    ends = tf.cast(tf.stack([-tf.reduce_min(inputs), tf.reduce_max(inputs)]), tf.float32)
    if _replicas() > 1:
        ends = tf.reduce_max(tf.distribute.get_replica_context().all_gather(ends[tf.newaxis], axis=0), axis=0)
    valid = tf.reduce_all(tf.math.is_finite(ends))
    return Fit({"minimum": -tf.maximum(ends[0], 0.0), "maximum": tf.maximum(ends[1], 0.0)}, valid)
