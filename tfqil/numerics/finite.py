"""Guards against NaN and infinity: what a broken entry or sum counts as."""

from __future__ import annotations

import tensorflow as tf


def magnitudes(weights: tf.Tensor) -> tf.Tensor:
    """|w|, and 0 for entries that are not finite, so that one broken weight does not set the scale of all others."""
    magnitude = tf.abs(weights)
    # One comparison for both: NaN is not less than anything.
    return zero_unless(magnitude <= magnitude.dtype.max, magnitude)


def zero_unless(condition: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """The values where a condition holds, and 0 elsewhere, whatever they are there.

    Gradient: not for use; it is a part of others. Shapes: both the same.
    """
    if values.dtype == tf.bfloat16:  # GPUs have no kernel of the other for it.
        return tf.where(condition, values, tf.zeros_like(values))
    # A product makes NaN of 0 times infinity, and a selection between a tensor and a scalar takes longer than this.
    return tf.math.multiply_no_nan(values, tf.cast(condition, values.dtype))


def finite_or_zero(gradient: tf.Tensor) -> tf.Tensor:
    """The gradient of a quantizer's parameter; 0 where it is not finite: NaN cannot enter an interval or a step."""
    return tf.where(tf.math.is_finite(gradient), gradient, 0.0)
