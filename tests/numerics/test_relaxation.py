"""Relaxed and blended weights: golden vectors and trajectories, limits, and where gradients go."""

from __future__ import annotations

import functools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.numerics.golden_vectors import cases, require_expected
from tfqil.numerics import binary, lbw, qil, relaxation, ste, ternary, uniform

PROJECTIONS = {
    "binary": binary.project,
    "ternary": ternary.project,
    "uniform4": functools.partial(uniform.project, bits=4),
    "lbw_ternary": functools.partial(lbw.project, bits=2),
    "lbw_3": functools.partial(lbw.project, bits=3),
}
RELAXED = cases("relax")
TRAJECTORIES = cases("bcgd")

quick = hypothesis.settings(max_examples=60, deadline=None)
finite = hypothesis.extra.numpy.arrays(
    np.float32, 12, elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
)  # fmt: skip
each_projection = pytest.mark.parametrize("name", PROJECTIONS)
each_way = pytest.mark.parametrize("run", ["eager", "graph", "xla"])


def quantized(weights: tf.Tensor, name: str, channel_rank: int = 0) -> tf.Tensor:
    codes, scale = PROJECTIONS[name](weights, channel_rank)
    return ste.replace_forward(weights, codes * scale)


def relaxed(weights: tf.Tensor, strength: tf.Tensor, *, name: str) -> tf.Tensor:
    return relaxation.relax(weights, quantized(weights, name), strength)


@functools.cache
def compiled(function, name: str, run: str):
    """One function for all cases, so that weights of the same shape share a graph."""
    named = functools.partial(function, name=name)
    return named if run == "eager" else tf.function(named, jit_compile=run == "xla")


