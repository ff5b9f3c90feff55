"""Steps that a file holds exactly: float32 numbers of 16 significant bits.

A converter computes the step of a grid from the ends of its range, which are float32 too. Products of such a step and
an integer of up to 8 bits are exact, and so is the quotient of the range and the number of steps.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

_DROPPED_BITS = 8


def storable(steps: Any) -> tf.Tensor:
    """The nearest float32 with 16 significant bits, at most 2^-17 of the step away; positive steps of any shape."""
    bits = tf.bitcast(tf.cast(steps, tf.float32), tf.int32)
    rounded = bits + (1 << (_DROPPED_BITS - 1))
    return tf.bitcast(tf.bitwise.bitwise_and(rounded, -(1 << _DROPPED_BITS)), tf.float32)
