"""The bias on the grid of the accumulator.

An integer layer stores its bias in units of input step * weight step, which is coarse at low bits: often larger than
a tenth of a step of its output. Inference in Keras rounds the bias the same way, so that it computes what the file
computes. The bias that counts is the folded one: beta - mean * gamma / sigma (+ the layer's own bias, scaled), minus
the lower end that the next activation quantizer subtracts.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfqil import _host
from tfqil.numerics.int8 import LARGEST_INT8, int8_divisors
from tfqil.scheme.kinds import Kind, kind_of


def bias_rounding(layer: Any) -> tf.Tensor | None:
    """What rounding the bias adds to each channel of the tensor that a QuantizeActivation layer reads.

    Forward: u round(b / u) - b, with u = input step * weight step * |gamma| / sigma and b the folded bias.
    Shapes: (channels,); None if no linear layer produces the tensor, or its inputs are on no grid.
    """
    before = _host.layers_before(layer)
    _, _, lower = layer.quantizer.step_zero_lower(layer.quantizer_variables)
    return _rounding_behind(before[0], lower) if len(before) == 1 else None


def _rounding_behind(source: Any, lower: tf.Tensor) -> tf.Tensor | None:
    """The rounding of the tensor that a layer produces."""
    if kind_of(source) is Kind.CONCATENATE:
        return _joined(source, lower)
    norm = None
    if kind_of(source) is Kind.NORM:
        source, norm = _host.layers_before(source)[0], source
    if not hasattr(source, "weight_quantizer"):
        return None
    input_step = _input_step(source)
    return None if input_step is None else _rounding(source, norm, input_step, lower)


def _joined(concatenate: Any, lower: tf.Tensor) -> tf.Tensor | None:
    """The roundings of the branches of a concatenation along the channels."""
    shapes = concatenate.input_shape
    if concatenate.axis not in (-1, len(shapes[0]) - 1):
        return None
    parts = []
    for source, shape in zip(_host.layers_before(concatenate), shapes, strict=True):
        part = _rounding_behind(source, lower)
        parts.append(tf.zeros(shape[-1]) if part is None else part)
    return tf.concat(parts, 0)


def _rounding(linear: Any, norm: Any, input_step: tf.Tensor, lower: tf.Tensor) -> tf.Tensor:
    unit = _stored_step(linear) * input_step
    bias = linear.layer.bias if linear.layer.use_bias else tf.constant(0.0)
    if norm is not None:
        scale = tf.math.rsqrt(norm.moving_variance + norm.epsilon)
        if norm.scale:
            scale *= norm.gamma
        bias = (bias - norm.moving_mean) * scale
        if norm.center:
            bias += norm.beta
        unit = unit * tf.abs(scale)
    bias = bias - lower
    # A channel without codes, or that the batch normalization multiplies by 0, has no accumulator.
    return tf.where(unit > 0, tf.round(tf.math.divide_no_nan(bias, unit)) * unit - bias, tf.zeros_like(unit + bias))


def _stored_step(linear: Any) -> tf.Tensor:
    """The step of each channel in the file, (channels,); 0 for channels without codes, whose bias is stored by itself.

    It is a multiple of the trained step where only that makes the codes fit INT8.
    """
    quantizer, kernel = linear.weight_quantizer, tf.convert_to_tensor(linear.kernel)
    codes, step = quantizer.codes_and_step(kernel, linear.quantizer_variables)
    channels = len(_host.channel_shape(linear.layer, kernel.shape))
    if quantizer.largest_code > LARGEST_INT8:
        step = step * int8_divisors(codes, channels)
    has_codes = tf.reduce_any(codes != 0, axis=list(range(codes.shape.rank - channels)))
    return tf.reshape(tf.where(has_codes, step, tf.zeros_like(step)), [-1])


def _input_step(linear: Any) -> tf.Tensor | None:
    """The step of the grid that a layer's input lies on."""
    source = linear
    while True:
        before = _host.layers_before(source)
        if not before:
            return None
        source = before[0]
        if hasattr(source, "quantizer"):
            return source.quantizer.step_zero_lower(source.quantizer_variables)[0]
        if kind_of(source) not in (Kind.KEEP, Kind.CONCATENATE):
            return None
