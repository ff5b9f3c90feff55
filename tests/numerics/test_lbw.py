"""LBW weights against full enumeration, the paper's formulas in numpy, and every way TensorFlow runs them."""

from __future__ import annotations

import itertools
import math

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tfqil.numerics import lbw

BITS = range(2, 7)
PAPER_BITS = range(3, 7)
# The solver compares sums in float64, a few 1e-16 of ||w||^2 off: exponents nearer than that are equally good.
ERROR_TOLERANCE = 1e-14

quick = hypothesis.settings(max_examples=60, deadline=None)
# Magnitudes far from the ends of float32, so that scaling by a power of two is exact.
elements = st.one_of(st.just(0.0), st.floats(2.0**-20, 12.0, width=32), st.floats(-12.0, -(2.0**-20), width=32))
arrays = hypothesis.extra.numpy.arrays(np.float32, st.integers(1, 40), elements=elements)


def project(w, channel_rank=0, **settings):
    """Codes and step as numpy arrays."""
    return tuple(value.numpy() for value in lbw.project(tf.constant(w), channel_rank, **settings))


def squared_error(w, codes, step):
    """||w - step * codes||^2 over the first axis, in float64."""
    return ((w.astype(np.float64) - codes.astype(np.float64) * step.astype(np.float64)) ** 2).sum(axis=0)


def levels(powers):
    """Every level of Q: 0 and both signs of `powers` powers of two."""
    positive = 2.0 ** -np.arange(powers)
    return np.concatenate([[0.0], positive, -positive])


