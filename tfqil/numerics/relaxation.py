"""Weights between their float values and their quantization: BinaryRelax and blended descent.

References: Yin et al., "BinaryRelax: A Relaxation Approach for Training Deep Neural Networks with Quantized Weights"
(SIAM J. Imaging Sci. 2018, arXiv 1801.06313); Yin et al., "Blended Coarse Gradient Descent for Full Quantization of
Deep Neural Networks" (Res. Math. Sci. 2019, arXiv 1808.05240).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def relax(weights: tf.Tensor, quantized: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """The minimiser of 1/2 ||x - w||^2 + lambda/2 dist(x, Q)^2: between the weights and their projection.

    Forward: x = (w + lambda P(w)) / (1 + lambda), and P(w) itself, bit for bit, for an infinite lambda (phase II).
    Gradient: with theta = lambda / (1 + lambda), 1 - theta in w and theta in P(w). A projection that passes its own
    gradient straight through thus hands the gradient at x to w unchanged, as the paper's training does; learned
    intervals in P get theta times theirs.
    Shapes and units: weights and quantized alike; lambda a scalar >= 0, or infinite of either sign.
    Reference: BinaryRelax, phases I and II.
    """
    exact = tf.math.is_inf(strength)
    # The branch that is not taken must be finite too: infinity / infinity is not.
    finite = tf.where(exact, tf.zeros_like(strength), strength)
    blended = blend(weights, quantized, tf.cast(finite / (1.0 + finite), weights.dtype))
    # Not a share of 1, which makes NaN of infinite weights.
    return tf.where(exact, quantized, blended)


def blend(weights: tf.Tensor, quantized: tf.Tensor, share: Any) -> tf.Tensor:
    """The weighted average of weights and their quantization.

    Forward: (1 - share) w + share P(w); of finite weights P(w) itself for a share of 1, and w itself for 0.
    Gradient: 1 - share in w, share in P(w).
    Shapes and units: weights and quantized alike; share a scalar in [0, 1].
    Reference: BCGD, the update (1 - rho) w_f + rho w - eta g.
    """
    return (1.0 - share) * weights + share * quantized
