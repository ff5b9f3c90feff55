"""Straight-through estimators: what stands in for the derivative of a rounding, which is 0 almost everywhere.

Reference: Yin et al., "Understanding Straight-Through Estimator in Training Activation Quantized Neural Nets"
(arXiv 1903.05662), section 3.2 of the formulas: identity 1, ReLU 1{x > 0}, clipped ReLU 1{0 < x <= upper}.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfqil.numerics.finite import zero_unless

COARSE_DERIVATIVES = ("identity", "relu", "clipped_relu")


@tf.custom_gradient
def round_straight_through(x: tf.Tensor) -> Any:
    """Rounds to the nearest integer, ties to even.

    Forward: round(x). Gradient: 1. Shapes: any.
    """
    return tf.round(x), lambda upstream: upstream


@tf.custom_gradient
def replace_forward(x: tf.Tensor, value: tf.Tensor) -> Any:
    """Takes the value of one tensor and the gradient of another: `value` forward, identity in `x`.

    Forward: value. Gradient: 1 in x, none in value. Shapes: both the same.
    Reference: BinaryConnect-style projection, where the gradient at the quantized weights goes to the float ones.
    """
    return tf.identity(value), lambda upstream: (upstream, None)


def scale_gradient(x: tf.Tensor, factor: float, *, limit: float | None) -> tf.Tensor:
    """Passes a tensor on and scales its gradient.

    Forward: x. Gradient: clip(factor upstream, -limit, limit), or factor upstream without a limit. Shapes: any.
    Reference: how BCGD's authors train the resolution of an activation.
    """

    @tf.custom_gradient
    def scaled(x: tf.Tensor) -> Any:
        if limit is None:
            return tf.identity(x), lambda upstream: factor * upstream
        return tf.identity(x), lambda upstream: tf.clip_by_value(factor * upstream, -limit, limit)

    result: tf.Tensor = scaled(x)
    return result


def require_known(kind: str) -> None:
    """Raises one sentence unless `kind` is one of `COARSE_DERIVATIVES`.

    Raises:
        ValueError: it is not.
    """
    if kind not in COARSE_DERIVATIVES:
        raise ValueError(f"Got the estimator {kind!r}, expected one of {', '.join(COARSE_DERIVATIVES)}: choose one.")


def coarse_gradient(
    upstream: tf.Tensor, x: tf.Tensor, upper: tf.Tensor | float, kind: str = "clipped_relu"
) -> tf.Tensor:
    """What a quantized ReLU with levels up to `upper` passes on of its upstream gradient.

    Forward: upstream times identity 1; relu 1{x > 0}; clipped_relu 1{0 < x <= upper}. Gradient: none (it is one).
    Shapes: upstream and x the same, upper a scalar.

    Raises:
        ValueError: `kind` is not one of `COARSE_DERIVATIVES`.
    """
    require_known(kind)
    if kind == "identity":
        return upstream
    with tf.control_dependencies([upstream]):  # Or the graph computes the mask from the start, and keeps it.
        inside = x > 0 if kind == "relu" else (x > 0) & (x <= upper)
    return zero_unless(inside, upstream)
