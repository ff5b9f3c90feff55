"""Weights on equal levels with a fitted scale: the family of BCGD and BinaryRelax from 3 bits on.

Reference: the authors' code of BCGD (Yin et al., Res. Math. Sci. 2019, arXiv 1808.05240) for 4 bits; other widths
follow the same rule.
"""

from __future__ import annotations

import tensorflow as tf

from tfqil.numerics.clip import clip
from tfqil.numerics.finite import magnitudes
from tfqil.numerics.grid import weight_levels


def project(weights: tf.Tensor, channel_rank: int, *, bits: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Codes of equal bins up to the largest magnitude, and the scale that fits them best.

    Forward: with q = 2^(bits-1) - 1 and delta = max|w| / (2 q + 1), |code| = k for (2 k - 1) delta < |w| <= (2 k + 1)
    delta, at most q; scale = <|w|, |code|> / <code, code>. At 4 bits delta = max|w| / 15, codes -7 .. 7.
        Entries that are not finite count as 0 in maximum and sums; infinite ones get the largest code, NaN gets 0.
    Gradient: none here; the quantizers pass it straight through.
    Shapes and units: codes as weights; the scale has their last `channel_rank` axes, in their units.
    """
    axes = list(range(weights.shape.rank - channel_rank))
    levels = float(weight_levels(bits))
    magnitude = magnitudes(weights)
    # In units of two deltas; dividing first keeps the smallest magnitudes from vanishing.
    position = tf.math.divide_no_nan(magnitude, tf.reduce_max(magnitude, axis=axes)) * (levels + 0.5)
    codes = clip(tf.math.ceil(position - 0.5), 0.0, levels)
    fitted = tf.reduce_sum(magnitude * codes, axis=axes)
    scale = tf.math.divide_no_nan(fitted, tf.reduce_sum(codes * codes, axis=axes))
    codes = tf.where(tf.math.is_inf(weights), tf.fill(tf.shape(codes), tf.cast(levels, codes.dtype)), codes)
    return tf.where(weights < 0, -codes, codes), scale
