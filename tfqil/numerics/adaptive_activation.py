"""Activations with a learned resolution: the quantized ReLU of blended coarse gradient descent.

Symbols: alpha step, L = 2^bits - 1 the largest code.
Reference: Yin et al., "Blended Coarse Gradient Descent for Full Quantization of Deep Neural Networks" (Res. Math. Sci.
2019, arXiv 1808.05240) and the authors' code.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfqil.numerics.clip import clip
from tfqil.numerics.finite import finite_or_zero, zero_unless
from tfqil.numerics.grid import activation_levels
from tfqil.numerics.ste import coarse_gradient, require_known

STEP_GRADIENTS = ("exact", "three_valued", "two_valued")
# The step that rounds |N(0, 1)| to nearest with the least squared error, by bits. Derived; the authors' code has
# 1.2221, 0.6511 and 0.1946 for 1, 2 and 4 bits.
_HALF_NORMAL_STEP = {1: 1.2240, 2: 0.6508, 3: 0.3534, 4: 0.1932, 5: 0.1055, 6: 0.0573, 7: 0.0309, 8: 0.0165}


def quantize(
    inputs: tf.Tensor,
    step: tf.Tensor,
    *,
    bits: int,
    ste: str = "clipped_relu",
    step_gradient: str = "three_valued",
    to_nearest: bool = False,
) -> tf.Tensor:
    """Rounds the positive part of a tensor up to the next of L equal levels.

    Forward: alpha clip(ceil(x / alpha), 0, L); `to_nearest` alpha clip(round(x / alpha), 0, L). The first is the second
        for x + alpha / 2, but for ties: on the grid its lower end is -alpha / 2.
    Gradient in x: the coarse derivative `ste`: identity 1; relu 1{x > 0}; clipped_relu 1{0 < x <= L alpha}.
    Gradient in alpha, summed over entries (0 for x <= 0; a sum that is not finite counts as 0):
                         0 < x <= L alpha     x > L alpha
        exact            the code             L
        three_valued     2^(bits-1)           L
        two_valued       0                    L
    Shapes and units: inputs any, step a positive scalar in their units.
    Raises: ValueError if `ste` or `step_gradient` is none of these.
    Reference: BCGD; 2^(bits-1) is the mean code.
    """
    require_known(ste)
    if step_gradient not in STEP_GRADIENTS:
        raise ValueError(
            f"Got step_gradient={step_gradient!r}, expected one of {', '.join(STEP_GRADIENTS)}: choose one."
        )
    levels = float(activation_levels(bits))
    rounding = tf.round if to_nearest else tf.math.ceil

    @tf.custom_gradient
    def quantized(inputs: tf.Tensor, step: tf.Tensor) -> Any:
        codes = clip(rounding(inputs / step), 0.0, levels)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            upper = levels * step
            passed = coarse_gradient(upstream, inputs, upper, ste)
            if step_gradient == "exact":
                return passed, finite_or_zero(tf.reduce_sum(upstream * codes))
            with tf.control_dependencies([upstream]):
                is_above = inputs > upper
            total = levels * tf.reduce_sum(zero_unless(is_above, upstream))
            if step_gradient == "three_valued":
                inside = passed if ste == "clipped_relu" else coarse_gradient(upstream, inputs, upper)
                total += 2.0 ** (bits - 1) * tf.reduce_sum(inside)
            return passed, finite_or_zero(total)

        return codes * step, gradient

    result: tf.Tensor = quantized(inputs, step)
    return result


def half_normal_step(root_mean_square: tf.Tensor, *, bits: int) -> tf.Tensor:
    """The step to start from, for inputs whose positive part is half-normal.

    Forward: A_bits times the root mean square of the strictly positive inputs. Shapes: scalars.
    """
    return _HALF_NORMAL_STEP[bits] * root_mean_square
