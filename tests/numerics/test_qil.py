"""QIL against an independent float64 reference, its properties, and every way TensorFlow runs it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.numerics import qil_reference
from tfqil.numerics import qil
from tfqil.numerics.grid import activation_levels, weight_levels

BITS = range(2, 9)
# Forward in float32: one rounding of the division, one of the product; a step boundary moves by as much.
OUTPUT_ULPS = 2
# Sums of some hundred float32 terms, each off by a few ulp.
GRADIENT_RTOL = 2e-5

quick = hypothesis.settings(max_examples=60, deadline=None)
intervals = st.tuples(st.floats(0.0625, 4.0, width=32), st.floats(0.0, 4.0, width=32, allow_subnormal=False)).map(
    lambda pair: (np.float32(pair[0] + pair[1]), np.float32(pair[0]))
)
arrays = hypothesis.extra.numpy.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-12, 12, width=32, allow_subnormal=False)
)


def away_from_jumps(values: np.ndarray, center: float, half_width: float, levels: int, gamma: float) -> np.ndarray:
    """The values whose code a change of 1e-3 of a step cannot move, and not next to the ends of the interval."""
    u = (np.abs(values) - (center - half_width)) / (2 * half_width)
    position = np.clip(u, 0, 1) ** gamma * levels
    from_tie = np.abs(position - np.floor(position) - 0.5)
    return values[(from_tie > 1e-3) & (np.abs(u) > 5e-3) & (np.abs(u - 1) > 5e-3)]


def gradient_of(
    function: Callable[..., tf.Tensor], parameters: list[tf.Tensor], upstream: np.ndarray
) -> list[np.ndarray]:
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        output = function(*parameters)
    return [g.numpy() for g in tape.gradient(output, parameters, output_gradients=tf.constant(upstream))]


def require_gradients(names: tuple[str, ...], got: list[np.ndarray], want: dict, upstream: np.ndarray) -> None:
    """Raises unless gradients are the reference's slopes times the upstream gradient, summed for parameters."""
    for index, (name, gradient) in enumerate(zip(names, got, strict=True)):
        terms = want[name] * upstream
        expected = terms if index == 0 else terms.sum()
        scale = np.abs(terms).max() if index == 0 else np.abs(terms).sum()
        error = np.abs(gradient - expected).max()
        assert error <= GRADIENT_RTOL * scale + 1e-7, (
            f"{name}: {error:.3g} off, {error / (scale + 1e-30):.3g} of its terms"
        )


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("gamma", [None, 0.6, 1.0, 1.7])
@pytest.mark.parametrize("bits", BITS)
def test_weights_and_their_gradients_equal_the_reference(bits, gamma, normalized):
    random = np.random.default_rng(bits)
    center, half_width, power = 0.6, 0.4, gamma or 1.0
    w = away_from_jumps(random.normal(0, 0.6, 400).astype(np.float32), center, half_width, weight_levels(bits), power)
    upstream = random.normal(size=w.shape).astype(np.float32)
    want = qil_reference.weights(w.astype(np.float64), center, half_width, power, bits, normalized=normalized)
    parameters = [tf.constant(value, tf.float32) for value in (w, center, half_width, *([gamma] if gamma else []))]
    np.testing.assert_array_equal(qil.weight_codes(*parameters, bits=bits), want["codes"])
    got = qil.quantize_weights(*parameters, bits=bits, normalized=normalized).numpy()
    np.testing.assert_array_max_ulp(got, want["output"].astype(np.float32), OUTPUT_ULPS)
    found = gradient_of(lambda *p: qil.quantize_weights(*p, bits=bits, normalized=normalized), parameters, upstream)
    require_gradients(("w", "center", "half_width", "gamma")[: len(found)], found, want, upstream)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_activations_and_their_gradients_equal_the_reference(bits, normalized):
    random = np.random.default_rng(bits)
    center, half_width = 1.4, 1.1
    x = random.normal(0.8, 1.2, 400).astype(np.float32)
    x = np.concatenate([away_from_jumps(x[x > 0], center, half_width, activation_levels(bits), 1.0), x[x < 0]])
    upstream = random.normal(size=x.shape).astype(np.float32)
    want = qil_reference.activations(x.astype(np.float64), center, half_width, bits, normalized=normalized)
    parameters = [tf.constant(value, tf.float32) for value in (x, center, half_width)]
    got = qil.quantize_activations(*parameters, bits=bits, normalized=normalized).numpy()
    np.testing.assert_array_max_ulp(got, want["output"].astype(np.float32), OUTPUT_ULPS)
    found = gradient_of(lambda *p: qil.quantize_activations(*p, bits=bits, normalized=normalized), parameters, upstream)
    require_gradients(("x", "center", "half_width"), found, want, upstream)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_without_a_center_the_half_width_has_the_gradients_of_both(bits, normalized):
    random = np.random.default_rng(bits)
    half = 1.1
    x = random.normal(0.8, 1.2, 400).astype(np.float32)
    x = np.concatenate([away_from_jumps(x[x > 0], half, half, activation_levels(bits), 1.0), x[x < 0], [0.0]])
    upstream = random.normal(size=x.shape).astype(np.float32)
    want = qil_reference.activations(x.astype(np.float64), half, half, bits, normalized=normalized)
    want["both"] = want["center"] + want["half_width"]
    quantize = functools.partial(qil.quantize_activations, bits=bits, normalized=normalized)
    parameters = [tf.constant(x, tf.float32), tf.constant(half)]
    got = quantize(parameters[0], None, parameters[1]).numpy()
    np.testing.assert_array_max_ulp(got, want["output"].astype(np.float32), OUTPUT_ULPS)
    found = gradient_of(lambda x, half_width: quantize(x, None, half_width), parameters, upstream)
    require_gradients(("x", "both"), found, want, upstream)


