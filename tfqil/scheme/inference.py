"""What the operators of a file compute, in Keras at inference: the levels of a tensor from what it is computed of.

Each formula is that of the runtime (`export/arithmetic.py`, where they are tested against it) in TensorFlow: integers
are recovered from the floats that stand for them, and rounded as the runtime does. So `q_model.predict` and the file
agree; what is left are sums of products so large that float32 does not hold them exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfqil import _host
from tfqil.numerics.storable import storable
from tfqil.scheme.accumulator import accumulator_behind, input_grid
from tfqil.scheme.frozen import held
from tfqil.scheme.kinds import Kind, kind_of

layers = _host.keras.layers

# The least offset of a SUB, in steps of its output: XNNPACK takes no scales that are much smaller.
SMALLEST_OFFSET = 2.0**-9


class StoredGrid(NamedTuple):
    """The grid of a tensor in a file: what is left after subtracting `lower` is step * (code - zero).

    Attributes:
        step: the step, float32 scalar; in Keras, which divides by the normalizer, it is step / normalizer.
        zero: the code of the value 0, float32 scalar.
        lower: what was subtracted, float32 scalar.
        normalizer: what the quantizer divides the tensor by, float32 scalar; 1 but for normalized outputs.
        bits: width of the codes.
    """

    step: tf.Tensor
    zero: tf.Tensor
    lower: tf.Tensor
    normalizer: tf.Tensor
    bits: int

    @property
    def zero_point(self) -> tf.Tensor:
        """The stored integer of the value 0: the highest level is stored as 127."""
        return 127.0 - float(2**self.bits - 1) + self.zero


def levels(layer: Any, grid: StoredGrid, inputs: tf.Tensor, operands: Any, site: int) -> tf.Tensor:
    """The levels x / step of a tensor, rounded as the runtime does, but not yet clipped.

    Args:
        layer: the quantizing layer.
        grid: of the layer.
        inputs: the tensor.
        operands: what the operator before it reads, if it is one of several operands.
        site: which of the tensors of the layer it is.
    """
    step, lower = grid.step, grid.lower
    node = _host.latest_node(layer, **({"site": site} if layer.sites > 1 else {}))
    before = _host.nodes_before(node)[0] if node is not None else None
    if before is None:
        return _of_floats(inputs, step, lower)
    if operands is not None:
        sources = [_grid_of(parent) for parent in _host.nodes_before(node)[1:]]
        operator = _OPERATORS.get(kind_of(before.layer))
        if operator is not None and all(source is not None for source in sources):
            grids = [source.stored_grid() for source in sources]
            integers = [tf.round(x / of_source.step) for x, of_source in zip(operands, grids, strict=True)]
            return operator(before.layer, integers, grids, grid)
    accumulator = held(lambda: accumulator_behind(before, step, lower))
    if accumulator is not None:
        return _of_accumulator(inputs, accumulator)
    source = _grid_of(before)
    if source is not None:
        return _shifted(inputs, source.stored_grid().step, lower, step)
    return _of_floats(inputs, step, lower)


def _grid_of(node: Any) -> Any:
    """The quantizing layer whose grid the output of a call lies on; None if there is none."""
    if hasattr(node.layer, "quantizer"):
        return node.layer
    return input_grid(node) if kind_of(node.layer) in (Kind.KEEP, Kind.CONCATENATE) else None


def _of_floats(inputs: tf.Tensor, step: tf.Tensor, lower: tf.Tensor) -> tf.Tensor:
    """QUANTIZE: a product with the rounded reciprocal."""
    return tf.round((inputs - lower) * (tf.ones_like(step) / step))


def _of_accumulator(inputs: tf.Tensor, accumulator: Any) -> tf.Tensor:
    """CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED: round(f32(sum + bias) * multiplier)."""
    sums = tf.math.divide_no_nan(inputs - accumulator.bias, accumulator.unit)
    if accumulator.is_exact:
        sums = tf.round(sums)
    return tf.round((sums + accumulator.bias_code) * accumulator.multiplier)


def _sum(layer: Any, integers: list[tf.Tensor], sources: list[StoredGrid], output: StoredGrid) -> tf.Tensor:
    """ADD, SUB."""
    first, second = (source.step / output.step for source in sources)
    sign = -1 if isinstance(layer, layers.Subtract) else 1
    return _fixed_point(integers[0], first, sign * integers[1], second)


def _shifted(inputs: tf.Tensor, source: tf.Tensor, lower: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """SUB of the lower end, which is stored as one step of a grid of its own."""
    offset = storable(tf.maximum(lower, step * SMALLEST_OFFSET))
    return _fixed_point(tf.round(inputs / source), source / step, -tf.ones_like(step), offset / step)


def _fixed_point(a: tf.Tensor, a_ratio: tf.Tensor, b: tf.Tensor, b_ratio: tf.Tensor) -> tf.Tensor:
    """(M_a a + M_b b + 2^(n-1)) >> n, n = 20 - floor(log2(max ratio)), M = round(ratio 2^n): ties go up."""
    exponent = tf.bitwise.right_shift(tf.bitcast(tf.maximum(a_ratio, b_ratio), tf.int32), 23) - 127
    shift = 20 - exponent
    power = tf.bitcast(tf.bitwise.left_shift(shift + 127, 23), tf.float32)
    total = tf.bitwise.left_shift(tf.ones_like(shift), shift - 1)
    for values, ratio in ((a, a_ratio), (b, b_ratio)):
        total += tf.cast(tf.round(ratio * power), tf.int32) * tf.cast(values, tf.int32)
    return tf.cast(tf.bitwise.right_shift(total, shift), tf.float32)


def _product(layer: Any, integers: list[tf.Tensor], sources: list[StoredGrid], output: StoredGrid) -> tf.Tensor:
    """MUL."""
    del layer
    first, second = sources
    return tf.round(integers[0] * integers[1] * (first.step * second.step / output.step))


def _mean(layer: Any, integers: list[tf.Tensor], sources: list[StoredGrid], output: StoredGrid) -> tf.Tensor:
    """MEAN: the zero points are inside the rounding."""
    (values,), (source,) = integers, sources
    axes = list(range(1, values.shape.rank - 1))
    count = tf.cast(tf.reduce_prod(tf.shape(values)[1:-1]), tf.float32)
    multiplier = source.step / output.step * (tf.ones_like(count) / count)
    offset = output.zero_point - source.zero_point * count * multiplier
    total = tf.reduce_sum(values + source.zero_point, axes, keepdims=layer.keepdims)
    return tf.round(total * multiplier + offset) - output.zero_point


def _tied(layer: Any, integers: list[tf.Tensor], sources: list[StoredGrid], output: StoredGrid) -> tf.Tensor:
    """What is computed on the grid of the inputs."""
    del sources
    if isinstance(layer, layers.LeakyReLU):  # 8 fractional bits, ties up.
        (values,) = integers
        slope = np.round(256.0 * float(layer.alpha))
        return tf.where(values >= 0, values, tf.floor((values * slope + 128.0) * (1 / 256)))
    if isinstance(layer, layers.AveragePooling2D):  # Ties go away from the stored 0.
        average = layer(integers[0] + output.zero_point)
        return tf.sign(average) * tf.floor(tf.abs(average) + 0.5) - output.zero_point
    values = layer(integers if len(integers) > 1 else integers[0])
    return tf.floor(values + 0.5) if isinstance(layer, layers.UpSampling2D) else tf.round(values)


_OPERATORS: dict[Kind | None, Any] = {Kind.SUM: _sum, Kind.PRODUCT: _product, Kind.MEAN: _mean, Kind.TIED: _tied}
