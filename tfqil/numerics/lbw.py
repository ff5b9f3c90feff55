"""Low bit-width weights (LBW-Net): zero or powers of two, so that products become shifts.

Symbols: n the number of powers, s the exponent of the largest level, Q the levels 0, +-2^(1-n), .., +-1/2, +-1.
Reference: Yin, Zhang, Qi, Xin, "Quantization and Training of Low Bit-Width Convolutional Neural Networks for Object
Detection" (LBW-Net, arXiv 1612.06052). The optimum in O(N) for every width is this package's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfqil.numerics.bins import bin_sums
from tfqil.numerics.clip import clip
from tfqil.numerics.finite import magnitudes
from tfqil.numerics.grid import check_bits
from tfqil.numerics.held_once import held_once

# Exponents of the smallest step and the largest level, so that steps and their products with codes are exact and
# positive. A float16 that is not 0 is at least 2^-24; elsewhere three quarters of the step stay a normal float32.
_EXPONENTS = {tf.float16: (-24, 15)}
_EXPONENTS_OF_FLOAT32 = (-125, 127)
# How many exponents of the largest level are tried: as many as 2^32 weights need (`_best_step`).
_CANDIDATES = 34


def powers_of(bits: int, powers: int | None = None) -> int:
    """How many powers of two a width has: n = 2^(bits-2), at most `powers`."""
    count = 2 ** (bits - 2)
    return count if powers is None else min(count, powers)


def check_settings(bits: Any, mu: Any, powers: Any) -> None:
    """Raises one sentence unless `project` can take these settings.

    Raises:
        TypeError: bits is not an integer.
        ValueError: bits is not 2 to 6, mu is not positive and finite or comes with 2 bits, or powers is less than 1.
    """
    check_bits(bits, lowest=2, highest=6)
    if mu is not None:
        is_number = isinstance(mu, (int, float, np.integer, np.floating)) and not isinstance(mu, bool)
        if not (is_number and math.isfinite(mu) and mu > 0):
            raise ValueError(
                f"Got mu={mu!r}, expected a positive finite number or None: give the threshold of the largest level as "
                "a fraction of max|w|, or None for the least-squares optimum."
            )
        if bits == 2:
            raise ValueError(
                f"Got mu={mu!r} with bits=2, expected no mu: leave it out, the least-squares optimum is the paper's "
                "solution at 2 bits."
            )
    if powers is not None and (isinstance(powers, bool) or not isinstance(powers, (int, np.integer)) or powers < 1):
        raise ValueError(
            f"Got powers={powers!r}, expected a whole number from 1 on or None: give how many of the largest powers of "
            "two to keep, or None for all of them."
        )


def project(
    weights: tf.Tensor, channel_rank: int, *, bits: int, mu: float | None = None, powers: int | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """The codes in {0, +-1, +-2, .., +-2^(n-1)} and the step 2^(s+1-n) of weights that are zero or powers of two.

    Forward: codes * step = 2^s Q, n = 2^(bits-2), or `powers` if that is less.
        mu = None: the s and Q that minimise ||w - 2^s Q||^2, in O(N).
        mu a number, M = mu max|w|:
            |Q| = 0 for |w| < M 2^(2-n) / 3,    2^(1-n) from there up to M 2^(2-n),
                  2^(t-n) for M 2^(t-n) <= |w| < M 2^(t+1-n), t = 2 .. n-1,    1 for |w| >= M
            s = floor(log2(4 <w, Q> / (3 ||Q||^2))); Q is not rounded again.
        Entries that are not finite count as 0 in statistics; infinite ones get the largest code, NaN gets 0.
    Gradient: none here; the quantizers pass it straight through.
    Shapes and units: codes as weights; the step has their last `channel_rank` axes, in their units. Both have the type
        of the weights; s is chosen in float32, and the step is kept where it and its products are exact.
    Raises: nothing; `check_settings` does.
    Reference: LBW-Net; that its thresholds are written so is recalled, not confirmed. The solution for mu = None from 3
        bits on is this package's.
    """
    count = powers_of(bits, powers)
    axes = list(range(weights.shape.rank - channel_rank))
    values = tf.cast(weights, tf.float32)
    magnitude = magnitudes(values)
    largest = tf.reduce_max(magnitude, axis=axes)
    unit = _power_below(largest)
    unit = tf.where(unit > 0, unit, tf.ones_like(unit))
    # In units of a power of two next to the largest, nothing overflows, and what vanishes would be rounded to 0.
    scaled = magnitude / unit
    if mu is None:
        step = _representable(_best_step(scaled, channel_rank, count) * unit, weights.dtype, count)
        # Nearest-level rounding is the paper's thresholds at three quarters of the levels.
        codes = _threshold(values, 0.75 * step, count)
    else:
        smallest = min(float(mu), float(tf.float32.max)) * 2.0 ** (1 - count) * (largest / unit)
        codes = _threshold(values / unit, smallest, count)
        counted = _threshold(scaled, smallest, count)
        aligned = tf.reduce_sum(tf.cast(scaled * counted, tf.float64), axis=axes)
        energy = tf.reduce_sum(tf.cast(counted * counted, tf.float64), axis=axes)
        ratio = tf.where(energy > 0, 4.0 * aligned / (3.0 * energy), tf.ones_like(energy))
        step = _representable(tf.cast(_power_below(ratio), tf.float32) * unit, weights.dtype, count)
    return tf.cast(codes, weights.dtype), tf.cast(step, weights.dtype)


def _threshold(values: tf.Tensor, smallest: tf.Tensor, count: int) -> tf.Tensor:
    """The codes of the paper's thresholds smallest * (2/3, 2, 4, .., 2^(n-1)), smallest = M 2^(1-n); NaN gets 0."""
    position = tf.abs(values) / smallest
    powers = _power_below(clip(position, 1.0, 2.0 ** (count - 1)))
    return tf.math.multiply_no_nan(tf.sign(values) * powers, tf.cast(position >= 2.0 / 3.0, powers.dtype))