@pytest.mark.parametrize(
    "quantize",
    [
        qil.quantize_weights,
        functools.partial(qil.quantize_weights, gamma=tf.constant(0.7)),
        qil.quantize_activations,
        lambda x, center, half_width, **options: qil.quantize_activations(x, None, half_width, **options),
    ],
    ids=["weights", "weights with gamma", "activations", "activations from 0"],
)
def test_gradients_pass_a_projection_straight_through(quantize):
    random = np.random.default_rng(0)
    x, upstream = random.normal(size=(2, 300)).astype(np.float32)
    given, valid = (tf.constant(0.2), tf.constant(-3.0)), (tf.constant(0.7), tf.constant(0.7))
    outputs, gradients = [], []
    for interval, project in ((given, lambda *_: valid), (valid, None)):
        run = functools.partial(quantize, bits=3, project=project)
        parameters = [tf.constant(x), *interval]
        outputs.append(run(*parameters))
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            output = run(*parameters)
        gradients.append([g for g in tape.gradient(output, parameters, tf.constant(upstream)) if g is not None])
    np.testing.assert_array_equal(*outputs)
    assert len(gradients[0]) == len(gradients[1]) >= 2
    for found, expected in zip(*gradients, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert np.any(expected != 0)


@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (6, 5)])
def test_one_interval_per_channel_is_the_same_as_one_call_per_channel(shape):
    random = np.random.default_rng(0)
    w, upstream = random.normal(size=(2, *shape)).astype(np.float32)
    center, half_width = random.uniform(0.5, 0.9, 5).astype(np.float32), random.uniform(0.1, 0.5, 5).astype(np.float32)

    def quantize(*parameters):
        return qil.quantize_weights(*parameters, bits=4)

    together = gradient_of(quantize, [tf.constant(a) for a in (w, center, half_width)], upstream)
    for channel in range(5):
        alone = [tf.constant(w[..., channel]), tf.constant(center[channel]), tf.constant(half_width[channel])]
        for one, all_channels in zip(gradient_of(quantize, alone, upstream[..., channel]), together, strict=True):
            # The sums of a channel may run in another order.
            np.testing.assert_allclose(all_channels[..., channel], one, rtol=1e-5, atol=1e-6)


@quick
@hypothesis.given(arrays, intervals, st.sampled_from(BITS))
def test_codes_are_integers_in_range_and_odd_in_the_weights(w, interval, bits):
    codes = qil.weight_codes(w, *map(tf.constant, interval), bits=bits).numpy()
    assert np.array_equal(codes, np.rint(codes)) and np.abs(codes).max() <= weight_levels(bits)
    np.testing.assert_array_equal(qil.weight_codes(-w, *map(tf.constant, interval), bits=bits).numpy(), -codes)


