"""The two-linear-layer model: closed forms against golden vectors, samples and the paper's lemmas; its descents."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from tests.numerics.golden_vectors import cases, require_expected
from tfqil.numerics import two_layer
from tfqil.numerics.ste import COARSE_DERIVATIVES

CASES = cases("two_layer")
# A teacher with spurious minimisers and saddle points: (1.v*)^2 = 4 < (4 + 1)/2 |v*|^2 = 11.25.
V_STAR = np.array([1.5, 1.0, 0.5, -1.0])
W_STAR = np.array([0.6, 0.0, -0.8])
SPURIOUS_V, _ = two_layer.spurious_point(V_STAR)
# Sums of at most a hundred terms of size 1 to 10 in float64.
ROUNDING = 1e-12


def name_of(case: dict[str, Any]) -> str:
    return case["name"]


def point(v=(0.4, -0.3, 0.9, 0.2), w=(0.5, 1.1, -0.2), v_star=V_STAR, w_star=W_STAR) -> two_layer.Point:
    return two_layer.Point(v=v, w=w, v_star=v_star, w_star=w_star)


def at_angle(theta: float, *, v=SPURIOUS_V, length: float = 1.0) -> two_layer.Point:
    """A point whose w has the given angle to w_star."""
    return point(v=v, w=length * (math.cos(theta) * W_STAR + math.sin(theta) * np.array([0.8, 0.0, 0.6])))


def random_points(count: int, *, length: float | None = None) -> list[two_layer.Point]:
    generator = np.random.default_rng(3)
    points = []
    for _ in range(count):
        v, w = generator.standard_normal(4), generator.standard_normal(3)
        points.append(point(v=v, w=w if length is None else length * w / np.linalg.norm(w)))
    return points


def closed_forms(at: two_layer.Point) -> dict[str, Any]:
    """What `monte_carlo` estimates, under the same names."""
    coarse = {kind: two_layer.coarse_gradient(at, kind) for kind in COARSE_DERIVATIVES}
    return {"loss": two_layer.loss(at), "gradient_v": two_layer.gradient_v(at), **coarse}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_closed_forms_match_the_golden_vectors(case):
    at = two_layer.Point(**case["inputs"])
    spurious_v, spurious_exists = two_layer.spurious_point(at.v_star)
    got = {
        "angle": at.angle,
        "loss": two_layer.loss(at),
        "grad_v": two_layer.gradient_v(at),
        "spurious_v": spurious_v,
        "spurious_exists": spurious_exists,
    }
    if "grad_w" in case["expected"]:
        got["grad_w"] = two_layer.gradient_w(at)
    got |= {f"coarse_{kind}": two_layer.coarse_gradient(at, kind) for kind in COARSE_DERIVATIVES}
    require_expected(case, got)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_samples_lie_within_five_standard_errors_of_every_closed_form(case):
    at = two_layer.Point(**case["inputs"])
    expected = closed_forms(at)
    estimates = two_layer.monte_carlo(at, samples=50_000, seed=1)
    assert set(estimates) == set(expected)
    for name, estimate in estimates.items():
        assert estimate.mean.shape == estimate.standard_error.shape == np.shape(expected[name])
        assert estimate.deviation(expected[name]) <= 5, name


def test_a_standard_error_shrinks_with_the_root_of_the_samples_and_says_how_far_means_scatter():
    few = [two_layer.monte_carlo(point(), samples=1_000, seed=seed)["relu"] for seed in range(100)]
    scatter = np.std([estimate.mean for estimate in few], axis=0)
    # The deviation of 100 numbers is itself known to 7 %; three of those.
    np.testing.assert_allclose(np.mean([estimate.standard_error for estimate in few], axis=0), scatter, rtol=0.21)
    many = two_layer.monte_carlo(point(), samples=100_000)["relu"]
    np.testing.assert_allclose(10 * many.standard_error, few[0].standard_error, rtol=0.2)


def test_batches_change_neither_the_samples_nor_their_statistics(monkeypatch):
    at_once = two_layer.monte_carlo(point(), samples=1_001, seed=5)
    monkeypatch.setattr(two_layer, "_BATCH_ENTRIES", 12 * 10)
    in_batches = two_layer.monte_carlo(point(), samples=1_001, seed=5)
    for name, estimate in at_once.items():
        np.testing.assert_allclose(in_batches[name].mean, estimate.mean, atol=ROUNDING)
        np.testing.assert_allclose(in_batches[name].standard_error, estimate.standard_error, atol=ROUNDING)


def test_both_gradients_are_those_of_the_loss():
    step = 1e-5
    for at in random_points(10):
        for name, gradient in (("v", two_layer.gradient_v(at)), ("w", two_layer.gradient_w(at))):
            for index, slope in enumerate(gradient):
                ends = []
                for sign in (1, -1):
                    moved = getattr(at, name).copy()
                    moved[index] += sign * step
                    ends.append(two_layer.loss(dataclasses.replace(at, **{name: moved})))
                # A central difference: third derivatives of a few hundred times step^2, rounding eps / step.
                assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, abs=1e-7)


def test_the_clipped_relu_agrees_with_the_integrals_over_the_half_plane():
    nodes, node_weights = np.polynomial.legendre.leggauss(200)
    for at in random_points(20):
        theta, length, overlap = at.angle, np.linalg.norm(at.w), at.v @ at.v_star

        def means(theta, length=length):
            phi = (math.pi - theta) / 2 * nodes + theta / 2
            x = 1 / np.cos(phi) / length
            # xi(x), the integral of r^2 exp(-r^2/2) from 0 to x.
            xi = math.sqrt(math.pi / 2) * np.vectorize(math.erf)(x / math.sqrt(2)) - x * np.exp(-(x**2) / 2)
            integrals = [np.sum(node_weights * function(phi) * xi) for function in (np.cos, np.sin)]
            return (math.pi - theta) / 2 / (2 * math.pi) * np.array(integrals)

        (p, q), (p_at_zero, _) = means(theta), means(0.0)
        h = at.v @ at.v + at.v.sum() ** 2 - at.v.sum() * at.v_star.sum() + overlap
        middle = (at.direction + at.w_star) / np.linalg.norm(at.direction + at.w_star)
        expected = p_at_zero * h / 2 * at.direction - overlap * q / math.sin(theta / 2) * middle
        expected -= overlap * (p - q / math.tan(theta / 2)) * at.direction
        # 200 nodes integrate to rounding error: 100 give the same twelve digits.
        np.testing.assert_allclose(two_layer.coarse_gradient(at, "clipped_relu"), expected, atol=ROUNDING)


def test_a_clip_that_no_input_reaches_leaves_the_relu():
    # The square of 1/|w| overflows for the second length.
    for at in random_points(5, length=1e-3) + random_points(1, length=1e-155):
        relu, clipped = (two_layer.coarse_gradient(at, kind) for kind in ("relu", "clipped_relu"))
        np.testing.assert_allclose(clipped, relu, atol=ROUNDING)


def test_the_angle_keeps_its_digits_near_0_and_pi():
    for tiny in (1e-3, 1e-9, 1e-13):
        # w_star itself is rounded to 1e-16.
        assert at_angle(tiny).angle == pytest.approx(tiny, rel=0, abs=1e-15)
        assert math.pi - at_angle(math.pi - tiny).angle == pytest.approx(tiny, rel=0, abs=1e-15)
    assert point(w=-3 * W_STAR).angle == math.pi


def test_rounding_errors_at_the_minimisers_are_neither_directions_nor_deviations():
    w_star = np.array([0.3, -0.4, 0.7]) / np.linalg.norm([0.3, -0.4, 0.7])
    for scale in (-3.0, -0.1, 0.1, 0.7):
        on_one_line = point(v=V_STAR, w=scale * w_star, w_star=w_star)
        with pytest.raises(ValueError, match="kink"):
            two_layer.gradient_w(on_one_line)
        if scale > 0:  # The global minimiser: every sample is 0.
            for name, estimate in two_layer.monte_carlo(on_one_line, samples=100).items():
                assert estimate.deviation(closed_forms(on_one_line)[name]) < 0.01


def test_every_coarse_gradient_makes_an_acute_angle_with_the_gradient():
    for at in random_points(50):
        overlap, theta, length = at.v @ at.v_star, at.angle, np.linalg.norm(at.w)
        gradient = two_layer.gradient_w(at)
        product = {kind: two_layer.coarse_gradient(at, kind) @ gradient for kind in COARSE_DERIVATIVES}
        relu = math.sin(theta) / (2 * math.sqrt(2 * math.pi) ** 3 * length) * overlap**2
        assert product["relu"] == pytest.approx(relu, abs=ROUNDING)  # Lemma 5
        assert product["identity"] == pytest.approx(2 * relu, abs=ROUNDING)  # Lemma 8
        assert 0 < product["clipped_relu"] < product["relu"]


def test_only_the_identity_does_not_vanish_at_a_spurious_minimiser():
    at = point(v=SPURIOUS_V, w=-2 * W_STAR)
    np.testing.assert_allclose(two_layer.gradient_v(at), 0, atol=ROUNDING)
    np.testing.assert_allclose(two_layer.coarse_gradient(at, "relu"), 0, atol=ROUNDING)
    np.testing.assert_allclose(two_layer.coarse_gradient(at, "clipped_relu"), 0, atol=ROUNDING)
    units = len(V_STAR)
    length = 2 * (units - 1) / (math.sqrt(2 * math.pi) * (units + 1) ** 2) * V_STAR.sum() ** 2  # Lemma 7
    np.testing.assert_allclose(two_layer.coarse_gradient(at, "identity"), length * at.direction, atol=ROUNDING)


def test_the_identity_vanishes_there_too_if_the_entries_of_v_star_cancel():
    v_star = np.array([1.0, -2.0, 1.0])
    at = point(v=two_layer.spurious_point(v_star)[0], w=-W_STAR, v_star=v_star)
    np.testing.assert_allclose(two_layer.coarse_gradient(at, "identity"), 0, atol=ROUNDING)


def test_near_a_spurious_minimiser_the_identity_is_long_where_the_descent_of_the_loss_is_short():
    def ratio(distance: float, kind: str) -> float:
        at = at_angle(math.pi - distance, v=SPURIOUS_V + distance * np.array([1.0, -1.0, 2.0, 0.5]))
        coarse, gradient = two_layer.coarse_gradient(at, kind), two_layer.gradient_v(at)
        return coarse @ coarse / (gradient @ gradient + coarse @ two_layer.gradient_w(at))

    identity, relu = ([ratio(10.0**-power, kind) for power in range(1, 7)] for kind in ("identity", "relu"))
    assert np.all(np.diff(identity) > 0) and identity[-1] > 1e5  # (16): it grows without bound.
    assert max(relu) < 10  # (12): one constant bounds it.


def test_a_saddle_point_is_stationary_for_all_but_the_identity_and_no_minimiser():
    v, theta = two_layer.saddle_point(V_STAR)
    at = at_angle(theta, v=v)
    for gradient in (
        two_layer.gradient_v(at),
        two_layer.gradient_w(at),
        *(two_layer.coarse_gradient(at, kind) for kind in ("relu", "clipped_relu")),
    ):
        np.testing.assert_allclose(gradient, 0, atol=ROUNDING)
    assert np.linalg.norm(two_layer.coarse_gradient(at, "identity")) > 0.1
    around = [two_layer.loss(at_angle(theta + turn, v=v - 0.3 * turn * V_STAR)) for turn in (-0.1, 0.1)]
    assert min(around) < two_layer.loss(at) < two_layer.loss(at_angle(theta, v=v + 0.1))


@pytest.mark.parametrize("v_star", [(1.5, 1.0, 0.5, -1.0), (1.0, 1.0, 1.0, 1.0), (1.0, -1.0), (0.8, 0.7), (2.0,)])
def test_a_spurious_point_is_a_local_minimum_exactly_where_it_is_said_to_exist(v_star):
    v, exists = two_layer.spurious_point(v_star)
    generator = np.random.default_rng(0)
    best = two_layer.loss(point(v=v, w=-W_STAR, v_star=v_star))
    around = [
        two_layer.loss(
            point(
                v=v + 1e-3 * generator.standard_normal(v.size),
                w=-W_STAR + 1e-3 * generator.standard_normal(3),
                v_star=v_star,
            )
        )
        for _ in range(200)
    ]
    assert (min(around) >= best) == exists


# The longer w, the fewer inputs the clipped ReLU has a slope for, and the slower it is.
@pytest.mark.parametrize(("kind", "length"), [("relu", 4.0), ("clipped_relu", 2.0)])
def test_descent_lowers_the_loss_in_every_step_and_ends_at_a_global_or_spurious_minimiser(kind, length):
    ends = []
    for start in random_points(8, length=length):
        descent = two_layer.descend(start, kind, learning_rate=0.05, steps=1_500)
        assert descent.lengths.min() > 0.1, "The theorem asks |w| to stay away from 0."
        assert np.diff(descent.losses).max() <= ROUNDING
        ends.append(two_layer.stationary_point_near(descent.end))
    assert set(ends) == {"global", "spurious"}


@pytest.mark.parametrize("learning_rate", [0.05, 0.01])
def test_the_identity_is_repelled_from_a_spurious_minimiser_where_the_others_stay(learning_rate):
    start = at_angle(math.pi - 0.1, v=1.02 * SPURIOUS_V)
    steps = round(40 / learning_rate)
    least = two_layer.loss(at_angle(math.pi))
    for kind in ("relu", "clipped_relu"):
        descent = two_layer.descend(start, kind, learning_rate=learning_rate, steps=steps)
        assert np.diff(descent.losses).max() <= ROUNDING
        assert two_layer.stationary_point_near(descent.end) == "spurious"
        assert descent.losses[-1] == pytest.approx(least, rel=1e-4)
    descent = two_layer.descend(start, "identity", learning_rate=learning_rate, steps=steps)
    # It shortens w to 0 and turns it round; that costs |v.v*| / 2 at once.
    jump = abs(SPURIOUS_V @ V_STAR) / 2
    assert descent.lengths[steps // 2 :].max() < 0.15 * descent.lengths[0]
    assert np.diff(descent.losses).max() == pytest.approx(jump, rel=0.02)
    # And it never settles again: the loss goes on jumping, and stays above that of the minimiser it was driven from.
    second_half = descent.losses[steps // 2 :]
    assert np.count_nonzero(np.diff(second_half) > jump / 2) >= 10
    assert second_half.min() > 1.01 * least


def test_another_teacher_lets_the_identity_leave_the_spurious_minimiser_for_the_global_one():
    v_star = np.array([1.5, 1.0, -0.5])
    spurious_v, exists = two_layer.spurious_point(v_star)
    start = point(v=1.02 * spurious_v, w=np.array([-0.5, 0.1, 0.8]), v_star=v_star)
    ends = {kind: two_layer.descend(start, kind, learning_rate=0.05, steps=1_500) for kind in COARSE_DERIVATIVES}
    names = {kind: two_layer.stationary_point_near(descent.end) for kind, descent in ends.items()}
    assert exists and names == {"identity": "global", "relu": "spurious", "clipped_relu": "spurious"}
    # Not by descent: the loss jumps on the way.
    assert np.diff(ends["identity"].losses).max() > 0.1


def test_the_exact_spurious_minimiser_holds_the_relu_and_not_the_identity():
    start = point(v=SPURIOUS_V, w=-W_STAR)
    relu = two_layer.descend(start, "relu", learning_rate=0.1, steps=50)
    np.testing.assert_allclose(relu.lengths, 1, atol=ROUNDING)
    np.testing.assert_allclose(relu.end.v, SPURIOUS_V, atol=ROUNDING)
    rate = np.linalg.norm(two_layer.coarse_gradient(start, "identity"))
    identity = two_layer.descend(start, "identity", learning_rate=0.1, steps=5)
    np.testing.assert_allclose(identity.lengths, 1 - 0.1 * rate * np.arange(6), atol=ROUNDING)


def test_a_descent_remembers_its_start_and_follows_the_algorithm():
    start = point()
    descent = two_layer.descend(start, "relu", learning_rate=0.1, steps=1)
    np.testing.assert_array_equal(descent.end.v, start.v - 0.1 * two_layer.gradient_v(start))
    np.testing.assert_array_equal(descent.end.w, start.w - 0.1 * two_layer.coarse_gradient(start, "relu"))
    assert descent.losses.tolist() == [two_layer.loss(start), two_layer.loss(descent.end)]
    assert descent.angles.tolist() == [start.angle, descent.end.angle]
    assert two_layer.descend(start, "relu", learning_rate=0.1, steps=0).end is start


def test_stationary_points_are_recognised():
    v, theta = two_layer.saddle_point(V_STAR)
    assert two_layer.stationary_point_near(point(v=V_STAR, w=7 * W_STAR)) == "global"
    assert two_layer.stationary_point_near(point(v=SPURIOUS_V, w=-W_STAR)) == "spurious"
    assert two_layer.stationary_point_near(at_angle(theta, v=v)) == "saddle"
    assert two_layer.stationary_point_near(point()) is None


def test_a_point_does_not_change_with_the_array_it_was_made_from():
    v = np.array([0.4, -0.3, 0.9, 0.2])
    at = point(v=v)
    v[:] = 0
    assert at.v.tolist() == [0.4, -0.3, 0.9, 0.2] and at.v.dtype == np.float64
    json.dumps([two_layer.loss(at), at.angle])  # Plain numbers, no NumPy scalars.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"w": (0, 0, 0)}, "Got w = 0, expected another vector: it takes a direction to have an angle to w_star."),
        ({"w": (1, 2)}, "Got w of 2 entries, expected the 3 of w_star."),
        ({"v": (1, 2)}, "Got v of 2 entries, expected the 4 of v_star."),
        ({"v": [[1, 2, 3, 4]]}, "Got v of shape (1, 4), expected a vector with at least one entry."),
        ({"v": (), "v_star": ()}, "Got v of shape (0,), expected a vector with at least one entry."),
        ({"w_star": (1.2, 0, -1.6)}, "Got w_star of length 2, expected 1: divide it by its length."),
        (
            {"w": (math.inf, 0, 0)},
            "Got w with NaN or infinity, expected finite numbers: let a descent take smaller steps.",
        ),
    ],
)
def test_what_is_no_point_is_refused_in_a_sentence(wrong, message):
    with pytest.raises(ValueError) as caught:
        point(**wrong)
    assert str(caught.value) == message


def test_a_w_star_that_was_normalized_in_float32_is_accepted():
    w_star = np.float32([0.3, -0.4, 0.7])
    point(w_star=w_star / np.linalg.norm(w_star))


def test_other_bad_arguments_are_refused_in_a_sentence():
    for call, message in (
        (lambda: two_layer.coarse_gradient(point(), "tanh"), "Got the estimator 'tanh', expected one of identity, "),
        (lambda: two_layer.descend(point(), "tanh", learning_rate=1, steps=0), "Got the estimator 'tanh', expected "),
        (lambda: two_layer.descend(point(), "relu", learning_rate=0, steps=1), "Got the learning rate 0, expected a"),
        (lambda: two_layer.descend(point(), "relu", learning_rate=1, steps=-1), "Got -1 steps, expected 0 or more."),
        (lambda: two_layer.monte_carlo(point(), samples=1), "Got samples 1, expected at least 2: one has no standard"),
        (lambda: two_layer.gradient_w(point(w=-2 * W_STAR)), "Got the angle 3.142, expected one inside (0, pi): the"),
        (lambda: two_layer.saddle_point([1, 1, 1]), "Got a v_star without saddle points, expected (1.v_star)^2 < "),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value).startswith(message)


def test_a_descent_that_diverges_says_so():
    with pytest.raises(ValueError, match="expected finite numbers: let a descent take smaller steps"):
        two_layer.descend(point(), "relu", learning_rate=20, steps=1_000)
