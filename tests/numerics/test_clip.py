"""Clipping in one pass, by scalars and by vectors, and zeros where a condition does not hold."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfqil.numerics.clip import clip
from tfqil.numerics.finite import zero_unless

VALUES = np.array([[-np.inf, -1.5, 0.25], [np.nan, 7.0, np.inf]])


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
@pytest.mark.parametrize(("lowest", "highest"), [(-1.0, 0.5), ([-1.0, -2.0, 0.0], [1.0, 4.0, 0.125])])
def test_values_are_clipped_and_nan_stays(lowest, highest, dtype, jit):
    run = tf.function(lambda values: clip(values, lowest, highest), jit_compile=jit)
    clipped = run(tf.constant(VALUES, dtype))
    assert clipped.dtype == dtype
    np.testing.assert_array_equal(tf.cast(clipped, tf.float64), np.clip(VALUES, lowest, highest))


def test_scalars_clip_in_one_operator():
    graph = tf.function(lambda values: clip(values, -1.0, 1.0)).get_concrete_function(tf.TensorSpec([None])).graph
    kinds = {operation.type for operation in graph.get_operations()}
    assert "ClipByValue" in kinds and not kinds & {"Minimum", "Maximum"}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
def test_what_is_not_finite_becomes_0_where_the_condition_does_not_hold(dtype, jit):
    condition = np.array([[False, True, False], [False, False, True]])
    run = tf.function(lambda values: zero_unless(condition, values), jit_compile=jit)
    kept = run(tf.constant(VALUES, dtype))
    assert kept.dtype == dtype
    np.testing.assert_array_equal(tf.cast(kept, tf.float64), np.where(condition, VALUES, 0.0))