@quick
@hypothesis.given(arrays, intervals, st.sampled_from(BITS), st.floats(0.25, 4.0, width=32))
def test_codes_grow_with_the_weights_for_any_exponent(w, interval, bits, gamma):
    ordered = np.sort(w)
    for exponent in (None, tf.constant(gamma)):
        codes = qil.weight_codes(ordered, *map(tf.constant, interval), exponent, bits=bits).numpy()
        assert np.all(np.diff(codes) >= 0)


@quick
@hypothesis.given(arrays, intervals, st.sampled_from(BITS))
def test_the_output_of_activations_grows_and_stays_on_the_grid(x, interval, bits):
    center, half_width = map(tf.constant, interval)
    outputs = qil.quantize_activations(np.sort(x), center, half_width, bits=bits).numpy()
    codes = outputs / (2 * interval[1] / activation_levels(bits))
    assert np.all(np.diff(outputs) >= 0)
    assert np.abs(codes - np.rint(codes)).max() < 1e-4 and 0 <= np.rint(codes).min() <= np.rint(codes).max() < 2**bits


@quick
@hypothesis.given(st.floats(0.0625, 4.0, width=32), st.sampled_from(BITS), arrays)
def test_the_round_trip_error_is_at_most_half_a_step_inside_the_interval(half_width, bits, values):
    interval = tf.constant(half_width), tf.constant(half_width)  # Lower end 0: the output approximates the input.
    inside = np.clip(values, -2 * half_width, 2 * half_width)
    step = 2 * half_width / weight_levels(bits)
    error = np.abs(qil.quantize_weights(inside, *interval, bits=bits).numpy() - inside)
    # Half a step, and the float32 rounding of a code's position (relative to the largest code).
    assert error.max() <= step * (0.5 + 2e-5), f"{(error > step / 2).sum()} of {error.size} exceed half a step"
    step = 2 * half_width / activation_levels(bits)
    error = np.abs(qil.quantize_activations(np.abs(inside), *interval, bits=bits).numpy() - np.abs(inside))
    assert error.max() <= step * (0.5 + 6e-5), f"{(error > step / 2).sum()} of {error.size} exceed half a step"


@quick
@hypothesis.given(arrays, st.floats(0.0625, 4.0, width=32), st.sampled_from(BITS))
def test_quantizing_twice_is_quantizing_once_where_the_lower_end_is_0(values, half_width, bits):
    interval = tf.constant(half_width), tf.constant(half_width)
    for quantize in (qil.quantize_weights, qil.quantize_activations):
        once = quantize(values, *interval, bits=bits).numpy()
        np.testing.assert_array_equal(quantize(once, *interval, bits=bits).numpy(), once)


@quick
@hypothesis.given(arrays, intervals, st.sampled_from(BITS))
def test_normalized_and_scaled_outputs_differ_by_the_scale_only(values, interval, bits):
    center, half_width = map(tf.constant, interval)
    for quantize, scale in (
        (qil.quantize_weights, interval[0] + interval[1]),
        (qil.quantize_activations, 2 * interval[1]),
    ):
        scaled = quantize(values, center, half_width, bits=bits).numpy()
        normalized = quantize(values, center, half_width, bits=bits, normalized=True).numpy()
        # Each is one product of a code and a rounded scale.
        np.testing.assert_allclose(scaled, normalized * scale, rtol=4e-7, atol=0)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_times_the_step_is_the_output_and_comes_from_its_own_value(bits):
    center = half_width = tf.constant(0.4371)
    codes = np.arange(-weight_levels(bits), weight_levels(bits) + 1, dtype=np.float32)
    step = np.float32(center + half_width) * np.float32(1 / weight_levels(bits))
    outputs = qil.quantize_weights(codes * step, center, half_width, bits=bits).numpy()
    np.testing.assert_array_equal(outputs, codes * step)
    codes = np.arange(activation_levels(bits) + 1, dtype=np.float32)
    step = np.float32(2 * half_width) * np.float32(1 / activation_levels(bits))
    outputs = qil.quantize_activations(codes * step, center, half_width, bits=bits).numpy()
    np.testing.assert_array_equal(outputs, codes * step)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("what", ["weights", "weights with gamma", "activations"])
