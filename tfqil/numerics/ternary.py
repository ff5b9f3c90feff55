"""Ternary weights with a real scale, exactly.

Reference: the least-squares problem of BinaryRelax (arXiv 1801.06313) and BCGD (arXiv 1808.05240) for ternary weights;
the authors' code solves it with the threshold 0.7 mean|w|, this is the exact solution.
"""

from __future__ import annotations

import tensorflow as tf

from tfqil.numerics.finite import magnitudes


def project(weights: tf.Tensor, channel_rank: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The codes Q in {-1, 0, 1} and the scale a >= 0 that minimise ||w - a Q||^2, in O(N log N).

    Forward: with S_k the sum of the k largest magnitudes, k* = argmax S_k^2 / k; Q = sign(w) on the k* largest, 0
        elsewhere; a = S_k* / k*. Entries that are not finite count as 0 in the sums; infinite ones are kept, NaN is
        not.
    Gradient: none here; the quantizers pass it straight through.
    Shapes and units: codes as weights; the scale has their last `channel_rank` axes, in their units.
    """
    axes = list(range(weights.shape.rank - channel_rank))
    channels = weights.shape[len(axes) :]
    magnitude = magnitudes(weights)
    descending = tf.sort(tf.reshape(magnitude, [-1, channels.num_elements()]), axis=0, direction="DESCENDING")
    # float64, since a float32 sum of a million terms is too coarse to compare neighbours; S / sqrt(k) cannot overflow.
    sums = tf.cumsum(tf.cast(descending, tf.float64), axis=0)
    counts = tf.cast(tf.range(1, descending.shape[0] + 1), tf.float64)[:, None]
    best = tf.argmax(sums / tf.sqrt(counts), axis=0)
    smallest_kept = tf.gather(tf.transpose(descending), best, batch_dims=1)
    kept = (magnitude >= tf.reshape(smallest_kept, channels)) & (magnitude > 0)
    total = tf.reduce_sum(tf.where(kept, magnitude, tf.zeros_like(magnitude)), axis=axes)
    scale = tf.math.divide_no_nan(total, tf.reduce_sum(tf.cast(kept, magnitude.dtype), axis=axes))
    beyond = tf.math.is_inf(weights)
    return tf.where(kept | beyond, tf.sign(weights), tf.zeros_like(weights)), scale