def _best_step(magnitude: tf.Tensor, channel_rank: int, count: int) -> tf.Tensor:
    """The step of the least-squares optimum for magnitudes whose largest is in [1, 2), or for zeros.

    For a fixed s the nearest level is best, and the thresholds lie at 2^k and 1.5 * 2^k: numbers and sums of the
    magnitudes in half-octaves give the error of every s. What counts is by how much a choice lowers sum w^2:
        gain = sum(2 |w| level - level^2)
    The optimum has 2^s <= 4/3 max|w| and 2^(s+1) > 4/3 mean|w| >= 4/3 max|w| / N, since <|w|, Q> / ||Q||^2 is at least
    mean|w| for Q that grows with |w| and Q^2 <= Q; so about log2(N) exponents are candidates. More are tried, as many
    for every N, so that all kernels share the operators.
    """
    channels = magnitude.shape[magnitude.shape.rank - channel_rank :]
    bins = 256 * channels.num_elements()
    # A float32 in [0, 2) without its last 22 bits, exponent and first bit of the mantissa, is one of 256 half-octaves.
    half_octave = tf.bitwise.right_shift(tf.bitcast(magnitude, tf.int32), 22)
    # `or` instead of a sum: TensorFlow adds int32 on the host even if the tensors are on a GPU.
    segments = tf.bitwise.bitwise_or(half_octave, np.arange(0, bins, 256, dtype=np.int32).reshape(channels))
    numbers = bin_sums(segments, tf.zeros((0,), tf.float64), bins=bins)
    totals = bin_sums(segments, tf.cast(magnitude, tf.float64), bins=bins)
    return tf.reshape(_best_step_of_bins(numbers, totals, count), channels)


@held_once
def _best_step_of_bins(numbers: tf.Tensor, totals: tf.Tensor, count: int) -> tf.Tensor:
    """The optimal step of each slice, by the numbers and sums of magnitudes in the half-octaves below 2.

    Shapes: float64 (256 slices,), those of each slice by growing magnitude; the result float32 (slices,). Magnitudes
        of a half-octave share their exponent, so their sums are exact in any order.
    """
    rows = _CANDIDATES + count
    with_two = tf.pad(tf.reshape(tf.stack([numbers, totals]), [2, -1, 256]), [[0, 0], [0, 0], [0, 1]])
    # For k = 1, 0, -1, .. the magnitudes in [2^k, 1.5 * 2^k) and [0.75 * 2^k, 2^k): (2, slices, rows, 2).
    moments = tf.reverse(tf.reshape(with_two[..., 257 - 2 * rows :], [2, -1, rows, 2]), axis=[2, 3])
    levels = tf.constant(2.0 ** (1.0 - np.arange(rows)), tf.float64)

    def gain(moments: tf.Tensor, levels: tf.Tensor) -> tf.Tensor:
        number, total = tf.unstack(moments)
        return levels * (2.0 * total - levels * number)

    nearest = tf.reduce_sum(moments, axis=-1)
    above = tf.cumsum(nearest, axis=-1, exclusive=True)[..., :_CANDIDATES]
    below = moments[..., count:, 0]
    to_nearest = gain(nearest, levels)
    gains = tf.add_n([to_nearest[:, first : first + _CANDIDATES] for first in range(count)])
    gains += gain(above, levels[:_CANDIDATES]) + gain(below, levels[count - 1 : -1])
    return tf.cast(tf.gather(levels, tf.argmax(gains, axis=-1) + (count - 1)), tf.float32)


def _power_below(values: tf.Tensor) -> tf.Tensor:
    """2^floor(log2 x) of values >= 0, by their exponent bits, which is exact; 0 for 0 and subnormal numbers."""
    integer, exponent_bits = {
        tf.float32: (tf.int32, 0x7F80_0000),
        tf.float64: (tf.int64, 0x7FF0_0000_0000_0000),
    }[values.dtype]
    return tf.bitcast(tf.bitwise.bitwise_and(tf.bitcast(values, integer), exponent_bits), values.dtype)


def _representable(step: tf.Tensor, dtype: tf.DType, count: int) -> tf.Tensor:
    """The step, moved to where it is positive and its product with the largest code is finite."""
    lowest, highest = _EXPONENTS.get(dtype, _EXPONENTS_OF_FLOAT32)
    return tf.clip_by_value(step, 2.0**lowest, 2.0 ** (highest + 1 - count))
