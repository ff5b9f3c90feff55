"""Clipping in one pass."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def clip(values: tf.Tensor, lowest: Any, highest: Any) -> tf.Tensor:
    """Clips to [lowest, highest]; NaN stays.

    Forward: max(min(x, highest), lowest). Gradient: not for use; it is a part of others.
    Shapes: values any; the ends scalars or the last axes of values.
    """
    lowest, highest = (tf.convert_to_tensor(end, values.dtype) for end in (lowest, highest))
    if lowest.shape.rank == highest.shape.rank == 0:  # In one pass; the operator takes no vectors.
        return tf.raw_ops.ClipByValue(t=values, clip_value_min=lowest, clip_value_max=highest)
    return tf.clip_by_value(values, lowest, highest)
