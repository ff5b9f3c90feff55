"""Why a straight-through estimator works: two linear layers, binary activation, Gaussian input.

A student y = v . step(Z w) learns a teacher y* = v* . step(Z w*), |w*| = 1, from inputs Z (units, features) of
independent standard normals. The derivative of step is 0, so w is trained by a coarse gradient, in which a slope mu'
stands for it: identity 1, ReLU 1{x > 0}, clipped ReLU 1{0 < x <= 1}. All averages over Z have closed forms.

Symbols: m units, J the m x m matrix of ones, 1 the vector of ones; theta the angle between w and w*; u = w / |w|,
n the unit vector orthogonal to u on the side of w*, so that w* = cos(theta) u + sin(theta) n.
Reference: Yin et al., "Understanding Straight-Through Estimator in Training Activation Quantized Neural Nets"
(ICLR 2019, arXiv 1903.05662); lemmas and equations are numbered as in the ICLR submission.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfqil.numerics.ste import COARSE_DERIVATIVES, require_known

Vector = NDArray[np.float64]

_SQRT_2PI = math.sqrt(2 * math.pi)
# Normal numbers drawn at once: 8 MB.
_BATCH_ENTRIES = 2**20
# A vector that was normalized in float32 still counts as one of unit length.
_UNIT_TOLERANCE = 1e-6
# Below it, the part of a unit vector across another one is rounding error and points nowhere.
_COLLINEAR = 1e-15
# Of the closed forms. It counts where all samples are the same number, as at the global minimiser.
_ROUNDING_ERROR = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """A student (v, w) and its teacher (v_star, w_star), in float64.

    Shapes: v, v_star (m,); w, w_star (n,). w is not 0, w_star has length 1, no entry is NaN or infinite.
    """

    v: Vector
    w: Vector
    v_star: Vector
    w_star: Vector

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _vector(getattr(self, field.name), field.name))
        for name in ("v", "w"):
            entries, star_entries = len(getattr(self, name)), len(getattr(self, f"{name}_star"))
            if entries != star_entries:
                raise ValueError(f"Got {name} of {entries} entries, expected the {star_entries} of {name}_star.")
        if not np.linalg.norm(self.w) > 0:
            raise ValueError("Got w = 0, expected another vector: it takes a direction to have an angle to w_star.")
        length = np.linalg.norm(self.w_star)
        if abs(length - 1) > _UNIT_TOLERANCE:
            raise ValueError(f"Got w_star of length {length:.6g}, expected 1: divide it by its length.")

    @functools.cached_property
    def direction(self) -> Vector:
        """The direction u of w, (n,)."""
        return self.w / np.linalg.norm(self.w)

    @functools.cached_property
    def angle(self) -> float:
        """The angle theta between w and w*: in radians, 0 to pi."""
        # arccos of the inner product would lose half of the digits near 0 and pi.
        return math.atan2(float(np.linalg.norm(self._across)), float(self.direction @ self.w_star))

    @functools.cached_property
    def normal(self) -> Vector:
        """The direction n, (n,); zeros where w and w* lie on one line."""
        length = np.linalg.norm(self._across)
        return self._across / length if length > _COLLINEAR else np.zeros_like(self.w)

    @functools.cached_property
    def _across(self) -> Vector:
        """The part of w* across w: sin(theta) n."""
        return self.w_star - (self.direction @ self.w_star) * self.direction


def loss(point: Point) -> float:
    """The population loss f = E[1/2 (y - y*)^2].

    Forward:
        f = 1/8 (v.(I + J)v - 2 v.((1 - 2 theta/pi) I + J)v* + v*.(I + J)v*)
          = 1/8 (|v - v*|^2 + (1.(v - v*))^2 + 4 theta/pi v.v*)
    Gradient: `gradient_v`, `gradient_w`. Shapes: a number.
    Reference: Lemma 1; the second line is the first one with its squares completed.
    """
    difference = point.v - point.v_star
    crossed = 4 * point.angle / math.pi * (point.v @ point.v_star)
    return float(difference @ difference + difference.sum() ** 2 + crossed) / 8


def gradient_v(point: Point) -> Vector:
    """The gradient of the loss in v, which is also the expected sample gradient.

    Forward: df/dv = 1/4 (I + J)v - 1/4 ((1 - 2 theta/pi) I + J)v*. Shapes: (m,).
    Reference: equations (6) and (10).
    """
    turned = 1 - 2 * point.angle / math.pi
    return (point.v + point.v.sum() - turned * point.v_star - point.v_star.sum()) / 4


def gradient_w(point: Point) -> Vector:
    """The gradient of the loss in w, which no sample shows: the derivative of step is 0 almost everywhere.

    Forward: df/dw = -(v.v*) / (2 pi |w|) n, for 0 < theta < pi. Shapes: (n,).

    Raises:
        ValueError: w and w* lie on one line, where the loss has a kink.
    Reference: equation (7).
    """
    if not np.any(point.normal):
        raise ValueError(f"Got the angle {point.angle:.4g}, expected one inside (0, pi): the loss has a kink there.")
    return -(point.v @ point.v_star) / (2 * math.pi * np.linalg.norm(point.w)) * point.normal


def coarse_gradient(point: Point, kind: str) -> Vector:
    """The expected coarse gradient E[g] in w, g = Z^T (mu'(Zw) * v) (y - y*), * entrywise.

    Forward, with h = |v|^2 + (1.v)^2 - (1.v)(1.v*) + v.v*:
        identity      (|v|^2 u - (v.v*) w*) / sqrt(2 pi)
        relu          (h u - (v.v*) (u + w*)) / (2 sqrt(2 pi))
        clipped_relu  (h p(0)/2 - (v.v*) p(theta)) u - (v.v*) q(theta) n
    p and q, the means E[z.u; z.n] over 0 < z.w <= 1, z.w* > 0 of a normal z, with T = 1/|w|, x = T/(sqrt(2) sin theta):
        p = ((1 - exp(-T^2/2)) (1 + erf(x cos theta)) + cos(theta) erf(x) - erf(x cos theta)) / (2 sqrt(2 pi))
        q = sin(theta) erf(x) / (2 sqrt(2 pi))
    Gradient: none, it is one. Shapes: (n,).

    Raises:
        ValueError: `kind` is not one of `COARSE_DERIVATIVES`.
    Reference: Lemma 7 and equation (14) for identity; Lemma 4 and equation (11) for relu, whose cos(theta/2) e is
    (u + w*)/2. The form of clipped_relu is derived here: it needs no quadrature and holds at 0 and pi as it stands.
    """
    require_known(kind)
    v, u = point.v, point.direction
    overlap = v @ point.v_star
    if kind == "identity":
        return (v @ v * u - overlap * point.w_star) / _SQRT_2PI
    common = v @ v + v.sum() ** 2 - v.sum() * point.v_star.sum() + overlap
    if kind == "relu":
        return (common * u - overlap * (u + point.w_star)) / (2 * _SQRT_2PI)
    upper = 1 / float(np.linalg.norm(point.w))
    along_at_zero, _ = _clipped_means(0.0, upper)
    along, across = _clipped_means(point.angle, upper)
    return (along_at_zero * common / 2 - overlap * along) * u - overlap * across * point.normal


def _clipped_means(theta: float, upper: float) -> tuple[float, float]:
    """p(theta) and q(theta) for T = upper."""
    cosine, sine = math.cos(theta), math.sin(theta)
    x = upper / (math.sqrt(2) * sine) if sine else math.inf
    error, projected = math.erf(x), math.erf(x * cosine)
    along = -math.expm1(-upper * upper / 2) * (1 + projected) + cosine * error - projected
    return along / (2 * _SQRT_2PI), sine * error / (2 * _SQRT_2PI)


def spurious_point(v_star: ArrayLike) -> tuple[Vector, bool]:
    """The v of the stationary point at theta = pi, and whether it is a local minimiser.

    Forward: v = (I + J)^-1 (J - I)v*; a minimiser if (1.v*)^2 < (m + 1)/2 |v*|^2. There E[g] of relu and clipped_relu
    is 0 and that of identity is 2 (m - 1) (1.v*)^2 / (sqrt(2 pi) (m + 1)^2) long, along w. Shapes: (m,).
    Reference: Proposition 1, Lemma 7; that of relu and clipped_relu is derived.
    """
    v_star = _vector(v_star, "v_star")
    exists = v_star.sum() ** 2 < (len(v_star) + 1) / 2 * (v_star @ v_star)
    return _best_v(v_star, -1.0), bool(exists)


def saddle_point(v_star: ArrayLike) -> tuple[Vector, float]:
    """The v and the angle of the saddle points.

    Forward, with D = (m + 1) |v*|^2 - (1.v*)^2:
        theta = pi/2 (m + 1) |v*|^2 / D,  v = (I + J)^-1 (J - (1.v*)^2/D I)v*
    Shapes: (m,) and a number in radians.

    Raises:
        ValueError: there is none, because there is no spurious minimiser either.
    Reference: Proposition 1.
    """
    v_star = _vector(v_star, "v_star")
    if not spurious_point(v_star)[1]:
        raise ValueError("Got a v_star without saddle points, expected (1.v_star)^2 < (m + 1)/2 |v_star|^2.")
    squares, squared_sum = (len(v_star) + 1) * (v_star @ v_star), v_star.sum() ** 2
    rest = squares - squared_sum
    return _best_v(v_star, -squared_sum / rest), float(math.pi / 2 * squares / rest)


def _best_v(v_star: Vector, turned: float) -> Vector:
    """The v at which the loss is least for an angle with 1 - 2 theta/pi = turned: (I + J)^-1 (turned I + J)v*."""
    return turned * v_star + (1 - turned) * v_star.sum() / (len(v_star) + 1)


def stationary_point_near(point: Point, *, tolerance: float = 1e-2) -> str | None:
    """The name of the stationary point that a point lies at: "global", "spurious", "saddle" or None.

    Forward: near means |v - v_0| <= tolerance |v*| and |theta - theta_0| <= tolerance. Units: radians.
    Reference: Proposition 1; the tolerance is ours.
    """
    candidates = {"global": (point.v_star, 0.0)}
    spurious, exists = spurious_point(point.v_star)
    if exists:
        candidates |= {"spurious": (spurious, math.pi), "saddle": saddle_point(point.v_star)}
    for name, (v, theta) in candidates.items():
        close = np.linalg.norm(point.v - v) <= tolerance * np.linalg.norm(point.v_star)
        if close and abs(point.angle - theta) <= tolerance:
            return name
    return None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A mean over samples and its standard error, entry by entry."""

    mean: Vector
    standard_error: Vector

    def deviation(self, expected: ArrayLike) -> float:
        """The largest distance of an entry from its expected value, in standard errors."""
        distance = np.abs(self.mean - np.asarray(expected, np.float64))
        return float(np.max(distance / np.maximum(self.standard_error, _ROUNDING_ERROR)))


def monte_carlo(point: Point, *, samples: int, seed: int = 0) -> dict[str, Estimate]:
    """The same averages from samples of Z: "loss", "gradient_v" and the coarse gradient of each kind by its name.

    Forward: means over independent Z, drawn in batches of 8 MB. Shapes: (), (m,), (n,).

    Raises:
        ValueError: there are fewer than two samples, which have no standard error.
    Reference: equations (1), (2) and (5).
    """
    if samples < 2:
        raise ValueError(f"Got samples {samples}, expected at least 2: one has no standard error.")
    sums: dict[str, Vector] = {}
    squares: dict[str, Vector] = {}
    for batch in _batches(point, samples, np.random.default_rng(seed)):
        for name, values in batch.items():
            sums[name] = sums.get(name, 0.0) + values.sum(axis=0)
            squares[name] = squares.get(name, 0.0) + np.square(values).sum(axis=0)
    return {name: _estimate(sums[name], squares[name], samples) for name in sums}


def _batches(point: Point, samples: int, generator: np.random.Generator) -> Iterator[dict[str, Vector]]:
    v, w, v_star, w_star = point.v, point.w, point.v_star, point.w_star
    most = max(1, _BATCH_ENTRIES // (v.size * w.size))
    for start in range(0, samples, most):
        z = generator.standard_normal((min(most, samples - start), v.size, w.size))
        inputs = z @ w
        positive = inputs > 0
        residual = positive @ v - (z @ w_star > 0) @ v_star
        upstream = residual[:, None] * v
        coarse = {kind: np.einsum("bm,bmn->bn", _slope(inputs, kind) * upstream, z) for kind in COARSE_DERIVATIVES}
        yield {"loss": residual**2 / 2, "gradient_v": positive * residual[:, None], **coarse}


def _slope(inputs: Vector, kind: str) -> Vector:
    """The slope mu' that stands for the derivative of step."""
    if kind == "identity":
        return np.ones_like(inputs)
    return ((inputs > 0) & (inputs <= (np.inf if kind == "relu" else 1))).astype(np.float64)


def _estimate(total: Vector, squares: Vector, samples: int) -> Estimate:
    mean = total / samples
    variance = np.maximum(squares / samples - mean**2, 0) * samples / (samples - 1)
    return Estimate(mean=mean, standard_error=np.sqrt(variance / samples))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Descent:
    """Where a descent ended, and what it passed through from the start on: three arrays (steps + 1,)."""

    end: Point
    losses: Vector
    # theta, in radians.
    angles: Vector
    # |w|: the theorem asks it to stay away from 0.
    lengths: Vector


def descend(start: Point, kind: str, *, learning_rate: float, steps: int) -> Descent:
    """Coarse gradient descent with population averages.

    Forward: v <- v - learning_rate E[dl/dv], w <- w - learning_rate E[g], both at the old (v, w).

    Raises:
        ValueError: `kind` is unknown, the learning rate is not positive, steps are negative, or an iterate is no point.
    Reference: Algorithm 1. Theorem 1: with relu, a small learning rate and |w| kept away from 0 the loss never rises,
    and (v, w) converges to a saddle point or a (local) minimiser. Near a spurious one that does not hold for identity,
    if 1.v* is not 0 and m > 1.
    """
    require_known(kind)
    if not learning_rate > 0:
        raise ValueError(f"Got the learning rate {learning_rate}, expected a positive one.")
    if steps < 0:
        raise ValueError(f"Got {steps} steps, expected 0 or more.")
    point = start
    passed = [_observe(point)]
    # A descent that diverges ends in a point that is refused: that says more than a warning of an overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            v = point.v - learning_rate * gradient_v(point)
            w = point.w - learning_rate * coarse_gradient(point, kind)
            point = dataclasses.replace(point, v=v, w=w)
            passed.append(_observe(point))
    losses, angles, lengths = np.transpose(passed)
    return Descent(end=point, losses=losses, angles=angles, lengths=lengths)


def _observe(point: Point) -> tuple[float, float, float]:
    """Loss, angle, |w|."""
    return loss(point), point.angle, float(np.linalg.norm(point.w))


def _vector(values: ArrayLike, name: str) -> Vector:
    vector = np.array(values, np.float64)
    if vector.ndim != 1 or not vector.size:
        raise ValueError(f"Got {name} of shape {vector.shape}, expected a vector with at least one entry.")
    if not np.all(np.isfinite(vector)):
        raise ValueError(f"Got {name} with NaN or infinity, expected finite numbers: let a descent take smaller steps.")
    return vector
