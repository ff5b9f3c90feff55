"""Activations with a learned resolution: golden vectors, coarse gradients, the ceil as a shift, the first step."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.numerics.golden_vectors import cases, require_expected
from tfqil.numerics import adaptive_activation, interval_search
from tfqil.numerics.grid import activation_levels
from tfqil.numerics.ste import COARSE_DERIVATIVES

GOLDEN = cases("adaptive_activation")
GRIDS = [case for case in cases("integer_grids") if case["inputs"]["method"] == "adaptive_activation"]
BITS = range(1, 9)
ALL_PAIRS = tuple(itertools.product(COARSE_DERIVATIVES, adaptive_activation.STEP_GRADIENTS))
# Every coarse derivative once; compiling all pairs takes its time.
THREE_PAIRS = tuple(zip(COARSE_DERIVATIVES, adaptive_activation.STEP_GRADIENTS, strict=True))


def outputs_and_gradients(
    inputs: tf.Tensor,
    step: tf.Tensor,
    upstream: tf.Tensor,
    *,
    bits: int,
    to_nearest: bool = False,
    pairs: tuple[tuple[str, str], ...] = ALL_PAIRS,
) -> dict[tuple[str, str], list[tf.Tensor]]:
    """Output, gradient in x and gradient in alpha for pairs of coarse derivatives."""
    results = {}
    for ste, step_gradient in pairs:
        with tf.GradientTape() as tape:
            tape.watch((inputs, step))
            output = adaptive_activation.quantize(
                inputs, step, bits=bits, ste=ste, step_gradient=step_gradient, to_nearest=to_nearest
            )
        gradients = tape.gradient(output, (inputs, step), output_gradients=upstream)
        results[ste, step_gradient] = [output, *gradients]
    return results


@functools.cache
def compiled(run: str, bits: int, to_nearest: bool = False) -> Any:
    function = functools.partial(outputs_and_gradients, bits=bits, to_nearest=to_nearest)
    if run == "eager":
        return function
    return tf.function(functools.partial(function, pairs=THREE_PAIRS), jit_compile=run == "xla")


@pytest.mark.parametrize("run", ["eager", "xla"])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_outputs_and_all_coarse_gradients_are_the_golden_ones(case, run):
    inputs = case["inputs"]
    arguments = (tf.constant(inputs[name], tf.float32) for name in ("x", "alpha", "upstream"))
    results = compiled(run, inputs["bits"])(*arguments)
    for (ste, step_gradient), (output, in_x, in_step) in results.items():
        got = {
            "integers": np.rint(output.numpy() / np.float32(inputs["alpha"])),
            "scale": np.float32(inputs["alpha"]),
            "output": output.numpy(),
            f"grad_x_{ste}": in_x.numpy(),
            f"grad_alpha_{step_gradient}": in_step.numpy(),
        }
        require_expected({**case, "expected": {name: case["expected"][name] for name in got}}, got)
    assert set(results) == set(ALL_PAIRS if run == "eager" else THREE_PAIRS)


@pytest.mark.parametrize("to_nearest", [False, True], ids=["up", "to nearest"])
@pytest.mark.parametrize("case", GRIDS, ids=lambda case: case["name"])
def test_every_value_of_the_grid_is_produced_and_nothing_else(case, to_nearest):
    bits, step = case["inputs"]["bits"], np.float32(case["inputs"]["alpha"])
    data = np.linspace(-2, 1.3 * 2**bits, 30_001, dtype=np.float32) * step
    outputs = adaptive_activation.quantize(tf.constant(data), tf.constant(step), bits=bits, to_nearest=to_nearest)
    values = np.unique(np.abs(outputs.numpy()))  # Of 0 and -0 one.
    require_expected(case, {"integers": np.rint(values / step), "scale": step, "values": values})


@pytest.mark.parametrize("bits", BITS)
def test_rounding_up_is_rounding_to_nearest_half_a_step_higher_but_for_ties(bits):
    step, levels = 0.25, activation_levels(bits)
    # Quotients and sums of these are exact in float32.
    position = np.arange(-2 * 64, (levels + 2) * 64, dtype=np.float32) / 64
    up = adaptive_activation.quantize(tf.constant(position * step), tf.constant(step), bits=bits).numpy() / step
    nearest = np.clip(np.rint(position + 0.5), 0, levels)
    shifted = adaptive_activation.quantize(
        tf.constant((position + 0.5) * step), tf.constant(step), bits=bits, to_nearest=True
    )
    np.testing.assert_array_equal(shifted.numpy() / step, nearest)
    # At an integer the sum is a tie, which goes to the even code: one too many for odd ones.
    odd = (position % 2 == 1) & (position > 0) & (position < levels)
    np.testing.assert_array_equal(up[~odd], nearest[~odd])
    np.testing.assert_array_equal(up[odd], nearest[odd] - 1)
    assert odd.sum() == levels // 2


@pytest.mark.parametrize("to_nearest", [False, True], ids=["up", "to nearest"])
@pytest.mark.parametrize("bits", BITS)
def test_codes_and_gradients_equal_an_independent_reference(bits, to_nearest):
    random = np.random.default_rng(bits)
    levels, step = activation_levels(bits), np.float32(0.37)
    x = (random.uniform(-0.5, 1.5, 300) * levels * step).astype(np.float32)
    x = np.concatenate([x[np.abs(x / step * 2 - np.rint(x / step * 2)) > 1e-3], np.float32([0, -0.0])])
    upstream = random.normal(size=x.shape).astype(np.float32)
    position = x.astype(np.float64) / step
    codes = np.clip(np.floor(position + 0.5) if to_nearest else np.floor(position) + (position % 1 > 0), 0, levels)
    above, inside = position > levels, (position > 0) & (position <= levels)
    slopes = {"identity": np.ones(x.shape), "relu": 1.0 * (position > 0), "clipped_relu": 1.0 * inside}
    factors = {
        "exact": codes,
        "three_valued": np.where(above, levels, 2.0 ** (bits - 1) * inside),
        "two_valued": levels * above,
    }
    results = compiled("eager", bits, to_nearest)(*(tf.constant(value) for value in (x, step, upstream)))
    for (ste, step_gradient), (output, in_x, in_step) in results.items():
        np.testing.assert_array_equal(output, (codes * step).astype(np.float32))
        np.testing.assert_array_equal(in_x, (upstream * slopes[ste]).astype(np.float32))
        terms = upstream * factors[step_gradient]
        # A sum of some 300 float32 terms, each off by half an ulp of the partial sums.
        assert abs(float(in_step) - terms.sum()) <= 2e-5 * np.abs(terms).sum()


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "xla"])
def test_few_small_gradients_above_do_not_drown_in_many_large_ones_inside(jit):
    x = np.full(2**20, 0.5, np.float32)
    upstream = np.full(2**20, 1e-3, np.float32)
    x[:10], upstream[:10] = 99, 1e-6

    @functools.partial(tf.function, jit_compile=jit)
    def in_step(x, upstream):
        pairs = (("clipped_relu", "two_valued"),)
        return outputs_and_gradients(x, tf.constant(1.0), upstream, bits=4, pairs=pairs)[pairs[0]][2]

    np.testing.assert_allclose(in_step(tf.constant(x), tf.constant(upstream)), 15 * 10 * 1e-6, rtol=1e-5)


@pytest.mark.parametrize("to_nearest", [False, True], ids=["up", "to nearest"])
@pytest.mark.parametrize("bits", [1, 4])
@pytest.mark.parametrize("run", ["graph", "xla"])
def test_compiled_results_are_the_eager_ones(run, bits, to_nearest):
    random = np.random.default_rng(0)
    arguments = [tf.constant(value, tf.float32) for value in (random.normal(size=300), 0.3, random.normal(size=300))]
    eager, other = (compiled(how, bits, to_nearest)(*arguments) for how in ("eager", run))
    for pair in THREE_PAIRS:
        for expected, got in zip(eager[pair], other[pair], strict=True):
            # Sums of 300 float32 terms of either sign, up to 15 each, in another order.
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-3 if expected.shape.rank == 0 else 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["inputs", "upstream"])
def test_broken_numbers_do_not_reach_the_step(where, bad):
    values = {"inputs": np.float32([-0.3, 0.1, 0.7, 9.0]), "upstream": np.ones(4, np.float32)}
    values[where][2] = bad
    results = outputs_and_gradients(
        tf.constant(values["inputs"]), tf.constant(0.2), tf.constant(values["upstream"]), bits=2
    )
    for _, _, in_step in results.values():
        assert np.isfinite(in_step)


@pytest.mark.parametrize(("value", "code"), [(1e30, 15), (-1e30, 0), (np.inf, 15), (-np.inf, 0), (1e-30, 1)])
def test_extreme_inputs_go_to_the_ends_of_the_grid(value, code):
    output = adaptive_activation.quantize(tf.constant([value]), tf.constant(0.5), bits=4)
    np.testing.assert_array_equal(output, [code * 0.5])


def half_normal_error(step: np.ndarray, levels: int) -> np.ndarray:
    """E(x - alpha round(x / alpha))^2 of |N(0, 1)|, by the midpoint rule on 40,000 points up to 8 sigma."""
    x = (np.arange(40_000) + 0.5) / 5000
    density = np.exp(-(x**2) / 2)
    rounded = np.minimum(np.rint(x / step[:, None]), levels) * step[:, None]
    return ((x - rounded) ** 2 * density).sum(axis=1) / density.sum()


@pytest.mark.parametrize("bits", BITS)
def test_the_first_step_is_the_least_squares_one_of_half_normal_data(bits):
    found = float(adaptive_activation.half_normal_step(tf.constant(1.0), bits=bits))
    candidates = found * np.linspace(0.95, 1.05, 201)
    best = candidates[half_normal_error(candidates, activation_levels(bits)).argmin()]
    # Four decimals, and candidates that are 0.05 % apart.
    assert found == pytest.approx(best, abs=5e-5 + 5e-4 * best)
    assert float(adaptive_activation.half_normal_step(tf.constant(0.37), bits=bits)) == pytest.approx(0.37 * found)


@pytest.mark.parametrize("bits", BITS)
def test_the_first_step_agrees_with_the_search_for_intervals(bits):
    largest, levels = 6.0, activation_levels(bits)
    centers = (np.arange(interval_search.BINS) + 0.5) * largest / interval_search.BINS
    counts = tf.constant(np.exp(-(centers**2) / 2), tf.float32)
    upper_end = interval_search.best_upper_end(counts, tf.constant(largest), levels=levels)
    # The candidates of the search are 1.6 % apart, and at many levels the minimum is flat.
    expected = adaptive_activation.half_normal_step(tf.constant(1.0), bits=bits)
    assert float(upper_end) / levels == pytest.approx(float(expected), rel=0.017 if bits < 7 else 0.03)
