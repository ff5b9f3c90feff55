"""Guards against NaN and infinity: what a broken entry or sum counts as."""

from __future__ import annotations

import tensorflow as tf


def magnitudes(weights: tf.Tensor) -> tf.Tensor:
    """|w|, and 0 for entries that are not finite, so that one broken weight does not set the scale of all others."""
    magnitude = tf.abs(weights)
    # One pass that only reads tells whether there is such an entry; there hardly ever is.
    found: tf.Tensor = tf.cond(
        tf.math.is_finite(tf.reduce_sum(magnitude)),
        lambda: magnitude,
        lambda: tf.where(tf.math.is_finite(magnitude), magnitude, tf.zeros_like(magnitude)),
    )
    return found


def finite_or_zero(gradient: tf.Tensor) -> tf.Tensor:
    """The gradient of a quantizer's parameter; 0 where it is not finite: NaN cannot enter an interval or a step."""
    return tf.where(tf.math.is_finite(gradient), gradient, 0.0)