def normal(size: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


@each_way
@pytest.mark.parametrize("case", RELAXED, ids=lambda case: case["name"])
def test_relaxed_weights_are_the_golden_ones(case, run):
    function = compiled(relaxed, case["inputs"]["projection"], run)
    output = function(tf.constant(case["inputs"]["w"], tf.float32), tf.constant(case["inputs"]["lam"]))
    require_expected(case, {"output": output.numpy()})


def quantized_and_relaxed(weights: tf.Tensor, upstream: tf.Tensor, *, name: str) -> tuple[tf.Tensor, ...]:
    """The projection, the same by an infinite lambda, and the gradient of the latter."""
    with tf.GradientTape() as tape:
        tape.watch(weights)
        output = relaxed(weights, tf.constant(np.inf), name=name)
    return quantized(weights, name), output, tape.gradient(output, weights, output_gradients=upstream)


@each_way
@each_projection
def test_an_infinite_lambda_gives_the_projection_and_its_gradient_bit_for_bit(name, run):
    weights, upstream = normal(), normal(seed=1)
    weights[4], upstream[7] = np.inf, np.inf  # The other branch would make NaN of both.
    function = compiled(quantized_and_relaxed, name, run)
    expected, output, gradient = (t.numpy() for t in function(tf.constant(weights), tf.constant(upstream)))
    assert np.all(np.isfinite(output)) and output.tobytes() == expected.tobytes()
    assert gradient.tobytes() == upstream.tobytes()


@pytest.mark.parametrize("strength", [0.0, 1e-6, 0.3, 1.0, 359.0, 1e30, 3e38])
def test_the_gradient_at_the_relaxed_weights_goes_to_the_float_ones_unchanged(strength):
    weights, upstream = tf.constant(normal()), normal(seed=1)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        output = relaxed(weights, tf.constant(strength), name="ternary")
    gradient = tape.gradient(output, weights, output_gradients=tf.constant(upstream)).numpy()
    # Two shares whose sum is 1, each product rounded to half an ulp of itself, and their sum.
    np.testing.assert_array_max_ulp(gradient, upstream, 1)


@pytest.mark.parametrize("strength", [0.0, 0.5, 3.0, 359.0, np.inf])
def test_gradients_of_a_learned_interval_are_theta_times_theirs(strength):
    weights, upstream = tf.constant(normal()), tf.constant(normal(seed=1))
    interval = [tf.constant(0.9), tf.constant(0.7)]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(interval)
        hard = qil.quantize_weights(weights, *interval, bits=3)
        soft = relaxation.relax(weights, hard, tf.constant(strength))
    own = tape.gradient(hard, interval, output_gradients=upstream)
    found = tape.gradient(soft, interval, output_gradients=upstream)
    theta = 1.0 if np.isinf(strength) else strength / (1 + strength)
    # Sums of 60 float32 terms of either sign, each multiplied by theta first.
    np.testing.assert_allclose(found, theta * np.array(own), rtol=1e-5, atol=1e-5 * theta)


@each_projection
def test_the_share_of_the_projection_grows_with_lambda(name):
    weights = tf.constant(normal())
    target = quantized(weights, name).numpy()
    strengths = [0.0, 0.1, 1.0, 10.0, 1e4, np.inf]
    distances = [np.linalg.norm(relaxed(weights, tf.constant(s), name=name).numpy() - target) for s in strengths]
    np.testing.assert_array_equal(relaxed(weights, tf.constant(0.0), name=name), weights)
    assert np.all(np.diff(distances) < 0) and distances[-1] == 0


@pytest.mark.parametrize("strength", [0.3, 2.0, 40.0])
@pytest.mark.parametrize("name", ["binary", "ternary", "lbw_ternary", "lbw_3"])
def test_relaxed_weights_minimise_the_penalised_distance(name, strength):
    """1/2 ||x - w||^2 + lambda/2 dist(x, Q)^2, for projections that are exact."""
    weights = normal(8)
    best = relaxed(tf.constant(weights), tf.constant(strength), name=name).numpy()
    noise = np.random.default_rng(0).normal(size=(8, 3, 60)) * [[0.01], [0.1], [1.0]]
    candidates = np.c_[best, best[:, None] + noise.reshape(8, -1)].astype(np.float32)
    to_levels = candidates - quantized(tf.constant(candidates), name, channel_rank=1).numpy()
    objective = ((candidates - weights[:, None]) ** 2).sum(0) / 2 + strength / 2 * (to_levels**2).sum(0)
    # The first candidate is ours; 16 squares in float32.
    assert np.all(objective[0] <= objective * (1 + 1e-6))


@quick
@hypothesis.given(finite, finite)
def test_a_share_of_0_is_the_weights_and_one_of_1_the_projection(weights, target):
    for share in (0.0, tf.constant(0.0)):
        np.testing.assert_array_equal(relaxation.blend(weights, target, share), weights)
    for share in (1.0, tf.constant(1.0)):
        np.testing.assert_array_equal(relaxation.blend(weights, target, share), target)


@quick
@hypothesis.given(finite, finite, st.floats(0, 1, width=32, allow_subnormal=False))
def test_blended_weights_lie_between_the_two(weights, target, share):
    blended = relaxation.blend(weights, target, tf.constant(share)).numpy().astype(np.float64)
    # Two shares and a sum, each rounded to half an ulp; what falls below float32's smallest number becomes 0.
    slack = 2e-7 * np.maximum(np.abs(weights), np.abs(target)) + 2 * np.finfo(np.float32).tiny
    assert np.all(blended >= np.minimum(weights, target) - slack)
    assert np.all(blended <= np.maximum(weights, target) + slack)


def descended(inputs: dict, dtype: tf.DType) -> dict[str, np.ndarray]:
    """The trajectory of blended descent by this package's functions."""
    X, y, weights = (tf.constant(inputs[name], dtype) for name in ("X", "y", "start"))
    rho, eta = (tf.constant(inputs[name], dtype) for name in ("rho", "eta"))
    trajectory = {"float_weights": [], "weights": [], "loss": []}
    for _ in range(inputs["steps"] + 1):
        binary_weights = quantized(weights, "binary")
        residual = tf.linalg.matvec(X, binary_weights) - y
        for name, value in zip(
            trajectory, (weights, binary_weights, tf.reduce_mean(residual**2) / 2), strict=True
        ):  # fmt: skip
            trajectory[name].append(value.numpy())
        gradient = tf.linalg.matvec(X, residual, transpose_a=True) / tf.cast(tf.size(y), dtype)
        weights = relaxation.blend(weights, binary_weights, rho) - eta * gradient
    return {name: np.array(values) for name, values in trajectory.items()}


def descended_in_numpy(inputs: dict) -> dict[str, np.ndarray]:
    """The same in float64, written from the update (1 - rho) u + rho w - eta g."""
    X, y, u = (np.array(inputs[name]) for name in ("X", "y", "start"))
    floats, weights = [], []
    for _ in range(inputs["steps"] + 1):
        w = np.where(u < 0, -1.0, 1.0) * np.abs(u).mean()
        floats.append(u)
        weights.append(w)
        u = (1 - inputs["rho"]) * u + inputs["rho"] * w - inputs["eta"] * (X.T @ (X @ w - y)) / len(y)
    loss = [((X @ w - y) ** 2).sum() / (2 * len(y)) for w in weights]
    return {"float_weights": np.array(floats), "weights": np.array(weights), "loss": np.array(loss)}


@pytest.mark.parametrize("case", TRAJECTORIES, ids=lambda case: case["name"])
def test_blended_descent_follows_the_golden_trajectory(case):
    require_expected(case, descended(case["inputs"], tf.float32))
    exact, independent = descended(case["inputs"], tf.float64), descended_in_numpy(case["inputs"])
    for name, want in case["expected"].items():
        largest = np.abs(want).max()
        # The golden numbers have ten digits.
        np.testing.assert_allclose(exact[name], want, rtol=1e-9, atol=1e-9 * largest, err_msg=name)
        np.testing.assert_allclose(exact[name], independent[name], rtol=1e-10, atol=1e-12 * largest, err_msg=name)
