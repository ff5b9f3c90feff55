"""The search for the first interval against a fine brute-force search, on data of the usual shapes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfqil.numerics import interval_search
from tfqil.numerics.grid import activation_levels, weight_levels

SHAPES = {
    "normal": lambda random, size: random.normal(0, 1, size),
    "half-normal": lambda random, size: np.abs(random.normal(0, 1, size)),
    "laplace": lambda random, size: random.laplace(0, 1, size),
    "uniform": lambda random, size: random.uniform(-1, 1, size),
}
# papers.md section 1.7: the optimal upper end for normal data, in units of sigma, by largest code.
OPTIMAL_FOR_NORMAL = {1: 1.224, 3: 1.952, 7: 2.474, 15: 2.899, 31: 3.270, 63: 3.607, 127: 3.921, 255: 4.215}
LEVELS = sorted({weight_levels(b) for b in range(2, 9)} | {activation_levels(b) for b in range(2, 9)})


def squared_error(magnitudes, upper_end, levels):
    step = upper_end / levels
    return np.mean((magnitudes - np.minimum(np.rint(magnitudes / step), levels) * step) ** 2)


def searched(magnitudes, levels):
    largest = tf.constant(magnitudes.max(), tf.float32)
    counts = interval_search.histogram(tf.constant(magnitudes, tf.float32), largest)
    return float(interval_search.best_upper_end(counts, largest, levels=levels))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_within_4_percent_of_the_best_of_a_fine_search(shape, levels):
    magnitudes = np.abs(SHAPES[shape](np.random.default_rng(levels), 20_000))
    found = squared_error(magnitudes, searched(magnitudes, levels), levels)
    candidates = magnitudes.max() * np.linspace(0.02, 1.0, 1500)
    best = min(squared_error(magnitudes, candidate, levels) for candidate in candidates)
    # Candidates are 1.6 % apart and bins 0.1 % of the largest entry. The error is flat around its minimum, but ripples
    # with the step at many levels, where it is within 1e-5 of the data's power anyway.
    assert found <= 1.04 * best, f"{found / best:.4f} times the least error"


@pytest.mark.parametrize(("levels", "sigmas"), OPTIMAL_FOR_NORMAL.items())
def test_the_upper_end_for_normal_data_is_the_published_one(levels, sigmas):
    magnitudes = np.abs(np.random.default_rng(0).normal(0, 0.37, 400_000))
    # Candidates are 1.6 % apart, and at many levels the minimum is flat and the sample has few entries out there.
    assert searched(magnitudes, levels) / 0.37 == pytest.approx(sigmas, rel=0.02 if levels < 100 else 0.05)


def test_channels_are_searched_by_themselves():
    random = np.random.default_rng(0)
    data = np.abs(random.normal(size=(3, 3, 20, 4)) * [0.01, 1.0, 7.0, 300.0]).astype(np.float32)
    largest = tf.constant(data.max(axis=(0, 1, 2)))
    counts = interval_search.histogram(tf.constant(data), largest)
    assert counts.shape == (4, interval_search.BINS) and np.all(counts.numpy().sum(-1) == 180)
    found = interval_search.best_upper_end(counts, largest, levels=7).numpy()
    np.testing.assert_allclose(found, [searched(data[..., c], 7) for c in range(4)], rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_extreme_data_give_a_finite_upper_end(value):
    magnitudes = np.full(50, value, np.float32)
    found = searched(magnitudes, 7)
    assert np.isfinite(found) and 0 <= found <= max(value * 1.001, 0)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_compiled_results_are_the_eager_ones(jit):
    magnitudes = tf.constant(np.abs(np.random.default_rng(0).normal(size=(50, 6))).astype(np.float32))
    largest = tf.reduce_max(magnitudes, 0)

    def run(magnitudes, largest):
        counts = interval_search.histogram(magnitudes, largest)
        return counts, interval_search.best_upper_end(counts, largest, levels=3)

    for eager, compiled in zip(
        run(magnitudes, largest), tf.function(run, jit_compile=jit)(magnitudes, largest), strict=True
    ):
        np.testing.assert_array_equal(compiled, eager)


def test_what_is_no_number_counts_as_nothing():
    counts = interval_search.histogram(tf.constant([np.nan, 0.5, 1.0, np.inf]), tf.constant(1.0))
    expected = np.zeros(interval_search.BINS)
    expected[[0, interval_search.BINS // 2]] = 1
    expected[-1] = 2
    np.testing.assert_array_equal(counts, expected)
