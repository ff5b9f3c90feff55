"""Uniform quantization by range: steps, zero points, rounding and gradients."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tfqil.numerics import affine

BITS = range(2, 9)
quick = hypothesis.settings(max_examples=80, deadline=None)
ends = st.floats(-1000, 1000, width=32, allow_subnormal=False)


@quick
@hypothesis.given(ends, ends, st.sampled_from(BITS))
def test_a_range_grid_contains_0_and_reaches_the_ends_to_half_a_step(a, b, bits):
    low, high = min(a, b), max(a, b)
    step, zero = (float(v) for v in affine.range_step_and_zero(tf.constant(low), tf.constant(high), bits=bits))
    levels = 2**bits - 1
    assert step > 0 and zero == round(zero) and 0 <= zero <= levels
    half = step * (0.5 + 1e-4)  # The quotient that is rounded is a float32.
    if high - low > affine.SMALLEST_RANGE:
        assert -zero * step <= min(low, 0) + half and (levels - zero) * step >= max(high, 0) - half


@pytest.mark.parametrize("bits", BITS)
def test_every_level_of_every_zero_point_is_kept(bits):
    levels = 2**bits - 1
    step = np.float32(0.0371)
    for zero in range(0, levels + 1, max(1, levels // 15)):
        values = step * np.arange(-zero, levels - zero + 1, dtype=np.float32)
        kept = affine.quantize_affine(tf.constant(values), tf.constant(step), tf.constant(float(zero)), bits=bits)
        np.testing.assert_array_equal(kept, values)


def test_ties_go_to_even_and_what_lies_outside_is_clipped_without_a_gradient():
    x = tf.constant([-9.0, -2.6, -2.4, -0.5, 0.5, 1.5, 2.5, 13.4, 13.6, 99.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = affine.quantize_affine(x, tf.constant(1.0), tf.constant(2.0), bits=4)
    np.testing.assert_array_equal(y, [-2, -2, -2, 0, 0, 2, 2, 13, 13, 13])
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 0, 1, 1, 1, 1, 1, 1, 0, 0])


@quick
@hypothesis.given(
    st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=1, max_size=30), st.sampled_from(BITS)
)
def test_the_round_trip_error_is_at_most_half_a_step_inside_the_range(values, bits):
    x = tf.constant(values, tf.float32)
    step, zero = affine.range_step_and_zero(tf.reduce_min(x), tf.reduce_max(x), bits=bits)
    error = np.abs(affine.quantize_affine(x, step, zero, bits=bits).numpy() - x.numpy())
    # Nudging the zero point to an integer moves the ends by up to half a step more.
    assert error.max() <= float(step) * (1 + 1e-4), f"{(error > float(step)).sum()} of {error.size} exceed a step"


@pytest.mark.parametrize(
    ("shape", "rank", "expected"), [((3, 3, 2, 5), 1, (5,)), ((3, 3, 2, 5), 2, (2, 5)), ((4, 5), 0, ())]
)
def test_largest_magnitudes_are_taken_per_channel(shape, rank, expected):
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    step = affine.largest_magnitude_step(tf.constant(weights), rank, bits=4)
    axes = tuple(range(len(shape) - rank))
    assert step.shape == expected
    # One rounding of the reciprocal, one of the product.
    np.testing.assert_allclose(step, np.abs(weights).max(axis=axes) / 7, rtol=2e-7)


def test_steps_of_zeros_and_of_empty_ranges_are_positive():
    assert np.all(affine.largest_magnitude_step(tf.zeros((3, 2)), 1, bits=8).numpy() > 0)
    step, zero = affine.range_step_and_zero(tf.constant(0.0), tf.constant(0.0), bits=8)
    assert step > 0 and zero == 0


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_compiled_results_are_the_eager_ones(jit):
    x = tf.constant(np.random.default_rng(0).normal(size=300).astype(np.float32))

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = affine.quantize_affine(x, tf.constant(0.1), tf.constant(7.0), bits=4)
        return y, tape.gradient(y, x)

    for eager, compiled in zip(run(x), tf.function(run, jit_compile=jit)(x), strict=True):
        np.testing.assert_array_equal(compiled, eager)
