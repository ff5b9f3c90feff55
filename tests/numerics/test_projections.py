"""Binary, ternary and uniform weights: golden vectors, independent references, optimality and broken entries."""

from __future__ import annotations

import functools
import itertools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.numerics.golden_vectors import cases, require_expected
from tfqil.numerics import binary, ternary, uniform
from tfqil.numerics.grid import weight_levels

PROJECTIONS = {
    "binary": binary.project,
    "ternary": ternary.project,
    "uniform4": functools.partial(uniform.project, bits=4),
}
LARGEST_CODE = {"binary": 1, "ternary": 1, "uniform4": 7}
GOLDEN = [pytest.param(name, case, id=f"{name} {case['name']}") for name in PROJECTIONS for case in cases(name)]
GRIDS = [case for case in cases("integer_grids") if case["inputs"]["method"] in PROJECTIONS]

quick = hypothesis.settings(max_examples=60, deadline=None)
each_projection = pytest.mark.parametrize("name", PROJECTIONS)
# Multiples of 1/64, so that there are ties and zeros, and sums of 40 of them are exact in float32.
arrays = hypothesis.extra.numpy.arrays(
    np.float32, st.integers(1, 40), elements=st.integers(-800, 800).map(lambda number: number / 64)
)


def projected(name: str, weights: np.ndarray, channel_rank: int = 0) -> tuple[np.ndarray, np.ndarray]:
    codes, scale = PROJECTIONS[name](tf.constant(weights), channel_rank)
    return codes.numpy(), scale.numpy()


