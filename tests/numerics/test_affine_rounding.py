"""Rounding in one operator gives what quotient, rounding and product give one by one."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfqil.numerics import affine

STEPS = [1e-5 / 255, 0.25, 0.1, 3.0]


def rounded(inputs: np.ndarray, step: float, bits: int, mode: str) -> np.ndarray:
    """The result of eager execution, of a graph, or of XLA."""

    def compute(values: tf.Tensor) -> tf.Tensor:
        return affine.rounded_to_steps(values, tf.constant(np.float32(step)), bits=bits)

    run = compute if mode == "eager" else tf.function(compute, jit_compile=mode == "xla")
    return run(tf.constant(inputs, tf.float32)).numpy()


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("step", STEPS)
def test_every_level_is_one_product_and_ties_go_to_even(step, bits, mode):
    step = np.float32(step)
    codes = np.arange(-(2**bits) + 1, 2**bits, dtype=np.float32)
    np.testing.assert_array_equal(rounded(codes * step, step, bits, mode), codes * step)
    # Well away from ties, both sides.
    for part in (-0.49, 0.49):
        np.testing.assert_array_equal(rounded((codes[1:-1] + part) * step, step, bits, mode), codes[1:-1] * step)
    if float(step) == 0.25:  # Where ties are numbers.
        ties = codes[1:-1] + np.float32(0.5)
        np.testing.assert_array_equal(rounded(ties * step, step, bits, mode), np.round(ties) * step)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_nan_stays_nan_and_infinity_is_the_last_level(mode):
    values = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    found = rounded(values, 0.25, 4, mode)
    assert np.isnan(found[0])
    np.testing.assert_array_equal(found[1:], [15 * 0.25, -16 * 0.25, 1.0])


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("zero", [0.0, 100.0, 255.0])
def test_a_grid_with_a_zero_is_that_of_its_formula(zero, mode):
    step = np.float32(0.1)
    values = np.random.default_rng(0).uniform(-40, 40, 10_000).astype(np.float32)

    def compute(inputs: tf.Tensor) -> tf.Tensor:
        return affine.quantize_affine(inputs, tf.constant(step), tf.constant(zero), bits=8)

    run = compute if mode == "eager" else tf.function(compute, jit_compile=mode == "xla")
    found = run(tf.constant(values)).numpy()
    quotient = values.astype(np.float64) / step
    expected = np.clip(np.round(quotient), -zero, 255 - zero)
    clear = np.abs(quotient - np.floor(quotient) - 0.5) > 1e-4  # No tie within the precision of float32.
    np.testing.assert_array_equal(found[clear], (expected.astype(np.float32) * step)[clear])
