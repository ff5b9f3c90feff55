"""What a file stores of an accumulating operator, and what Keras has to know of it to infer as the file does.

An integer layer adds products of integers, and its bias, in units of input step * weight step. At low bits that is
coarse: often more than a tenth of a step of its output. The weight step that counts is the folded one, |gamma| / sigma
times the trained one, and so is the bias: beta - mean * gamma / sigma (+ the layer's own bias, scaled), minus the lower
end that the quantizer behind it subtracts. Everything here is computed in float64, for training and export alike.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import tensorflow as tf

from tfqil import _host
from tfqil.numerics.int8 import LARGEST_INT8, int8_divisors
from tfqil.numerics.storable import storable
from tfqil.scheme.kinds import FOLDED, Kind, kind_of

# Bias codes stay below this, so that bias and accumulator together fit int32.
_LARGEST_BIAS_CODE = 2.0**29
# A channel without weights has a free step; its bias gets this many codes, exact in float32.
_CODES_OF_A_CONSTANT = 2.0**20
# The converter writes another step for smaller ones. Such a channel counts as one without weights.
_SMALLEST_STEP = 4e-9
# XNNPACK refuses multipliers of 256 and more. From 255.5 on any sum but 0 saturates the output, so that this one serves
# in place of larger ones.
_LARGEST_MULTIPLIER = 255.75


class Accumulator(NamedTuple):
    """An accumulator per channel: value = unit * sum + bias in Keras, and (sum + bias_code) * multiplier in the file.

    Attributes:
        unit: what one unit of the sum of products is worth, float32 (channels,); 0 where there is none.
        bias: the folded bias, float32 (channels,).
        bias_code: the integer that the file adds for it, minus the lower end, float32 (channels,).
        multiplier: file's input step * weight step / output step, float32 (channels,) as the runtime rounds it.
        is_exact: whether Keras computes the sum precisely enough to tell which integer it is.
    """

    unit: tf.Tensor
    bias: tf.Tensor
    bias_code: tf.Tensor
    multiplier: tf.Tensor
    is_exact: bool


def accumulator_behind(node: Any, output_step: tf.Tensor, lower: tf.Tensor) -> Accumulator | None:
    """The accumulator whose values a call of a layer produces for a quantizer; None if it is no accumulator."""
    if kind_of(node.layer) is Kind.CONCATENATE:
        return _joined(node, output_step, lower)
    if kind_of(node.layer) is Kind.AVERAGE_POOL:
        return _accumulator(
            node, _double(1.0 / math.prod(node.layer.pool_size)), _double(0.0), True, [], output_step, lower, True
        )
    folded = []
    while kind_of(node.layer) in FOLDED:
        folded.append(node)
        (node,) = _host.nodes_before(node)
    if _host.is_wrapped_kernel(node.layer):
        step, has_codes, fits = trained_step(node.layer)
        bias = _double(node.layer.layer.bias) if node.layer.layer.use_bias else _double(0.0)
        is_exact = node.layer.layer.compute_dtype == "float32"
        found = _accumulator(node, step, bias, has_codes, folded[::-1], output_step, lower, is_exact)
        return found if fits is None or found is None else _in_float(found, output_step, lower, fits)
    if folded:
        # On its own it is a depthwise layer, whose codes are the largest ones.
        step = _double(1.0 / LARGEST_INT8)
        return _accumulator(folded[-1], step, _double(0.0), True, folded[::-1], output_step, lower, True)
    return None


def stored_parameters(
    steps: Any, factors: Any, bias: Any, has_codes: Any, input_step: Any, output_step: Any
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """What the file stores of each channel of an accumulating operator.

    Forward: step = storable(steps |factors|), bias code = round(bias / (input step * step)). Steps whose bias would
        overflow int32 grow until it fits; a channel without codes gets a step for its bias alone.
    Shapes: steps, factors, bias and has_codes broadcast to (channels,), float64; the grids' steps are float32 scalars.

    Returns:
        The steps, float32; the bias codes, integers held as float64; and whether the channel has weights.
    """
    scaled = _double(steps) * tf.abs(_double(factors))
    bias, input_step = _double(bias), _double(input_step)
    has_weights = (scaled > _SMALLEST_STEP) & has_codes
    smallest = tf.abs(bias) / (_LARGEST_BIAS_CODE * input_step)
    constant = tf.maximum(tf.abs(bias), _double(output_step)) / (_CODES_OF_A_CONSTANT * input_step)
    constant = tf.maximum(constant, 2 * _SMALLEST_STEP)
    stored = storable(tf.where(has_weights, tf.maximum(scaled, smallest), constant))
    bias_codes = tf.round(bias / (input_step * _double(stored)))
    largest = storable(_LARGEST_MULTIPLIER * _double(output_step) / input_step)
    return tf.minimum(stored, largest), bias_codes, has_weights


def scale_and_shift(layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """What a batch normalization or a Rescaling multiplies each channel by, and adds to it, float64.

    Gamma / sigma and beta - mean * gamma / sigma.
    """
    if kind_of(layer) is Kind.AFFINE:
        return _double(layer.scale), _double(layer.offset)
    scale = 1.0 / tf.sqrt(_double(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale *= _double(layer.gamma)
    shift = -_double(layer.moving_mean) * scale
    return scale, shift + _double(layer.beta) if layer.center else shift


def input_grid(node: Any) -> Any:
    """The quantizing layer whose grid the first input of a call lies on; None if there is none."""
    while True:
        before = _host.nodes_before(node)
        if not before:
            return None
        node = before[0]
        if hasattr(node.layer, "quantizer"):
            return node.layer
        if kind_of(node.layer) not in (Kind.KEEP, Kind.CONCATENATE):
            return None


def _accumulator(
    node: Any,
    step: tf.Tensor,
    bias: tf.Tensor,
    has_codes: Any,
    folded: list[Any],
    output_step: tf.Tensor,
    lower: tf.Tensor,
    is_exact: bool,
) -> Accumulator | None:
    source = input_grid(node)
    if source is None:
        return None
    grid = source.stored_grid()
    input_step, factor = grid.step, 1.0 / _double(grid.normalizer)
    for layer in (entry.layer for entry in folded):
        scale, shift = scale_and_shift(layer)
        bias, factor = bias * scale + shift, factor * scale
    stored, codes, has_weights = stored_parameters(
        step, factor, bias - _double(lower), has_codes, input_step, output_step
    )
    unit = tf.where(has_weights, step * tf.abs(factor) * _double(input_step), tf.zeros_like(_double(stored)))
    return Accumulator(
        unit=tf.cast(unit, tf.float32),
        bias=tf.cast(tf.broadcast_to(bias, tf.shape(unit)), tf.float32),
        bias_code=tf.cast(codes, tf.float32),
        multiplier=input_step * stored / output_step,
        is_exact=is_exact,
    )


def _in_float(accumulator: Accumulator, output_step: tf.Tensor, lower: tf.Tensor, fits: tf.Tensor) -> Accumulator:
    """The accumulator of a layer that computes in float where its codes do not fit INT8: with the trained steps."""
    # A channel that the batch normalization multiplies by 0 is its bias alone, in units of 1.
    unit = tf.where(accumulator.unit > 0, accumulator.unit, tf.ones_like(accumulator.unit))
    bias = accumulator.bias - lower
    code = tf.where(accumulator.unit > 0, tf.round(bias / unit), bias)
    return accumulator._replace(
        bias_code=tf.where(fits, accumulator.bias_code, code),
        multiplier=tf.where(fits, accumulator.multiplier, unit / output_step),
    )


def _joined(node: Any, output_step: tf.Tensor, lower: tf.Tensor) -> Accumulator | None:
    """The accumulators of the branches of a concatenation along the channels."""
    shapes = [tensor.shape for tensor in node.keras_inputs]
    parts = [accumulator_behind(source, output_step, lower) for source in _host.nodes_before(node)]
    if node.layer.axis not in (-1, len(shapes[0]) - 1) or any(part is None for part in parts):
        return None
    found = [part for part in parts if part is not None]

    def concatenated(vectors: list[tf.Tensor]) -> tf.Tensor:
        return tf.concat([tf.broadcast_to(v, [s[-1]]) for v, s in zip(vectors, shapes, strict=True)], 0)

    return Accumulator(
        unit=concatenated([part.unit for part in found]),
        bias=concatenated([part.bias for part in found]),
        bias_code=concatenated([part.bias_code for part in found]),
        multiplier=concatenated([part.multiplier for part in found]),
        is_exact=all(part.is_exact for part in found),
    )


def trained_step(linear: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """The step of each channel's integers in the file before folding, and whether the channel has any; (channels,).

    It is a multiple of the trained step where only that makes the codes fit INT8. The third value says whether they do;
    None where all do that the quantizer knows.
    """
    quantizer, kernel = linear.weight_quantizer, linear.channels_last_kernel
    codes, step = quantizer.codes_and_step(kernel, linear.quantizer_variables)
    channels = len(_host.channel_shape(linear.layer, linear.kernel.shape))
    fits = None
    if quantizer.largest_code > LARGEST_INT8:
        divisors = int8_divisors(codes, channels)
        step, fits = step * divisors, tf.reduce_all(tf.abs(codes) <= LARGEST_INT8 * divisors)
    has_codes = tf.reduce_any(codes != 0, axis=list(range(codes.shape.rank - channels)))
    step = tf.broadcast_to(step, tf.shape(has_codes))
    return tf.reshape(_double(step), [-1]), tf.reshape(has_codes, [-1]), fits


def _double(value: Any) -> tf.Tensor:
    # A Python number must not become float32 on the way.
    if isinstance(value, (bool, int, float, list, tuple)):
        return tf.constant(value, tf.float64)
    return tf.cast(value, tf.float64)