def squared_error(weights: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """In float64, one for each entry of `scale`."""
    axes = tuple(range(weights.ndim - scale.ndim))
    return ((weights.astype(np.float64) - codes * scale.astype(np.float64)) ** 2).sum(axis=axes)


@functools.cache
def compiled(name: str, channel_rank: int, run: str):
    """One function for all cases, so that weights of the same shape share a graph."""
    project = functools.partial(PROJECTIONS[name], channel_rank=channel_rank)
    return project if run == "eager" else tf.function(project, jit_compile=run == "xla")


@pytest.mark.parametrize("run", ["eager", "graph", "xla"])
@pytest.mark.parametrize(("name", "case"), GOLDEN)
def test_codes_and_scales_are_the_golden_ones(name, case, run):
    weights = np.float32(case["inputs"]["w"])
    project = compiled(name, int(case["inputs"]["per_channel"]), run)
    codes, scale = (tensor.numpy() for tensor in project(tf.constant(weights)))
    error = squared_error(weights, codes, scale)
    require_expected(case, {"integers": codes, "scale": scale, "output": codes * scale, "squared_error": error})


@pytest.mark.parametrize("case", GRIDS, ids=lambda case: case["name"])
def test_weights_on_the_whole_grid_stay_where_they_are(case):
    scale = np.float32(case["inputs"]["scale"])
    weights = np.float32(case["expected"]["integers"]) * scale
    codes, fitted = projected(case["inputs"]["method"], weights)
    require_expected(case, {"integers": codes, "scale": fitted, "values": codes * fitted})


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_binary_is_the_best_of_all_sign_patterns_and_real_scales(size):
    patterns = np.array(list(itertools.product([-1, 1], repeat=size)))
    weights = np.random.default_rng(size).laplace(size=(size, 100)).astype(np.float32)
    # The best real scale of a pattern Q is <w, Q> / N, and takes <w, Q>^2 / N off ||w||^2.
    best = (weights.astype(np.float64) ** 2).sum(0) - ((patterns @ weights.astype(np.float64)) ** 2 / size).max(0)
    error = squared_error(weights, *projected("binary", weights, channel_rank=1))
    # What float32 makes of the scale changes the error by the square of its rounding only.
    assert np.all(error <= best + 1e-12 * (weights**2).sum(0))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ternary_is_the_best_of_all_codes_and_real_scales(size):
    patterns = np.array(list(itertools.product([-1, 0, 1], repeat=size)))
    kept = np.maximum(np.abs(patterns).sum(axis=1, keepdims=True), 1)
    weights = np.random.default_rng(size).laplace(size=(size, 200)).astype(np.float32)
    aligned = np.maximum(patterns @ weights.astype(np.float64), 0)  # a >= 0
    best = (weights.astype(np.float64) ** 2).sum(0) - (aligned**2 / kept).max(0)
    error = squared_error(weights, *projected("ternary", weights, channel_rank=1))
    assert np.all(error <= best + 1e-12 * (weights**2).sum(0))


def test_ternary_is_the_best_threshold_of_a_large_kernel():
    weights = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
    descending = np.sort(np.abs(weights.astype(np.float64)))[::-1]
    gain = (np.cumsum(descending) ** 2 / np.arange(1, weights.size + 1)).max()
    best = (weights.astype(np.float64) ** 2).sum() - gain
    codes, scale = projected("ternary", weights)
    assert squared_error(weights, codes, scale) == pytest.approx(best, rel=1e-9)
    # Normal weights (derived): threshold 0.612 sigma, scale 1.224 sigma; the sample has 300,000 entries.
    assert np.abs(weights[codes == 0]).max() == pytest.approx(0.612, rel=0.01) and scale == pytest.approx(
        1.224, rel=0.01
    )


@pytest.mark.parametrize("bits", range(2, 9))
def test_uniform_codes_are_those_of_the_bins_and_the_scale_fits_them(bits):
    weights = np.random.default_rng(bits).normal(size=2000).astype(np.float32)
    levels = weight_levels(bits)
    delta = np.abs(weights).max().astype(np.float64) / (2 * levels + 1)
    # The bins are open below and closed above, and float32 is off by less than 1e-6 of their position.
    edges = (2 * np.arange(1, levels + 1) - 1) * delta
    away = np.abs(np.abs(weights)[:, None] - edges).min(axis=1) > 1e-6 * edges[-1]
    codes, scale = (tensor.numpy() for tensor in uniform.project(tf.constant(weights), 0, bits=bits))
    expected = np.sign(weights) * np.searchsorted(edges, np.abs(weights).astype(np.float64), side="left")
    np.testing.assert_array_equal(codes[away], expected[away])
    assert away.mean() > 0.99 and np.abs(codes).max() == levels
    errors = [squared_error(weights, codes, scale * np.float64(factor)) for factor in (1, 0.999, 1.001)]
    assert errors[0] < min(errors[1:])


@pytest.mark.parametrize(("shape", "channel_rank"), [((3, 3, 4, 5), 1), ((7, 5), 1), ((3, 3, 4, 2), 2), ((6, 5), 2)])
@each_projection
def test_every_channel_is_projected_by_itself(name, shape, channel_rank):
    random = np.random.default_rng(0)
    channels = shape[len(shape) - channel_rank :]
    weights = (random.normal(size=shape) * random.uniform(0.01, 100, channels)).astype(np.float32)
    codes, scale = projected(name, weights, channel_rank)
    assert scale.shape == channels and codes.shape == shape
    for index in np.ndindex(channels):
        alone, alone_scale = projected(name, weights[(..., *index)])
        np.testing.assert_array_equal(codes[(..., *index)], alone)
        # Sums of up to 36 float32 terms in another order.
        np.testing.assert_allclose(scale[index], alone_scale, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, -0.0])
@each_projection
def test_zeros_have_scale_0_and_codes_of_zero_or_plus_one(name, value):
    weights = np.full((4, 3), value, np.float32)
    for channel_rank in (0, 1):
        codes, scale = projected(name, weights, channel_rank)
        np.testing.assert_array_equal(codes, 1 if name == "binary" else 0)
        np.testing.assert_array_equal(scale, 0)


@each_projection
def test_a_channel_of_zeros_leaves_the_others_alone(name):
    weights = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    before = projected(name, weights, 1)
    weights[:, 1] = 0
    codes, scale = projected(name, weights, 1)
    np.testing.assert_array_equal(codes[:, ::2], before[0][:, ::2])
    np.testing.assert_array_equal(scale, [before[1][0], 0, before[1][2]])


