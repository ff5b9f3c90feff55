"""Straight-through estimators: forward values and the gradients they pass on."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfqil.numerics import ste

X = np.float32([-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.0, 2.5, 7.4])


def gradient(function, *parameters):
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        output = function(*parameters)
    return tape.gradient(output, parameters, output_gradients=tf.constant(3.0, shape=output.shape))


def test_rounding_goes_to_even_and_passes_the_gradient_on():
    x = tf.constant(X)
    np.testing.assert_array_equal(ste.round_straight_through(x), [-2, -2, 0, 0, 0, 2, 2, 2, 7])
    np.testing.assert_array_equal(gradient(ste.round_straight_through, x)[0], np.full(X.shape, 3.0))


def test_a_replaced_forward_has_the_value_of_one_tensor_and_the_gradient_of_the_other():
    x, value = tf.constant(X), tf.constant(X[::-1].copy())
    np.testing.assert_array_equal(ste.replace_forward(x, value), value)
    to_x, to_value = gradient(ste.replace_forward, x, value)
    np.testing.assert_array_equal(to_x, np.full(X.shape, 3.0))
    assert to_value is None


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "xla"])
@pytest.mark.parametrize(
    ("upstream", "passed"),
    [(0.0, 0.0), (30.0, 0.3), (-99.0, -0.99), (100.0, 1.0), (-1e30, -1.0), (np.inf, 1.0), (-np.inf, -1.0)],
)
def test_a_scaled_gradient_is_multiplied_and_then_clipped(upstream, passed, jit):
    @tf.function(jit_compile=jit)
    def run(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = ste.scale_gradient(x, 0.01, limit=1.0)
        return output, tape.gradient(output, x, output_gradients=upstream)

    output, gradient = run(tf.constant(X), tf.constant(upstream, shape=X.shape))
    np.testing.assert_array_equal(output, X)
    np.testing.assert_allclose(gradient, np.full(X.shape, passed), rtol=1e-7)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("identity", [1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("relu", [0, 0, 0, 0, 1, 1, 1, 1, 1]),
        ("clipped_relu", [0, 0, 0, 0, 1, 1, 1, 0, 0]),
    ],
)
def test_a_coarse_gradient_passes_the_upstream_one_inside_its_interval(kind, expected):
    assert set(ste.COARSE_DERIVATIVES) == {"identity", "relu", "clipped_relu"}
    upstream = np.arange(1, 10, dtype=np.float32) - 4.5
    np.testing.assert_array_equal(
        ste.coarse_gradient(tf.constant(upstream), tf.constant(X), tf.constant(2.0), kind), upstream * expected
    )


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "xla"])
@pytest.mark.parametrize("upper", [1e-30, 0.1, 1.0, 6.0, 1e30])
def test_the_ends_of_the_interval_are_exact(upper, jit):
    upper = np.float32(upper)
    x = np.float32(
        [-1, 0, np.nextafter(np.float32(0), 1) * 2**24, np.nextafter(upper, 0), upper, np.nextafter(upper, 9e30)]
    )
    run = tf.function(lambda x: ste.coarse_gradient(tf.ones_like(x), x, tf.constant(upper)), jit_compile=jit)
    np.testing.assert_array_equal(run(tf.constant(x)), [0, 0, 1, 1, 1, 0])


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "xla"])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
def test_what_is_outside_counts_as_nothing_whatever_arrives_there(dtype, jit):
    x = tf.constant([-1.0, 0.0, 0.5, 1.5, 2.5], dtype)
    upstream = tf.constant([np.inf, np.nan, -2.0, np.inf, np.nan], dtype)
    run = tf.function(lambda upstream, x: ste.coarse_gradient(upstream, x, tf.constant(2.0, dtype)), jit_compile=jit)
    np.testing.assert_array_equal(tf.cast(run(upstream, x), tf.float32), [0, 0, -2, np.inf, 0])


def test_an_unknown_coarse_derivative_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="Got the estimator 'tanh', expected one of identity, relu, clipped_relu"):
        ste.coarse_gradient(tf.constant(X), tf.constant(X), 2.0, "tanh")