def test_compiled_results_are_the_eager_ones(what, bits, jit):
    random = np.random.default_rng(0)
    gamma = [1.3] if "gamma" in what else []
    levels = activation_levels(bits) if what == "activations" else weight_levels(bits)
    data = away_from_jumps(random.normal(0, 0.6, (500,)).astype(np.float32), 0.6, 0.4, levels, *gamma or [1.0])
    parameters = [tf.constant(value, tf.float32) for value in (data, 0.6, 0.4, *gamma)]
    quantize = qil.quantize_activations if what == "activations" else qil.quantize_weights

    def run(*values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            output = quantize(*values, bits=bits)
        return [output, *tape.gradient(output, values, output_gradients=tf.cos(output * 7))]

    for eager, compiled in zip(run(*parameters), tf.function(run, jit_compile=jit)(*parameters), strict=True):
        # XLA may fuse a product and a sum and add up in another order; a code that moved would be a whole step.
        np.testing.assert_allclose(compiled, eager, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("bits", BITS)
def test_thresholds_are_where_the_codes_jump(bits, gamma):
    levels = weight_levels(bits)
    interval = tf.constant(0.6), tf.constant(0.4)
    pruning = float(qil.pruning_threshold(*interval, gamma, levels=levels))
    clipping = float(qil.clipping_threshold(*interval, gamma, levels=levels))
    around = np.float32([pruning - 1e-5, pruning + 1e-5, clipping - 1e-5, clipping + 1e-5])
    codes = qil.weight_codes(around, *interval, tf.constant(gamma), bits=bits).numpy()
    np.testing.assert_array_equal(codes, [0, 1, levels - 1, levels])


@quick
@hypothesis.given(
    st.floats(-50, 50, width=32, allow_subnormal=False), st.floats(-50, 50, width=32, allow_subnormal=False)
)
def test_projected_intervals_are_valid_and_valid_ones_stay(center, half_width):
    floor = 1e-5
    c, d = (float(v) for v in qil.project_interval(tf.constant(center), tf.constant(half_width), floor))
    assert d >= np.float32(floor) and c >= d
    if half_width >= np.float32(floor) and center >= half_width:
        assert (c, d) == (center, half_width)
    elif center + half_width > 4 * floor and center < half_width:
        assert c + d == pytest.approx(center + half_width, rel=1e-6), "the upper end moved"
    again = qil.project_interval(tf.constant(c), tf.constant(d), floor)
    assert (float(again[0]), float(again[1])) == (c, d)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gradients_of_intervals_are_finite_whatever_arrives(value):
    data = tf.constant([0.1, 0.5, 0.9, 3.0])
    for quantize in (qil.quantize_weights, qil.quantize_activations):
        for parameters in ([data, 0.6, 0.4], [tf.constant([0.1, value, 0.5, 0.2]), 0.6, 0.4]):
            parameters = [tf.convert_to_tensor(p) for p in parameters]
            upstream = np.float32([1, value, 1, 1])
            found = gradient_of(lambda *p, q=quantize: q(*p, bits=3), parameters, upstream)
            assert np.isfinite(found[1]) and np.isfinite(found[2])


@pytest.mark.parametrize("normalized", [False, True])
def test_zeros_of_a_relu_do_not_move_an_interval_that_begins_at_0(normalized):
    interval = [tf.constant(1.0), tf.constant(1.0)]
    x = np.array([0.3, 1.2], np.float32)
    with_zeros, upstream = np.concatenate([x, np.zeros(5, np.float32)]), np.array([0.7, -0.2, *[1.0] * 5], np.float32)

    def gradients(values, upstream):
        quantize = functools.partial(qil.quantize_activations, bits=4, normalized=normalized)
        return gradient_of(quantize, [tf.constant(values), *interval], upstream)[1:]

    np.testing.assert_array_equal(gradients(with_zeros, upstream), gradients(x, upstream[:2]))


@pytest.mark.parametrize("gamma", [None, 0.5, 1.0])
def test_weights_of_0_can_leave_it_where_the_interval_begins_at_0(gamma):
    parameters = [tf.zeros(3), tf.constant(1.0), tf.constant(1.0)]
    parameters += [] if gamma is None else [tf.constant(gamma)]
    gradient, *_ = gradient_of(functools.partial(qil.quantize_weights, bits=4), parameters, np.ones(3, np.float32))
    assert np.all(gradient > 0)