@pytest.mark.parametrize("channel_rank", [0, 1])
@each_projection
def test_broken_entries_count_as_0_and_get_the_code_of_their_sign(name, channel_rank):
    weights = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    weights[3, 0], weights[7, 1], weights[11, 2] = np.nan, np.inf, -np.inf
    codes, scale = projected(name, weights, channel_rank)
    as_zeros, scale_as_zeros = projected(name, np.nan_to_num(weights, nan=0, posinf=0, neginf=0), channel_rank)
    finite = np.isfinite(weights)
    np.testing.assert_array_equal(codes[finite], as_zeros[finite])
    np.testing.assert_array_equal(scale, scale_as_zeros)
    assert codes[3, 0] == (1 if name == "binary" else 0)
    assert codes[7, 1] == LARGEST_CODE[name] == -codes[11, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@each_projection
def test_nothing_but_broken_entries_has_scale_0_and_finite_codes(name, value):
    codes, scale = projected(name, np.full((4, 3), value, np.float32))
    assert np.all(np.isfinite(codes)) and scale == 0


@each_projection
@quick
@hypothesis.given(arrays, st.integers(-100, 100))
def test_powers_of_two_change_the_scale_only(name, weights, exponent):
    """From 2^-100 = 8e-31 to 2^100 = 1e30; float32 computes with powers of two exactly."""
    factor = np.float32(2.0**exponent)
    codes, scale = projected(name, weights)
    other_codes, other_scale = projected(name, weights * factor)
    np.testing.assert_array_equal(other_codes, codes)
    np.testing.assert_array_equal(other_scale, scale * factor)


@each_projection
@quick
@hypothesis.given(arrays)
def test_negative_weights_have_negative_codes_and_the_same_scale(name, weights):
    codes, scale = projected(name, weights)
    other_codes, other_scale = projected(name, -weights)
    np.testing.assert_array_equal(other_codes, np.where(weights == 0, codes, -codes))
    np.testing.assert_array_equal(other_scale, scale)


@each_projection
@quick
@hypothesis.given(arrays)
def test_projecting_twice_is_projecting_once(name, weights):
    codes, scale = projected(name, weights)
    again, scale_again = projected(name, codes * scale)
    np.testing.assert_array_equal(again, codes if scale > 0 else again)
    # The mean of up to 40 equal float32 numbers.
    np.testing.assert_allclose(scale_again, scale, rtol=1e-6)


@each_projection
@quick
@hypothesis.given(arrays)
def test_codes_are_integers_in_range_that_grow_with_the_weights(name, weights):
    codes, scale = projected(name, np.sort(weights))
    assert np.all(np.diff(codes) >= 0) and scale >= 0 and np.isfinite(scale)
    assert np.all(codes == np.rint(codes)) and np.abs(codes).max() <= LARGEST_CODE[name]


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("channel_rank", [0, 1, 2])
@each_projection
def test_compiled_results_are_the_eager_ones(name, channel_rank, jit):
    weights = tf.constant(np.random.default_rng(0).normal(size=(3, 3, 10, 6)).astype(np.float32))
    project = functools.partial(PROJECTIONS[name], channel_rank=channel_rank)
    codes, scale = project(weights)
    compiled_codes, compiled_scale = tf.function(project, jit_compile=jit)(weights)
    np.testing.assert_array_equal(compiled_codes, codes)
    # Sums of up to 540 float32 terms in another order.
    np.testing.assert_allclose(compiled_scale, scale, rtol=2e-6)


@each_projection
def test_float64_weights_are_projected_in_float64(name):
    weights = np.random.default_rng(0).normal(size=50)
    codes, scale = PROJECTIONS[name](tf.constant(weights), 0)
    assert codes.dtype == scale.dtype == tf.float64
    integers = codes.numpy()
    # Every scale is the least-squares one of its codes, <w, Q> / <Q, Q>; sums of 50 float64 terms.
    np.testing.assert_allclose(scale, (weights * integers).sum() / (integers**2).sum(), rtol=1e-14)
