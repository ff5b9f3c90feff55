"""What the operators of a file compute, in Keras at inference: the levels of a tensor from what it is computed of.

Each formula is that of the runtime (`export/arithmetic.py`, where they are tested against it) in TensorFlow: integers
are recovered from the floats that stand for them, and rounded as the runtime does. So `q_model.predict` and the file
agree; what is left are sums of products so large that float32 does not hold them exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfqil import _host
from tfqil.numerics.storable import storable
from tfqil.scheme.accumulator import accumulator_behind, input_grid
from tfqil.scheme.frozen import constants
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
    node = _host.latest_node(layer, **({"site": site} if layer.sites > 1 else {}))
    before = _host.nodes_before(node)[0] if node is not None else None
    if before is None:
        return _of_floats(inputs, grid)
    if operands is not None:
        sources = [_grid_of(parent) for parent in _host.nodes_before(node)[1:]]
        operator = _OPERATORS.get(kind_of(before.layer))
        if operator is not None and all(source is not None for source in sources):
            grids = [source.stored_grid() for source in sources]
            integers = [_integers(values, of_source) for values, of_source in zip(operands, grids, strict=True)]
            return operator(before.layer, integers, grids, grid)
    accumulator = constants(lambda: accumulator_behind(before, grid.step, grid.lower))
    if accumulator is not None:
        return _of_accumulator(inputs, accumulator)
    source = _grid_of(before)
    return _of_floats(inputs, grid) if source is None else _shifted(inputs, source.stored_grid(), grid)


def _grid_of(node: Any) -> Any:
    """The quantizing layer whose grid the output of a call lies on; None if there is none."""
    if hasattr(node.layer, "quantizer"):
        return node.layer
    return input_grid(node) if kind_of(node.layer) in (Kind.KEEP, Kind.CONCATENATE) else None


def _integers(values: tf.Tensor, grid: StoredGrid) -> tf.Tensor:
    """The levels that floats stand for."""
    return tf.round(values / constants(lambda: grid.step))


def _of_floats(inputs: tf.Tensor, output: StoredGrid) -> tf.Tensor:
    """QUANTIZE: a product with the rounded reciprocal."""
    lower, reciprocal = constants(lambda: (output.lower, tf.ones_like(output.step) / output.step))
    return tf.round((inputs - lower) * reciprocal)


def _of_accumulator(inputs: tf.Tensor, accumulator: Any) -> tf.Tensor:
    """CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED: round(f32(sum + bias) * multiplier)."""
    sums = tf.math.divide_no_nan(inputs - accumulator.bias, accumulator.unit)
    if accumulator.is_exact:
        sums = tf.round(sums)
    return tf.round((sums + accumulator.bias_code) * accumulator.multiplier)


def _sum(layer: Any, integers: list[tf.Tensor], sources: list[StoredGrid], output: StoredGrid) -> tf.Tensor:
    """ADD, SUB."""
    first, second = integers
    second = -second if isinstance(layer, layers.Subtract) else second
    return _fixed_point(first, second, lambda: [source.step / output.step for source in sources])


def _shifted(inputs: tf.Tensor, source: StoredGrid, output: StoredGrid) -> tf.Tensor:
    """SUB of the lower end, which is stored as one step of a grid of its own."""

    def ratios() -> list[tf.Tensor]:
        offset = storable(tf.maximum(output.lower, output.step * SMALLEST_OFFSET))
        return [source.step / output.step, offset / output.step]

    return _fixed_point(_integers(inputs, source), tf.constant(-1.0), ratios)


def _fixed_point(a: tf.Tensor, b: tf.Tensor, ratios: Callable[[], list[tf.Tensor]]) -> tf.Tensor:
    """(M_a a + M_b b + 2^(n-1)) >> n, n = 20 - floor(log2(max ratio)), M = round(ratio 2^n): ties go up."""
    a_multiplier, b_multiplier, half, shift = constants(lambda: _multipliers(*ratios()))
    total = half + a_multiplier * tf.cast(a, tf.int32) + b_multiplier * tf.cast(b, tf.int32)
    return tf.cast(tf.bitwise.right_shift(total, shift), tf.float32)


def _multipliers(a_ratio: tf.Tensor, b_ratio: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """M_a, M_b, 2^(n-1) and n, int32 scalars."""
    exponent = tf.bitwise.right_shift(tf.bitcast(tf.maximum(a_ratio, b_ratio), tf.int32), 23) - 127
    shift = 20 - exponent
    power = tf.bitcast(tf.bitwise.left_shift(shift + 127, 23), tf.float32)
    a_multiplier, b_multiplier = (tf.cast(tf.round(ratio * power), tf.int32) for ratio in (a_ratio, b_ratio))
    return a_multiplier, b_multiplier, tf.bitwise.left_shift(tf.ones_like(shift), shift - 1), shift


def _product(layer: Any, integers: list[tf.Tensor], sources: list[StoredGrid], output: StoredGrid) -> tf.Tensor:
    """MUL."""
    del layer
    first, second = sources
    return tf.round(integers[0] * integers[1] * constants(lambda: first.step * second.step / output.step))


def _mean(layer: Any, integers: list[tf.Tensor], sources: list[StoredGrid], output: StoredGrid) -> tf.Tensor:
    """MEAN: the zero points are inside the rounding."""
    (values,), (source,) = integers, sources
    ratio, zero_in, zero_out = constants(lambda: (source.step / output.step, source.zero_point, output.zero_point))
    axes = list(range(1, values.shape.rank - 1))
    count = tf.cast(tf.reduce_prod(tf.shape(values)[1:-1]), tf.float32)
    multiplier = ratio * (tf.ones_like(count) / count)
    offset = zero_out - zero_in * count * multiplier
    total = tf.reduce_sum(values + zero_in, axes, keepdims=layer.keepdims)
    return tf.round(total * multiplier + offset) - zero_out


def _tied(layer: Any, integers: list[tf.Tensor], sources: list[StoredGrid], output: StoredGrid) -> tf.Tensor:
    """What is computed on the grid of the inputs."""
    del sources
    if isinstance(layer, layers.LeakyReLU):  # 8 fractional bits, ties up.
        (values,) = integers
        slope = np.round(256.0 * float(layer.alpha))
        return tf.where(values >= 0, values, tf.floor((values * slope + 128.0) * (1 / 256)))
    if isinstance(layer, layers.AveragePooling2D):  # Ties go away from the stored 0.
        zero = constants(lambda: output.zero_point)
        average = layer(integers[0] + zero)
        return tf.sign(average) * tf.floor(tf.abs(average) + 0.5) - zero
    values = layer(integers if len(integers) > 1 else integers[0])
    return tf.floor(values + 0.5) if isinstance(layer, layers.UpSampling2D) else tf.round(values)


_OPERATORS: dict[Kind | None, Any] = {Kind.SUM: _sum, Kind.PRODUCT: _product, Kind.MEAN: _mean, Kind.TIED: _tied}
