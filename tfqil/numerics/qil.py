"""Quantization interval learning (QIL): intervals trained by the task loss.

A transformer prunes below the interval [center - half_width, center + half_width], clips above it and maps it to
[0, 1]; a discretizer rounds that to equal levels. Gradients of the transformer are exact, the discretizer is passed
straight through.

Symbols: c center, d half_width, l = c - d lower end, u = (|w| - l) / (2 d), q the largest code.
Reference: Jung et al., "Learning to Quantize Deep Networks by Optimizing Quantization Intervals with Task Loss"
(CVPR 2019, arXiv 1808.05779), equations (2), (3), (5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfqil.numerics.affine import rounded_to_steps
from tfqil.numerics.clip import clip
from tfqil.numerics.finite import finite_or_zero, zero_unless
from tfqil.numerics.grid import activation_levels, weight_levels
from tfqil.numerics.held_once import held_once

# Takes a center and a half-width, returns those of a valid interval.
Projection = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

# Keeps u^(gamma-1) and ln(u) finite at the lower end, where the paper's slope is infinite for gamma < 1.
_SMALLEST_U = 1e-7


def quantize_weights(
    weights: tf.Tensor,
    center: tf.Tensor,
    half_width: tf.Tensor,
    gamma: tf.Tensor | None = None,
    *,
    bits: int,
    normalized: bool = False,
    project: Projection | None = None,
) -> tf.Tensor:
    """Quantizes weights to symmetric levels by a learned interval of their magnitude.

    Forward:
        T = clip(u, 0, 1)^gamma,  codes = sign(w) round(q T),  q = 2^(bits-1) - 1
        output = (c + d) codes / q, or codes / q if `normalized` (the paper's form)
    Gradient, with S the output's scale (c + d or 1), 0 outside the interval except for the scale's own terms:
        d/dw     = S gamma u^(gamma-1) / (2 d)
        d/dc     = [codes / q] - S gamma u^(gamma-1) sign(w) / (2 d)
        d/dd     = [codes / q] + S gamma u^(gamma-1) sign(w) (1 - 2 u) / (2 d)
        d/dgamma = S u^gamma ln(u) sign(w)
        [.] only in the scaled form; gradients of c, d, gamma are summed over the entries that share them, and
        a sum that is not finite counts as 0: NaN cannot enter an interval.
    Given `project`, c and d are what it makes of center and half_width; gradients pass it straight through.
    Shapes: weights any; center, half_width, gamma scalar or the last axes of weights. Units: those of the weights.
    Reference: QIL, equations (2) and (3); the scale is this package's choice.
    """
    if gamma is None:
        return _linear_weights(weights, center, half_width, bits, normalized, project)
    return _power_weights(weights, center, half_width, gamma, bits, normalized, project)


def weight_codes(
    weights: tf.Tensor, center: tf.Tensor, half_width: tf.Tensor, gamma: tf.Tensor | None = None, *, bits: int
) -> tf.Tensor:
    """The integers of `quantize_weights`, as floats; same shapes."""
    levels = float(weight_levels(bits))
    if gamma is None:
        return tf.round(_signed_transform(weights, center - half_width, 2.0 * half_width) * levels)
    return tf.sign(weights) * tf.round(_transform(weights, center, half_width) ** gamma * levels)


def quantize_activations(
    inputs: tf.Tensor,
    center: tf.Tensor | None,
    half_width: tf.Tensor,
    *,
    bits: int,
    normalized: bool = False,
    project: Projection | None = None,
) -> tf.Tensor:
    """Quantizes activations to the levels of a learned interval; what lies below it becomes 0.

    Forward:
        codes = round(q clip((x - l) / (2 d), 0, 1)),  q = 2^bits - 1
        output = 2 d codes / q, or codes / q if `normalized` (the paper's form)
    Gradient, scaled form, y the output:
        inside   d/dx = 1    d/dc = -1    d/dd = (y - (x - l)) / d + 1      inside: l < x <= c + d
        above    0           0            2
        below    0           0            0          so zeros of a ReLU do not move l = 0
        `normalized`: inside 1 / (2 d), -1 / (2 d), (c - x) / (2 d^2), elsewhere 0. Gradients of c and d are summed;
        a sum that is not finite counts as 0.
    Without a center, c = d: the lower end stays 0, and d has the gradients of both.
    Given `project`, c and d are what it makes of center and half_width; gradients pass it straight through. Without a
        center it gets d twice, and its half-width counts.
    Shapes: inputs any; center, half_width scalars. Units: those of the inputs.
    Reference: QIL, equations (2) and (5); the scale is this package's choice.
    """
    levels = float(activation_levels(bits))
    if center is None:
        return _activations_from_zero(inputs, half_width, bits, normalized, project)

    @tf.custom_gradient
    def quantize(inputs: tf.Tensor, center: tf.Tensor, half_width: tf.Tensor) -> Any:
        if project is not None:
            center, half_width = project(center, half_width)
        lower, width, step = _activation_scalars(center, half_width, levels, normalized)
        distance = tf.maximum(inputs - lower, 0.0)
        outputs = rounded_to_steps(distance / width if normalized else distance, step, bits=bits)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            # Computed again, not kept, since activations are what training needs memory for.
            with tf.control_dependencies([upstream]):  # Not before it is needed.
                is_inside = (inputs > lower) & (inputs <= center + half_width)
            inside = zero_unless(is_inside, upstream)
            # Those of a normalized output do not depend on the outputs.
            by_outputs = None if normalized else _dot(upstream, outputs)
            sums = (tf.reduce_sum(inside), _dot(inside, inputs), by_outputs)
            grad_center, grad_half_width = _gradients_of_activations(*sums, center, half_width)
            return inside * (1.0 / width) if normalized else inside, grad_center, grad_half_width

        return outputs, gradient

    result: tf.Tensor = quantize(inputs, center, half_width)
    return result


def pruning_threshold(
    center: tf.Tensor, half_width: tf.Tensor, gamma: tf.Tensor | float = 1.0, *, levels: int
) -> tf.Tensor:
    """The magnitude from which a code is no longer 0: c - d + 2 d (0.5 / q)^(1 / gamma)."""
    return center - half_width + 2.0 * half_width * (0.5 / levels) ** (1.0 / gamma)


def clipping_threshold(
    center: tf.Tensor, half_width: tf.Tensor, gamma: tf.Tensor | float = 1.0, *, levels: int
) -> tf.Tensor:
    """The magnitude from which a code is the largest: c - d + 2 d (1 - 0.5 / q)^(1 / gamma)."""
    return center - half_width + 2.0 * half_width * (1.0 - 0.5 / levels) ** (1.0 / gamma)


def project_interval(center: tf.Tensor, half_width: tf.Tensor, floor: float) -> tuple[tf.Tensor, tf.Tensor]:
    """The nearest interval with half_width >= floor and lower end >= 0; it keeps the upper end where it can.

    Forward: c < d becomes c = d = (c + d) / 2 (the orthogonal projection), then d >= floor and c >= d.
    """
    half_width = tf.where(center < half_width, (center + half_width) / 2.0, half_width)
    half_width = tf.maximum(half_width, floor)
    return tf.maximum(center, half_width), half_width


def _activations_from_zero(
    inputs: tf.Tensor, half_width: tf.Tensor, bits: int, normalized: bool, project: Projection | None
) -> tf.Tensor:
    """Without a lower end there is nothing to subtract, and one sum less to take."""

    @tf.custom_gradient
    def quantize(inputs: tf.Tensor, half_width: tf.Tensor) -> Any:
        if project is not None:
            _, half_width = project(half_width, half_width)
        _, width, step = _activation_scalars(half_width, half_width, float(activation_levels(bits)), normalized)
        positive = tf.maximum(inputs, 0.0)
        outputs = rounded_to_steps(positive / width if normalized else positive, step, bits=bits)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with tf.control_dependencies([upstream]):  # Not before it is needed.
                is_inside = (inputs > 0.0) & (inputs <= width)
            inside = zero_unless(is_inside, upstream)
            by_inputs, by_outputs = _dot(inside, inputs), None if normalized else _dot(upstream, outputs)
            grad_half_width = _gradient_from_zero(by_inputs, by_outputs, half_width)
            return inside * (1.0 / width) if normalized else inside, grad_half_width

        return outputs, gradient

    result: tf.Tensor = quantize(inputs, half_width)
    return result


@held_once
def _gradient_from_zero(by_inputs: tf.Tensor, by_outputs: tf.Tensor | None, half_width: tf.Tensor) -> tf.Tensor:
    """That of the half-width where it is the center too; sums as in `_gradients_of_activations`."""
    if by_outputs is None:
        return finite_or_zero(-by_inputs / (2.0 * half_width * half_width))
    return finite_or_zero((by_outputs - by_inputs) / half_width)


@held_once
def _activation_scalars(
    center: tf.Tensor, half_width: tf.Tensor, levels: float, normalized: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The lower end and the width of an interval, and the step of the outputs."""
    width = 2.0 * half_width
    return center - half_width, width, (tf.ones_like(width) if normalized else width) * (1.0 / levels)


@held_once
def _gradients_of_activations(
    total: tf.Tensor, by_inputs: tf.Tensor, by_outputs: tf.Tensor | None, center: tf.Tensor, half_width: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Those of center and half-width.

    Args:
        total: the sum of what arrives inside the interval.
        by_inputs: the same, weighted by the inputs.
        by_outputs: the sum of what arrives anywhere, weighted by the outputs; None for a normalized output.
        center: of the interval.
        half_width: of the interval.
    """
    lower, width = center - half_width, 2.0 * half_width
    u = (by_inputs - lower * total) / width
    if by_outputs is None:
        slope = 1.0 / width
        return finite_or_zero(-slope * total), finite_or_zero(slope * (total - 2.0 * u))
    # 2 codes / q of all entries, and (1 - 2 u) of those inside.
    return finite_or_zero(-total), finite_or_zero(by_outputs / half_width + total - 2.0 * u)


@held_once
def _weight_scalars(
    center: tf.Tensor, half_width: tf.Tensor, levels: float, normalized: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """The lower end and the width of an interval, and the scale and the step of the outputs."""
    scale = tf.ones_like(center) if normalized else center + half_width
    return center - half_width, 2.0 * half_width, scale, scale * (1.0 / levels)


@held_once
def _gradients_of_weights(
    by_outputs: tf.Tensor | None, aligned: tf.Tensor, by_distance: tf.Tensor, scale: tf.Tensor, half_width: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Those of center and half-width.

    Args:
        by_outputs: the sum of what arrives anywhere, weighted by the outputs; None for a normalized output.
        aligned: the sum of what is passed on inside the interval, times the signs of the weights.
        by_distance: the same, weighted by |w| - c.
        scale: of the outputs.
        half_width: of the interval.
    """
    own = tf.zeros_like(scale) if by_outputs is None else by_outputs / scale
    # d (1 - 2 u) = c - |w|
    return finite_or_zero(own - aligned), finite_or_zero(own - by_distance / half_width)


def _linear_weights(
    weights: tf.Tensor,
    center: tf.Tensor,
    half_width: tf.Tensor,
    bits: int,
    normalized: bool,
    project: Projection | None,
) -> tf.Tensor:
    levels = float(weight_levels(bits))

    @tf.custom_gradient
    def quantize(weights: tf.Tensor, center: tf.Tensor, half_width: tf.Tensor) -> Any:
        if project is not None:
            center, half_width = project(center, half_width)
        lower, width, scale, step = _weight_scalars(center, half_width, levels, normalized)
        outputs = tf.round(_signed_transform(weights, lower, width) * levels) * step

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            with tf.control_dependencies([upstream]):  # Or the graph computes and keeps it from the start.
                from_center, sign = tf.abs(weights) - center, tf.sign(weights)
                inside = tf.abs(from_center) <= half_width
            passed = zero_unless(inside, upstream) * (scale / width)
            aligned = passed * sign
            by_outputs = None if normalized else _sum_to(upstream * outputs, center)
            sums = (by_outputs, _sum_to(aligned, center), _sum_to(aligned * from_center, center))
            return passed, *_gradients_of_weights(*sums, scale, half_width)

        return outputs, gradient

    result: tf.Tensor = quantize(weights, center, half_width)
    return result


def _power_weights(
    weights: tf.Tensor,
    center: tf.Tensor,
    half_width: tf.Tensor,
    gamma: tf.Tensor,
    bits: int,
    normalized: bool,
    project: Projection | None,
) -> tf.Tensor:
    levels = float(weight_levels(bits))

    @tf.custom_gradient
    def quantize(weights: tf.Tensor, center: tf.Tensor, half_width: tf.Tensor, gamma: tf.Tensor) -> Any:
        if project is not None:
            center, half_width = project(center, half_width)
        width = 2.0 * half_width
        scale = 1.0 if normalized else center + half_width
        transformed = _transform(weights, center, half_width) ** gamma
        outputs = tf.sign(weights) * tf.round(transformed * levels) * (scale * (1.0 / levels))

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            with tf.control_dependencies([upstream]):  # As above.
                magnitude, sign = tf.abs(weights), tf.sign(weights)
                u = _transform(weights, center, half_width)
            safe = tf.maximum(u, _SMALLEST_U)
            inside = (magnitude >= center - half_width) & (magnitude <= center + half_width)
            arriving = zero_unless(inside, upstream) * scale
            passed = arriving * (gamma * safe ** (gamma - 1.0) / width)
            aligned = passed * sign
            own = 0.0 if normalized else _sum_to(upstream * outputs, center) / scale
            grad_center = own - _sum_to(aligned, center)
            grad_half_width = own + _sum_to(aligned * (1.0 - 2.0 * u), center)
            grad_gamma = _sum_to(arriving * sign * safe**gamma * tf.math.log(safe), gamma)
            return passed, finite_or_zero(grad_center), finite_or_zero(grad_half_width), finite_or_zero(grad_gamma)

        return outputs, gradient

    result: tf.Tensor = quantize(weights, center, half_width, gamma)
    return result


def _signed_transform(weights: tf.Tensor, lower: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """sign(w) clip((|w| - lower) / width, 0, 1) as a soft threshold, which needs neither sign nor magnitude."""
    excess = weights - clip(weights, -lower, lower)
    return clip(excess, -width, width) / width


def _transform(weights: tf.Tensor, center: tf.Tensor, half_width: tf.Tensor) -> tf.Tensor:
    return clip((tf.abs(weights) - (center - half_width)) / (2.0 * half_width), 0.0, 1.0)


def _sum_to(values: tf.Tensor, parameter: tf.Tensor) -> tf.Tensor:
    """Sums over the leading axes that `parameter` does not have."""
    return tf.reduce_sum(values, axis=list(range(values.shape.rank - parameter.shape.rank)))


def _dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """The sum of products; not as a product of matrices, for which TensorFlow uses one thread."""
    return tf.reduce_sum(a * b)
