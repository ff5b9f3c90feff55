"""What the integers of a kernel are divided by so that INT8 holds them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

# Codes beyond it do not fit, on a grid that is symmetric.
LARGEST_INT8 = 127


def int8_divisors(codes: Any, channel_rank: int) -> tf.Tensor:
    """The powers of two that each channel's codes are divided by, and its step multiplied by.

    Forward: 2^k, k the smallest with |codes| / 2^k <= 127, if that divides all codes of all channels; else 1 for all,
        since then the kernel does not fit. The smallest, since the step is also the unit of the bias in a file.
    Gradient: none. Shapes: codes float32 of integers below 2^24, any; the result has their last `channel_rank` axes.
    """
    codes = tf.convert_to_tensor(codes)
    largest = tf.reduce_max(tf.abs(codes), axis=list(range(codes.shape.rank - channel_rank)))
    divisors = tf.ones_like(largest)
    limit = float(LARGEST_INT8)
    while limit < 2**24:  # Unrolled: a comparison for each power of two.
        divisors = tf.where(largest > limit, 2.0 * divisors, divisors)
        limit = 2.0 * limit + 1.0
    divides_all = tf.reduce_all(tf.equal(tf.math.floormod(codes, divisors), 0.0))
    return tf.where(divides_all, divisors, tf.ones_like(divisors))
