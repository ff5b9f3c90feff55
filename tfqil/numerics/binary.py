"""Binary weights: the nearest multiple of a sign pattern.

Reference: the projection that BinaryRelax (Yin et al., SIAM J. Imaging Sci. 2018, arXiv 1801.06313) and BCGD (Yin et
al., Res. Math. Sci. 2019, arXiv 1808.05240) use for 1-bit weights.
"""

from __future__ import annotations

import tensorflow as tf

from tfqil.numerics.finite import magnitudes


def project(weights: tf.Tensor, channel_rank: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The codes Q in {-1, 1} and the scale a that minimise ||w - a Q||^2.

    Forward: Q = sign(w) with sign(0) = 1, a = mean|w|. Entries that are not finite count as 0 in the mean;
        NaN gets the code 1.
    Gradient: none here; the quantizers pass it straight through.
    Shapes and units: codes as weights; the scale has their last `channel_rank` axes, in their units.
    """
    scale = tf.reduce_mean(magnitudes(weights), axis=list(range(weights.shape.rank - channel_rank)))
    return 1.0 - 2.0 * tf.cast(weights < 0, weights.dtype), scale
