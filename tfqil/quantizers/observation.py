"""Observing tensors: the range and the histogram from which intervals start."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf

from tfqil.numerics import interval_search
from tfqil.numerics.held_once import held_once

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
        variables: of the quantizer, float32 but for the counter.
        later: the weight of a batch after the first ones, which are then all that is counted.
    """
    current = {name: tf.convert_to_tensor(variables[name]) for name in fit.values if name in variables}
    values = {name: fit.values[name] for name in current}
    counter = tf.convert_to_tensor(variables["observed_batches"])
    means, counted = _averaged(values, current, tf.convert_to_tensor(fit.valid), counter, later)
    return {"observed_batches": counted, **means}


@held_once
def _averaged(
    values: dict[str, tf.Tensor],
    current: dict[str, tf.Tensor],
    valid: tf.Tensor,
    counter: tf.Tensor,
    later: float | None,
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    seen = tf.maximum(counter, 0)
    weight, counted = 1.0 / tf.cast(seen + 1, tf.float32), seen + 1
    if later is not None:
        weight = tf.where(seen < FIRST_BATCHES, weight, later)
        counted = tf.where(seen < FIRST_BATCHES, counted, counter)
    means = {}
    for name, value in values.items():
        # The first value replaces whatever was there.
        mean = tf.where(seen > 0, current[name] + weight * (value - current[name]), value)
        means[name] = tf.where(valid, mean, current[name])
    return means, tf.where(valid, counted, tf.where(seen > 0, counter, -1))


def initialize_on_first_batches(
    quantizer: ActivationQuantizer, inputs: tf.Tensor, variables: Mapping[str, Any]
) -> None:
    """Lets the first training batches of an uncalibrated model set its intervals.

    Of several replicas, those count whose part of a batch says something.
    """
    current = {name: tf.convert_to_tensor(value) for name, value in variables.items() if isinstance(value, tf.Variable)}
    counter = current.pop("observed_batches")
    specs = tuple((name, tf.TensorSpec(value.shape, value.dtype)) for name, value in current.items())
    flat = tf.reshape(tf.cast(tf.stop_gradient(inputs), tf.float32), [-1])
    fit: Fit = _fit_of_first_batches(quantizer, specs)(flat, counter, current)
    if _replicas() > 1:
        fit = _mean_over_replicas(fit)
    for name, value in averaged(fit, variables).items():
        variables[name].assign(value)


@functools.lru_cache(maxsize=256)
def _fit_of_first_batches(
    quantizer: ActivationQuantizer, specs: tuple[tuple[str, tf.TensorSpec], ...]
) -> Callable[..., Fit]:
    """What a flattened batch says of the variables; not valid after the first batches.

    One graph for all tensors with equal quantizers. It returns values only: a branch cannot assign to a variable that
    replicas share, nor add them up.
    """

    def fit(inputs: tf.Tensor, counter: tf.Tensor, current: dict[str, tf.Tensor]) -> Fit:
        def fitted() -> Fit:
            seen = inputs if quantizer.limit is None else tf.minimum(inputs, quantizer.limit)
            found = quantizer.fitted(Observation(seen))
            return Fit({name: found.values.get(name, value) for name, value in current.items()}, found.valid)

        found: Fit = tf.cond(counter < FIRST_BATCHES, fitted, lambda: Fit(current, tf.constant(False)))
        return found

    return held_once(fit, [tf.TensorSpec([None], tf.float32), tf.TensorSpec([], tf.int32), dict(specs)])


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


def range_over_replicas(inputs: tf.Tensor, *, signed: bool) -> Fit:
    """The ends of the range of a batch of which each replica has a part, `maximum` and, if signed, `minimum`."""
    ends = {"maximum": tf.reduce_max(inputs)}
    if signed:
        ends["minimum"] = -tf.reduce_min(inputs)
    # The largest of no numbers is -inf, which must not become 0 before it is seen that no replica has any.
    largest = {name: tf.cast(end, tf.float32) for name, end in ends.items()}
    if _replicas() > 1:
        parts = tf.stack(list(largest.values()))[tf.newaxis]
        gathered = tf.distribute.get_replica_context().all_gather(parts, axis=0)
        largest = dict(zip(largest, tf.unstack(tf.reduce_max(gathered, axis=0), num=len(largest)), strict=True))
    valid = tf.math.is_finite(tf.add_n(list(largest.values())))
    largest = {name: tf.maximum(end, 0.0) for name, end in largest.items()}
    return Fit({name: -end if name == "minimum" else end for name, end in largest.items()}, valid)
