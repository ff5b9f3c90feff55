"""Uniform quantization by the range of the data: the 8-bit grids of edges and shared tensors.

Symbols: q the largest code, s step, z the code of 0.
Reference: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (CVPR 2018), section 2.1; rounding is half to even, as in XNNPACK.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfqil.numerics.clip import clip
from tfqil.numerics.finite import magnitudes, zero_unless
from tfqil.numerics.grid import activation_levels, weight_levels
from tfqil.numerics.held_once import held_once

# The least range of a tensor: its step stays a normal float32 and within what the runtime's multipliers take.
SMALLEST_RANGE = 1e-5
# How many steps beyond the ends of a grid are rounded to them: less than a half, which may go to the level beyond.
_REACH = 0.499


def largest_magnitude_step(weights: tf.Tensor, channel_rank: int, *, bits: int) -> tf.Tensor:
    """max|w| / q over all axes but the last `channel_rank`; a slice of zeros has the smallest step instead.

    Entries that are not finite count as 0.

    Shapes: weights any; the result has the last `channel_rank` axes of weights.
    """
    axes = list(range(weights.shape.rank - channel_rank)) if channel_rank else None
    largest = tf.reduce_max(magnitudes(weights), axis=axes)
    return tf.maximum(largest, SMALLEST_RANGE) * (1.0 / float(weight_levels(bits)))


def range_step_and_zero(minimum: tf.Tensor, maximum: tf.Tensor, *, bits: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The grid of [minimum, maximum], widened to contain 0 and nudged so that 0 is a level.

    Forward: s = (max - min) / q, z = round(-min / s); z is an integer held as float32.
    """
    return _step_and_zero(minimum, maximum, float(activation_levels(bits)))


@held_once
def _step_and_zero(minimum: tf.Tensor, maximum: tf.Tensor, levels: float) -> tuple[tf.Tensor, tf.Tensor]:
    minimum, maximum = tf.minimum(minimum, 0.0), tf.maximum(maximum, 0.0)
    # A product, since graphs may replace a quotient by it: all modes of execution shall have the same step.
    step = tf.maximum(maximum - minimum, SMALLEST_RANGE) * (1.0 / levels)
    return step, tf.clip_by_value(tf.round(-minimum / step), 0.0, levels)


def rounded_to_steps(inputs: tf.Tensor, step: tf.Tensor, *, bits: int) -> tf.Tensor:
    """Rounds to the nearest multiple of a step, ties to even, in one pass instead of three.

    Forward: s round(x / s) for |x / s| <= 2^bits - 1. Gradient: not for use; it is a part of others.
    Shapes: inputs any, step a positive scalar.
    """
    # Given by the lower end alone, a power of two of steps, the step is exact.
    result: tf.Tensor = tf.quantization.quantize_and_dequantize_v2(
        inputs, -(2.0**bits) * step, 0.0, num_bits=bits + 1, range_given=True, round_mode="HALF_TO_EVEN"
    )
    return result


def quantize_affine(inputs: tf.Tensor, step: tf.Tensor, zero: tf.Tensor, *, bits: int) -> tf.Tensor:
    """Rounds a tensor to the levels s (k - z), k in [0, q].

    Forward: s (clip(round(x / s), -z, q - z)). Gradient: 1 where x is at most 0.499 steps beyond the ends of the
    grid, else 0; none in step and zero. Shapes: inputs any, step and zero scalars.
    """
    lowest, highest = _reach(step, zero, float(activation_levels(bits)))

    @tf.custom_gradient
    def quantize(inputs: tf.Tensor) -> Any:
        clipped = clip(inputs, lowest, highest)
        outputs = rounded_to_steps(clipped, step, bits=bits)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return zero_unless(tf.equal(clipped, inputs), upstream)

        return outputs, gradient

    result: tf.Tensor = quantize(inputs)
    return result


@held_once
def _reach(step: tf.Tensor, zero: tf.Tensor, levels: float) -> tuple[tf.Tensor, tf.Tensor]:
    """The ends of what is rounded to the levels of a grid."""
    return (-zero - _REACH) * step, (levels - zero + _REACH) * step
