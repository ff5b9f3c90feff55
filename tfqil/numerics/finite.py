"""Guards against NaN and infinity: what a broken entry or sum counts as."""

from __future__ import annotations

import tensorflow as tf


def magnitudes(weights: tf.Tensor) -> tf.Tensor:
    """|w|, and 0 for entries that are not finite, so that one broken weight does not set the scale of all others."""
    magnitude = tf.abs(weights)
    # One comparison for both: NaN is not less than anything.
    return tf.math.multiply_no_nan(magnitude, tf.cast(magnitude <= magnitude.dtype.max, magnitude.dtype))


def finite_or_zero(gradient: tf.Tensor) -> tf.Tensor:
    """The gradient of a quantizer's parameter; 0 where it is not finite: NaN cannot enter an interval or a step."""
    return tf.where(tf.math.is_finite(gradient), gradient, 0.0)
