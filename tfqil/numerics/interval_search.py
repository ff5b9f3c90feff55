"""The interval to start from: the upper end whose equal levels lie nearest to the data in the square mean.

For an exponent of 1 and a lower end of 0 the levels are h k / q, so only h is searched. The error of a candidate is
linear in the histogram of the data; with the bins counted in units of the largest magnitude, one matrix (bins,
candidates) serves every tensor and channel. Graphs compute it where they need it: as a constant it would be a megabyte
in the graph of every quantizer.
"""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfqil.numerics.bins import bin_sums

BINS = 1024
_CANDIDATES = 256
_SMALLEST_CANDIDATE = 1 / 64


def histogram(magnitudes: tf.Tensor, largest: tf.Tensor) -> tf.Tensor:
    """Counts of |x| in `BINS` equal bins over [0, largest].

    Shapes: largest () or the last axes of magnitudes; the result is float32, the shape of largest + (BINS,).
    Larger entries count in the last bin, NaN in the first.
    """
    slices = largest.shape.num_elements()
    scale = BINS / tf.maximum(largest, BINS * np.finfo(np.float32).tiny)
    bins = tf.maximum(tf.cast(tf.minimum(magnitudes * scale, BINS - 1.0), tf.int32), 0)
    segments = tf.reshape(bins, [-1, slices]) + BINS * tf.range(slices)
    counts = bin_sums(segments, tf.zeros((0,)), bins=BINS * slices)
    return tf.reshape(counts, [*largest.shape, BINS])


def best_upper_end(counts: tf.Tensor, largest: tf.Tensor, *, levels: int) -> tf.Tensor:
    """The h in (0, largest] that minimises sum (x - h/q round(q min(x/h, 1)))^2, to 0.8 % of itself.

    Args:
        counts: float32 (..., BINS), from `histogram`.
        largest: float32 (...), the upper end of the last bin.
        levels: q, the largest code.

    Returns:
        float32 (...), in the units of `largest`.
    """
    table = _known_errors(levels) if tf.executing_eagerly() else _errors(levels)
    errors = tf.linalg.matmul(tf.reshape(counts, [-1, BINS]), table)
    best = tf.gather(tf.constant(_candidates()), tf.argmin(errors, axis=-1))
    return largest * tf.reshape(best, tf.shape(largest))


def _candidates() -> NDArray[np.float32]:
    return np.geomspace(_SMALLEST_CANDIDATE, 1.0, _CANDIDATES).astype(np.float32)


@functools.cache
def _known_errors(levels: int) -> NDArray[np.float32]:
    """`_errors`, for searches that run one by one: it takes longer than they do."""
    return np.asarray(_errors(levels))


def _errors(levels: int) -> tf.Tensor:
    """Mean squared error of each candidate for data spread evenly over each bin, in units of largest^2.

    With step s, k the code of x and r = x - k s, the integral of the squared error from 0 to x is k s^3 / 12 + r^3 / 3.
    """
    ends = tf.range(BINS + 1, dtype=tf.float64)[:, None] / BINS
    steps = tf.constant(_candidates(), tf.float64) / levels
    codes = tf.minimum(tf.round(ends / steps), float(levels))
    rest = ends - codes * steps
    integral = codes * (steps**3 / 12.0) + rest**3 / 3.0
    return tf.cast((integral[1:] - integral[:-1]) * BINS, tf.float32)