def random_columns(entries, columns, seed):
    """Columns of normal, Laplace, heavy-tailed and dyadic entries at random scales; some entries are zero."""
    random = np.random.default_rng(seed)
    shape = (entries, columns // 4)
    w = np.concatenate(
        [
            random.normal(size=shape),
            random.laplace(size=shape),
            random.choice([-1, 1], shape) * 2.0 ** random.uniform(-9, 2, shape),
            random.integers(-24, 25, shape) / 8,  # Many lie on a level or half-way between two.
        ],
        axis=1,
    )
    w[random.uniform(size=w.shape) < 0.05] = 0.0
    return (w * 2.0 ** random.uniform(-3, 3, w.shape[1])).astype(np.float32)


def paper_scheme(w, bits, mu):
    """The semi-analytical scheme as in the paper's form, entry by entry, in float64: Q and s."""
    n = 2 ** (bits - 2)
    M = mu * np.abs(w).max()
    Q = np.zeros(w.shape)
    for i, magnitude in np.ndenumerate(np.abs(w)):
        if magnitude >= M:
            Q[i] = 1.0
        elif magnitude >= M * 2.0 ** (2 - n):
            Q[i] = next(2.0 ** (t - n) for t in range(2, n) if magnitude < M * 2.0 ** (t + 1 - n))
        elif magnitude >= M * 2.0 ** (2 - n) / 3:
            Q[i] = 2.0 ** (1 - n)
    _, exponent = math.frexp(4 * (np.abs(w) * Q).sum() / (3 * (Q**2).sum()))
    return np.sign(w) * Q, exponent - 1


def ternary_by_sorting(w):
    """The paper's exact ternary formula in float64: the least ||w - 2^s Q||^2."""
    descending = np.sort(np.abs(w).astype(np.float64))[::-1]
    k = np.arange(1, w.size + 1)
    sums = np.cumsum(descending)
    scale = 2.0 ** (np.frexp(4 * sums / (3 * k))[1] - 1.0)
    return (descending**2).sum() + min(0.0, (scale**2 * k - 2 * scale * sums).min())


@pytest.mark.parametrize(("bits", "most_entries"), [(2, 8), (3, 6)])
def test_no_choice_of_exponent_and_levels_is_better_than_the_solver(bits, most_entries):
    powers = lbw.powers_of(bits)
    for entries in range(1, most_entries + 1):
        w = random_columns(entries, 500, seed=entries)
        # Nothing is assumed here: every Q of (2n + 1)^N, signs included, with every s.
        every_q = np.array(list(itertools.product(levels(powers), repeat=entries)))
        aligned, energy = every_q @ w.astype(np.float64), (every_q**2).sum(axis=1)[:, None]
        gains = np.full(w.shape[1], -np.inf)
        for s in range(-14, 9):
            gains = np.maximum(gains, (2.0 ** (s + 1) * aligned - 4.0**s * energy).max(axis=0))
        total = (w.astype(np.float64) ** 2).sum(axis=0)
        excess = squared_error(w, *project(w, 1, bits=bits)) - (total - gains)
        misses = np.abs(excess) > ERROR_TOLERANCE * total
        assert not misses.any(), f"{misses.sum()} misses of {w.shape[1]} with {entries} entries"


@pytest.mark.parametrize(("bits", "powers"), [*((bits, None) for bits in BITS), (4, 1), (5, 3), (6, 7)])
def test_no_exponent_with_the_best_level_of_each_entry_is_better_than_the_solver(bits, powers):
    # For a fixed s the error is a sum of one term per entry, and each term has its own level: the least of each term
    # over all levels is the least over all (2n + 1)^N choices, which from 4 bits on are too many to list.
    every_level = levels(lbw.powers_of(bits, powers))
    for entries in range(1, 9):
        w = random_columns(entries, 500, seed=100 + entries)
        least = np.full(w.shape[1], np.inf)
        for s in range(-20, 12):
            terms = [(w.astype(np.float64) - 2.0**s * level) ** 2 for level in every_level]
            least = np.minimum(least, np.min(terms, axis=0).sum(axis=0))
        total = (w.astype(np.float64) ** 2).sum(axis=0)
        excess = squared_error(w, *project(w, 1, bits=bits, powers=powers)) - least
        misses = np.abs(excess) > ERROR_TOLERANCE * total
        assert not misses.any(), f"{misses.sum()} misses of {w.shape[1]} with {entries} entries"


@pytest.mark.parametrize("mu", [0.2, 0.75, 1.0])
@pytest.mark.parametrize("bits", PAPER_BITS)
def test_the_optimum_is_never_worse_than_the_scheme_of_the_paper(bits, mu):
    w = random_columns(128, 1000, seed=bits)
    best = squared_error(w, *project(w, 1, bits=bits))
    paper = squared_error(w, *project(w, 1, bits=bits, mu=mu))
    assert np.all(best <= paper * (1 + ERROR_TOLERANCE))


@pytest.mark.parametrize("mu", [0.05, 0.3, 0.75, 1.5])
@pytest.mark.parametrize("bits", PAPER_BITS)
def test_the_scheme_of_the_paper_is_its_formula(bits, mu):
    powers = lbw.powers_of(bits)
    for w in random_columns(60, 16, seed=bits).T[:12]:  # Without the dyadic ones, which may lie on a threshold.
        Q, s = paper_scheme(w.astype(np.float64), bits, mu)
        codes, step = project(w, bits=bits, mu=mu)
        np.testing.assert_array_equal(codes, Q * 2.0 ** (powers - 1))
        assert step == 2.0 ** (s + 1 - powers)


def test_ternary_weights_are_as_good_as_the_formula_that_sorts():
    for w in random_columns(3000, 12, seed=0).T:
        total = (w.astype(np.float64) ** 2).sum()
        # The cumulated sums of 3,000 terms are 1e-13 off.
        assert squared_error(w, *project(w, bits=2)) == pytest.approx(ternary_by_sorting(w), abs=1e-12 * total)


@pytest.mark.parametrize(
    ("shape", "channel_rank", "bits", "mu"),
    [
        ((3, 3, 4, 5), 0, 2, None),
        ((3, 3, 4, 5), 1, 3, None),
        ((3, 3, 4, 2), 2, 6, None),
        ((3, 3, 4, 5), 1, 4, 0.75),
    ],
)
def test_graph_and_xla_and_one_call_per_channel_give_the_same(shape, channel_rank, bits, mu):
    random = np.random.default_rng(bits)
    w = (random.laplace(size=shape) * 2.0 ** random.uniform(-4, 4, shape[-1])).astype(np.float32)
    codes, step = project(w, channel_rank, bits=bits, mu=mu)
    assert codes.shape == shape and step.shape == shape[len(shape) - channel_rank :]
    for jit in (False, True):
        compiled = tf.function(lambda w: lbw.project(w, channel_rank, bits=bits, mu=mu), jit_compile=jit)
        for got, want in zip(compiled(tf.constant(w)), (codes, step), strict=True):
            np.testing.assert_array_equal(got, want)
    for channel in np.ndindex(step.shape):
        alone = project(w[(..., *channel)], bits=bits, mu=mu)
        np.testing.assert_array_equal(alone[0], codes[(..., *channel)])
        assert alone[1] == step[channel]


@pytest.mark.parametrize(("bits", "powers", "count"), [(2, None, 1), (6, None, 16), (3, 7, 2), (5, 7, 7), (6, 7, 7)])
def test_limited_powers_are_the_largest_ones_and_seven_fit_int8(bits, powers, count):
    assert lbw.powers_of(bits, powers) == count
    w = np.linspace(-1, 1, 4001, dtype=np.float32)
    for mu in (None, 0.75) if bits > 2 else (None,):
        codes, step = project(w, bits=bits, mu=mu, powers=powers)
        used = 2.0 ** np.arange(count)
        expected = {0.0, *used, *-used}
        # 4,000 weights reach about 2^-11 of the largest only.
        assert set(codes) <= expected and (count > 7 or set(codes) == expected)
        assert np.log2(step) == np.rint(np.log2(step))


def test_limiting_the_powers_costs_no_more_than_what_the_small_ones_held():
    w = random_columns(500, 40, seed=0)
    errors = [squared_error(w, *project(w, 1, bits=6, powers=powers)) for powers in (1, 2, 4, 7, 16, None)]
    for fewer, more in itertools.pairwise(errors):
        assert np.all(more <= fewer)
    np.testing.assert_array_equal(errors[-1], errors[-2])


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_every_level_and_every_threshold_is_rounded_as_the_definition_says(bits):
    powers = lbw.powers_of(bits)
    largest = 2.0 ** (powers - 1)
    exact = 2.0 ** np.arange(powers)
    between = np.float32(1.5 * exact[:-1])
    # Many entries on the levels fix the step at 1, whatever the others are.
    anchor = np.tile(exact, 1000)
    under = np.nextafter(np.float32([0.5, *between]), np.float32(0))
    w = np.float32([*anchor, *exact, 0.5, *between, *under, 1.4 * largest, 0])
    want = [*anchor, *exact, 1.0, *(2 * exact[:-1]), 0.0, *exact[:-1], largest, 0]
    for jit in (False, True):
        compiled = tf.function(lambda w: lbw.project(w, 0, bits=bits), jit_compile=jit)
        for scale in np.float32([1, 2.0**-100, 2.0**100]):
            codes, step = compiled(tf.constant(w * scale))
            np.testing.assert_array_equal(codes, want)
            assert step == scale


@pytest.mark.parametrize("bits", PAPER_BITS)
def test_every_threshold_of_the_paper_belongs_to_the_level_above(bits):
    powers = lbw.powers_of(bits)
    # mu max|w| = 1, so that the thresholds are powers of two, all but the smallest.
    thresholds = np.float32(2.0 ** -np.arange(powers - 1))
    w = np.float32([2.0, *thresholds, *np.nextafter(thresholds, np.float32(0))])
    upper = 2.0 ** np.arange(powers - 1, 0, -1)
    codes, _ = project(w, bits=bits, mu=0.5)
    np.testing.assert_array_equal(codes, [2.0 ** (powers - 1), *upper, *(upper / 2)])


@quick
@hypothesis.given(arrays, st.sampled_from(BITS), st.sampled_from([None, 0.75]), st.integers(-80, 80))
def test_a_power_of_two_scales_the_step_only_and_a_sign_the_codes_only(w, bits, mu, exponent):
    mu = None if bits == 2 else mu
    codes, step = project(w, bits=bits, mu=mu)
    scaled_codes, scaled_step = project(np.ldexp(w, exponent), bits=bits, mu=mu)
    np.testing.assert_array_equal(scaled_codes, codes)
    assert scaled_step == np.ldexp(step, exponent) or not w.any()
    negative_codes, same_step = project(-w, bits=bits, mu=mu)
    np.testing.assert_array_equal(negative_codes, -codes)
    assert same_step == step


@quick
@hypothesis.given(arrays, st.sampled_from(BITS), st.randoms(use_true_random=False))
def test_neither_the_order_of_the_weights_nor_zeros_beside_them_matter(w, bits, random):
    order = random.sample(range(w.size), w.size)
    codes, step = project(w, bits=bits)
    other_codes, other_step = project(np.concatenate([w[order], np.zeros(5, np.float32)]), bits=bits)
    assert other_step == step or not w.any()
    np.testing.assert_array_equal(other_codes, [*codes[order], 0, 0, 0, 0, 0])


@quick
@hypothesis.given(arrays, st.sampled_from(BITS))
def test_what_lies_on_the_grid_stays_there(w, bits):
    codes, step = project(w, bits=bits)
    output = codes * step
    again = project(output, bits=bits)
    np.testing.assert_array_equal(again[0] * again[1], output)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize(("bits", "mu"), [(2, None), (6, None), (3, 0.75), (4, 1e-300), (6, 1e300)])
def test_whatever_arrives_codes_and_step_are_finite_and_the_step_is_a_normal_power_of_two(bits, mu, jit):
    tiny, largest = np.finfo(np.float32).tiny, 2.0 ** (lbw.powers_of(bits) - 1)
    slices = [
        [0.0, 0.0, -0.0, 0.0],
        [1e-40, -1e-42, 0.0, 0.0],
        [np.inf, 0.0, 0.0, 0.0],
        [np.nan, np.nan, np.nan, np.nan],
        [np.inf, -np.inf, np.nan, 1e-40],
        [np.inf, 1.0, -0.3, np.nan],
        [3.4e38, -3e38, 1e38, -np.inf],
        [1.2e-38, 1e-36, -2e-38, 0.0],
        [3.4e38, 1e-38, 0.0, -1e38],
    ]
    w = np.float32(slices).T
    codes, step = tf.function(lambda w: lbw.project(w, 1, bits=bits, mu=mu), jit_compile=jit)(tf.constant(w))
    codes, step = codes.numpy(), step.numpy()
    assert np.all(np.isfinite(step)) and np.all(step >= tiny) and np.all(np.frexp(step)[0] == 0.5)
    assert np.all(np.isfinite(codes * step)) and np.abs(codes).max() <= largest
    np.testing.assert_array_equal(codes[np.isinf(w)], np.sign(w[np.isinf(w)]) * largest)
    assert not codes[np.isnan(w)].any() and not codes[np.abs(w) < tiny].any()


@pytest.mark.parametrize("mu", [None, 0.75])
def test_broken_entries_do_not_move_the_others(mu):
    w = random_columns(50, 4, seed=0)[:, 0]
    codes, step = project(np.concatenate([w, np.zeros(3, np.float32)]), bits=4, mu=mu)
    broken_codes, broken_step = project(np.concatenate([w, np.float32([np.inf, -np.inf, np.nan])]), bits=4, mu=mu)
    assert broken_step == step
    np.testing.assert_array_equal(broken_codes, [*codes[:-3], 8, -8, 0])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("bits", BITS)
def test_tiny_and_huge_weights_are_as_well_quantized_as_others(bits, scale):
    w = np.random.default_rng(0).normal(size=10_000)
    around = {}
    for size in (1.0, scale, scale / np.sqrt(2)):  # The relative error depends on the scale up to a power of two.
        scaled = (w * size).astype(np.float32)
        codes, step = project(scaled, bits=bits)
        around[size] = squared_error(scaled, codes, step) / (scaled.astype(np.float64) ** 2).sum()
    assert min(around[scale], around[scale / np.sqrt(2)]) < 1.3 * around[1.0] < 0.4


@pytest.mark.parametrize(("toward", "exponent"), [(1.0, 0), (0.0, -1)])
def test_ten_million_weights_are_summed_exactly(toward, exponent):
    # The levels 1 and 1/2 are equally good for 3/4: one unit in the last place decides, also in a sum of 10^7 terms.
    w = np.full(10_000_000, np.nextafter(np.float32(0.75), np.float32(toward)))
    codes, step = project(w, bits=2)
    assert step == 2.0**exponent and np.all(codes == 1)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
@pytest.mark.parametrize(("bits", "mu"), [(2, None), (4, None), (4, 0.75), (6, None), (6, 0.75)])
def test_other_number_formats_give_the_codes_and_the_step_of_float32(dtype, bits, mu):
    w = tf.cast(np.random.default_rng(0).normal(size=200) * 0.1, dtype)
    codes, step = lbw.project(w, 0, bits=bits, mu=mu)
    want_codes, want_step = lbw.project(tf.cast(w, tf.float32), 0, bits=bits, mu=mu)
    assert codes.dtype == step.dtype == dtype
    np.testing.assert_array_equal(tf.cast(codes, tf.float32), want_codes)
    assert tf.cast(step, tf.float32) == want_step


def test_small_float16_weights_keep_a_step_that_is_not_zero():
    w = tf.constant([3e-5, -1e-5, 6e-8, 0.0], tf.float16)
    codes, step = lbw.project(w, 0, bits=6)
    np.testing.assert_array_equal(codes * step, np.float16(np.ldexp([1.0, -1.0, 1.0, 0.0], [-15, -17, -24, 0])))


@pytest.mark.parametrize("settings", [(2, None, None), (3, 0.75, 7), (6, np.float32(1.5), 1), (np.int64(4), 1, None)])
def test_settings_in_range_pass(settings):
    lbw.check_settings(*settings)


@pytest.mark.parametrize("mu", [0.0, -1, math.nan, math.inf, True, "0.75"])
def test_a_mu_that_is_no_positive_number_raises_one_sentence(mu):
    with pytest.raises(ValueError) as error:
        lbw.check_settings(4, mu, None)
    assert str(error.value) == (
        f"Got mu={mu!r}, expected a positive finite number or None: give the threshold of the largest level as a "
        "fraction of max|w|, or None for the least-squares optimum."
    )


def test_mu_with_2_bits_raises_one_sentence():
    with pytest.raises(ValueError) as error:
        lbw.check_settings(2, 0.75, None)
    assert str(error.value) == (
        "Got mu=0.75 with bits=2, expected no mu: leave it out, the least-squares optimum is the paper's solution at 2 "
        "bits."
    )


@pytest.mark.parametrize("powers", [0, -3, True, 2.0])
def test_powers_below_1_raise_one_sentence(powers):
    with pytest.raises(ValueError) as error:
        lbw.check_settings(4, None, powers)
    assert str(error.value) == (
        f"Got powers={powers!r}, expected a whole number from 1 on or None: give how many of the largest powers of two "
        "to keep, or None for all of them."
    )


@pytest.mark.parametrize("bits", [1, 7, 8])
def test_bits_out_of_range_raise_one_sentence(bits):
    with pytest.raises(ValueError) as error:
        lbw.check_settings(bits, None, None)
    assert str(error.value) == f"Got bits={bits}, expected 2 to 6: choose a width in that range."
