"""The layers of a deployable model: integer arithmetic when they run eagerly, fake quantization when traced.

Run eagerly (`model(x)`, and `model.predict(x)`, since `deployable` sets `run_eagerly`), a layer computes the integers
of the file with the runtime's own formulas and returns them times their scale: bit for bit what the file computes.
Traced into a graph, it writes the 8-bit fake quantizations that any TFLiteConverter turns into those integers.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfqil import _host
from tfqil.export import arithmetic, arithmetic_elementwise, arithmetic_tables
from tfqil.export.arithmetic import Int8Grid
from tfqil.export.grids import fake_quant_range, weight_range
from tfqil.numerics.storable import storable
from tfqil.scheme import inference

# Sums of products of integers below this are exact in float32, in any order.
_EXACT_IN_FLOAT32 = 2**24
# How far twins are apart, as a share of their weights: a code of 127 stays within half a step up to the 258th twin.
_TWIN_DISTANCE = 2.0**-16

_LOOKUPS: dict[str, tuple[Callable[..., NDArray[np.int32]], Callable[..., tf.Tensor]]] = {
    "sigmoid": (arithmetic_tables.logistic, tf.sigmoid),
    "tanh": (arithmetic_tables.tanh, tf.tanh),
    "softmax": (arithmetic_tables.softmax, tf.nn.softmax),
}


class IntegerLayer(_host.Layer, abc.ABC):  # type: ignore[misc, name-defined]
    """A layer with an int8 output grid.

    Args:
        grid: scale and zero point of the output.
        activation: "none", "relu" or "relu6": what the operator clips at.
    """

    def __init__(self, grid: Int8Grid, activation: str = "none", **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.grid = grid
        self.activation = activation
        self.supports_masking = True  # For a recurrent layer in float behind it.

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """What all masks of the inputs let through."""
        del inputs
        return _host.joint_mask(mask)

    @abc.abstractmethod
    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The stored integers of the output for eager inputs."""

    @abc.abstractmethod
    def floats(self, inputs: Any) -> tf.Tensor:
        """The output before activation and rounding, as a converter shall see it."""

    def call(self, inputs: Any) -> tf.Tensor:
        """The output on its grid."""
        return self._computed(inputs)

    @tf.autograph.experimental.do_not_convert  # There is nothing to convert, and looking for it takes long.
    def _computed(self, inputs: Any) -> tf.Tensor:
        if tf.executing_eagerly():
            values = (self.integers(inputs) - self.grid.zero_point).astype(np.float32) * np.float32(self.grid.scale)
            return tf.constant(values)
        if _host.is_inferring_shapes():
            return self.shaped(self.shapes(inputs), inputs)
        outputs = self.floats(inputs)
        if self.activation != "none":
            outputs = {"relu": tf.nn.relu, "relu6": tf.nn.relu6}[self.activation](outputs)
        return self.shaped(self.on_grid(outputs), inputs)

    def shapes(self, inputs: Any) -> tf.Tensor:
        """Something of the shape of what `floats` returns."""
        return self.floats(inputs)

    def on_grid(self, outputs: tf.Tensor) -> tf.Tensor:
        """The traced output behind the fake quantization that carries its grid."""
        low, high = fake_quant_range(self.grid)
        return tf.quantization.fake_quant_with_min_max_vars(outputs, low, high, num_bits=8)

    def shaped(self, outputs: tf.Tensor, inputs: Any) -> tf.Tensor:
        """The traced output in the shape that the layer returns."""
        del inputs
        return outputs

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and highest stored integer that the fused activation leaves."""
        return arithmetic.fused_range(self.grid, self.activation)


class IntegerQuantize(IntegerLayer):
    """Puts a float tensor on a grid (QUANTIZE).

    Args:
        behind_float: something computes the tensor in float, and shall not become integer for the grid behind it.
    """

    def __init__(self, *, behind_float: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._behind_float = behind_float

    def on_grid(self, outputs: tf.Tensor) -> tf.Tensor:
        """The fake quantization, out of sight of what computes the tensor."""
        return super().on_grid(kept_in_float(outputs) if self._behind_float else outputs)

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """Rounded to the nearest, ties to even."""
        return np.clip(arithmetic.quantize(inputs.numpy(), self.grid), *self.bounds)

    def floats(self, inputs: Any) -> tf.Tensor:
        """The input."""
        return inputs


class IntegerPixels(IntegerLayer):
    """Takes bytes, 0 to 255, for the levels of a grid: an input that holds them needs no operator.

    Traced, the input is taken for the values on that grid, since a converter writes float inputs only; the QUANTIZE
    that it writes goes, or takes 128 from each byte, when the inputs of the file become integers (`io_tensors.py`).
    """

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The nearest byte less 128, which is how int8 stores it."""
        return np.clip(np.rint(inputs.numpy()), 0, 255).astype(np.int32) - 128

    def floats(self, inputs: Any) -> tf.Tensor:
        """The input."""
        return inputs


class Dequantize(_host.Layer):  # type: ignore[misc, name-defined]
    """Leaves a grid: what reads the output computes in float (DEQUANTIZE)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Any) -> tf.Tensor:
        """The input, in sight of which no converter computes on integers."""
        return inputs if tf.executing_eagerly() else kept_in_float(inputs)


class IntegerLinear(IntegerLayer):
    """A convolution, depthwise convolution or dense layer on integers.

    Args:
        operator: "conv", "depthwise" or "dense".
        codes: integers of the kernel, (kh, kw, I, O), (kh, kw, C, M) or (I, O).
        steps: their step per output channel, (O,) or (C * M,).
        bias_codes: integers of the bias in units of input step * step, (O,).
        input_grid: grid of the input.
        strides, padding, dilations: of the convolution; padding "same", "valid" or, in one dimension, "causal".
        axes_before: how many axes of size 1 the inputs lack behind the first: 1 for (N, W, C), whose kernel has height
            1; 2 for (N, C).
        kernels: which kernels run it: "xnnpack", or "builtin" where XNNPACK refuses.

    Attributes:
        twin: the how manieth layer with the same codes and steps it is. Of equal kernels the converter makes one before
            it quantizes it, and then on a grid of its own.
    """

    twin = 0

    def __init__(
        self,
        *,
        operator: str,
        codes: NDArray[np.int32],
        steps: NDArray[np.float32],
        bias_codes: NDArray[np.int64],
        input_grid: Int8Grid,
        strides: Sequence[int] = (1, 1),
        padding: str = "valid",
        dilations: Sequence[int] = (1, 1),
        axes_before: int = 0,
        kernels: str = "xnnpack",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.operator, self.kernels, self.input_grid = operator, kernels, input_grid
        self.codes, self.steps, self.bias_codes = codes, steps, bias_codes
        self._axes_before = axes_before
        self.supports_masking = hands_mask_on(operator, codes)
        self._apply = functools.partial(
            multiply, operator=operator, strides=strides, padding=padding, dilations=dilations
        )

    def call(self, inputs: Any) -> tf.Tensor:
        """The output on its grid."""
        if not self._axes_before:
            return super().call(inputs)
        outputs = super().call(tf.reshape(inputs, [-1, *[1] * self._axes_before, *inputs.shape[1:]]))
        return tf.reshape(outputs, [-1, *outputs.shape[1 + self._axes_before :]])

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The runtime's accumulator, exact, and its requantization."""
        levels = tf.round(inputs / np.float32(self.input_grid.scale))
        dtype = tf.float32 if self._largest_sum() < _EXACT_IN_FLOAT32 else tf.float64
        accumulator = self._apply(tf.cast(levels, dtype), tf.constant(self.codes, dtype)).numpy() + self.bias_codes
        low, high = self.bounds
        return arithmetic.requantize(
            accumulator,
            input_scale=self.input_grid.scale,
            weight_scales=self.steps,
            output=self.grid,
            low=low,
            high=high,
            kernels=self.kernels,
        )

    def floats(self, inputs: Any) -> tf.Tensor:
        """The same with the kernel as an 8-bit fake quantization of any grid of up to 8 bits."""
        codes = self.codes[None, None] if self.operator == "dense" else self.codes
        # Channels last, since the fake quantization has a range for each index of the last axis.
        flat = codes.reshape(*codes.shape[:2], -1) if self.operator == "depthwise" else codes
        low, high = weight_range(self.steps)
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            (flat * (self.steps * np.float32(1 + self.twin * _TWIN_DISTANCE))).astype(np.float32),
            low,
            high,
            num_bits=8,
            narrow_range=True,
        )
        if self.operator == "depthwise":
            kernel = tf.reshape(kernel, codes.shape)  # The converter does not follow tf.expand_dims here.
        bias = self.bias_codes * (np.float64(np.float32(self.input_grid.scale)) * self.steps)
        if self.operator == "dense":
            # The converter takes a step per channel in convolutions only; packing makes FULLY_CONNECTED of this.
            outputs = tf.nn.conv2d(tf.reshape(inputs, [-1, 1, 1, kernel.shape[2]]), kernel, 1, "VALID")
        else:
            outputs = self._apply(inputs, kernel)
        return outputs + bias.astype(np.float32)

    def shapes(self, inputs: Any) -> tf.Tensor:
        """The output for a kernel of zeros, which is no large constant."""
        kernel = tf.zeros(self.codes.shape)
        if self.operator == "dense":
            return tf.zeros([tf.shape(inputs)[0], 1, 1, self.codes.shape[1]])
        return self._apply(inputs, kernel)

    def shaped(self, outputs: tf.Tensor, inputs: Any) -> tf.Tensor:
        """Dense layers come back from the shape of a 1x1 convolution."""
        if self.operator != "dense":
            return outputs
        return tf.reshape(outputs, [-1, *inputs.shape[1:-1], self.codes.shape[1]])

    def _largest_sum(self) -> float:
        """An upper bound of the partial sums of products."""
        axes = (0, 1) if self.operator == "depthwise" else tuple(range(self.codes.ndim - 1))
        offsets = (127 - self.input_grid.zero_point, 128 + self.input_grid.zero_point)
        return float(np.abs(self.codes).sum(axis=axes).max() * max(offsets))


class IntegerAdd(IntegerLayer):
    """Adds two tensors, each on its own grid, or subtracts the second one (ADD, SUB)."""

    def __init__(self, *, input_grids: Sequence[Int8Grid], subtracts: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._input_grids = tuple(input_grids)
        self._subtracts = subtracts

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The runtime's fixed-point sum."""
        formula = arithmetic.subtract if self._subtracts else arithmetic.add
        return formula(*_operands(inputs, self._input_grids), self.grid, *self.bounds)

    def floats(self, inputs: Any) -> tf.Tensor:
        """The sum."""
        return inputs[0] - inputs[1] if self._subtracts else inputs[0] + inputs[1]


class IntegerMultiply(IntegerLayer):
    """Multiplies two tensors, each on its own grid (MUL)."""

    def __init__(self, *, input_grids: Sequence[Int8Grid], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._input_grids = tuple(input_grids)

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The runtime's product, rounded once."""
        return arithmetic_elementwise.multiply(*_operands(inputs, self._input_grids), self.grid, *self.bounds)

    def floats(self, inputs: Any) -> tf.Tensor:
        """The product."""
        return inputs[0] * inputs[1]


def _operands(inputs: Any, grids: Sequence[Int8Grid]) -> tuple[Any, Any, Any, Any]:
    """The stored integers and the grid of the first and of the second operand."""
    (first, first_grid), (second, second_grid) = zip(inputs, grids, strict=True)
    return stored(first, first_grid), first_grid, stored(second, second_grid), second_grid


class IntegerShift(IntegerLayer):
    """Subtracts a constant and changes the grid (SUB): a quantizer between an 8-bit tensor and its readers.

    The constant is stored as one step of a grid of its own. XNNPACK takes no scale below 2^-10 of that of the output,
    so that an offset of 0 becomes `inference.SMALLEST_OFFSET`, which moves no value that lies on a level; and a
    converter takes a subtraction of 0 for nothing, and drops it with the change of grids. XNNPACK changes grids with
    20 bits of precision here, and with 8 in QUANTIZE, which therefore is no substitute.
    """

    def __init__(self, *, input_grid: Int8Grid, offset: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._input_grid = input_grid
        smallest = np.float32(self.grid.scale) * np.float32(inference.SMALLEST_OFFSET)
        self._constant_grid = Int8Grid(scale=float(storable(np.maximum(np.float32(offset), smallest))), zero_point=0)

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The runtime's fixed-point difference."""
        x = stored(inputs, self._input_grid)
        return arithmetic.subtract(x, self._input_grid, np.int32(1), self._constant_grid, self.grid, *self.bounds)

    def floats(self, inputs: Any) -> tf.Tensor:
        """The difference; the fake quantization gives the constant its grid."""
        low, high = fake_quant_range(self._constant_grid)
        value = np.float32(self._constant_grid.scale)
        return inputs - tf.quantization.fake_quant_with_min_max_vars(value, low, high, num_bits=8)


class IntegerMean(IntegerLayer):
    """Averages over all positions (MEAN)."""

    def __init__(self, *, input_grid: Int8Grid, keepdims: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._input_grid, self._keepdims = input_grid, keepdims
        self.supports_masking = False  # There are no time steps behind it.

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The runtime's float32 average of the stored integers."""
        axes = self._axes(inputs)
        result = arithmetic.mean(stored(inputs, self._input_grid), self._input_grid, self.grid, axes)
        return np.expand_dims(result, axes) if self._keepdims else result

    def floats(self, inputs: Any) -> tf.Tensor:
        """The average."""
        return tf.reduce_mean(inputs, axis=self._axes(inputs), keepdims=self._keepdims)

    @staticmethod
    def _axes(inputs: Any) -> tuple[int, ...]:
        return tuple(range(1, len(inputs.shape) - 1))


class IntegerLookup(IntegerLayer):
    """Softmax, sigmoid or tanh (SOFTMAX, LOGISTIC, TANH)."""

    def __init__(self, *, input_grid: Int8Grid, function: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._input_grid = input_grid
        self._integers, self._floats = _LOOKUPS[function]

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The runtime's table."""
        return self._integers(stored(inputs, self._input_grid), self._input_grid)

    def floats(self, inputs: Any) -> tf.Tensor:
        """The function."""
        return self._floats(inputs)


class IntegerGelu(IntegerLayer):
    """The Gaussian error linear unit (GELU)."""

    def __init__(self, *, input_grid: Int8Grid, approximate: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._input_grid, self._approximate = input_grid, approximate

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The runtime's table."""
        x = stored(inputs, self._input_grid)
        return arithmetic_elementwise.gelu(x, self._input_grid, self.grid, approximate=self._approximate)

    def floats(self, inputs: Any) -> tf.Tensor:
        """The function."""
        return tf.nn.gelu(inputs, approximate=self._approximate)


def multiply(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    *,
    operator: str,
    strides: Sequence[int] = (1, 1),
    padding: str = "valid",
    dilations: Sequence[int] = (1, 1),
) -> tf.Tensor:
    """A convolution ("conv"), a depthwise one ("depthwise"), or a product ("dense").

    The kernel has its output channels last: (kh, kw, I, O), (kh, kw, C, M) or (I, O).
    """
    if operator == "dense":
        if inputs.shape.rank == 2:
            return tf.matmul(inputs, kernel)
        # As rows: the converter writes products of more dimensions as an operator that no kernel runs.
        outputs = tf.matmul(tf.reshape(inputs, [-1, kernel.shape[0]]), kernel)
        return tf.reshape(outputs, [-1, *inputs.shape[1:-1], kernel.shape[1]])
    if padding == "causal":
        before = int(dilations[1]) * (int(kernel.shape[1]) - 1)
        inputs, padding = tf.pad(inputs, [(0, 0), (0, 0), (before, 0), (0, 0)]), "valid"
    if operator == "depthwise" and max(dilations) > 1 and not tf.executing_eagerly():
        # Of tf.nn.depthwise_conv2d, which is space-to-batch here, the converter makes float operators. Eagerly, only
        # that runs on a CPU.
        return tf.raw_ops.DepthwiseConv2dNative(
            input=inputs, filter=kernel, strides=[1, *strides, 1], padding=padding.upper(), dilations=[1, *dilations, 1]
        )
    apply = tf.nn.depthwise_conv2d if operator == "depthwise" else tf.nn.conv2d
    return apply(inputs, kernel, (1, *strides, 1), padding.upper(), dilations=tuple(dilations))


def hands_mask_on(operator: str, kernel: NDArray[Any]) -> bool:
    """Whether the outputs of `multiply` belong to the time steps of its inputs, so that a mask of theirs holds.

    Keras's convolutions drop masks; a depthwise kernel for one position stands for a batch normalization.
    """
    return operator == "dense" or (operator == "depthwise" and kernel.shape[:2] == (1, 1))


def kept_in_float(values: tf.Tensor) -> tf.Tensor:
    """The same values, computed in float by any converter.

    A float operator between two grids becomes an integer one in the converter, which rounds its kernel to 8 bits, and
    a factor behind it becomes part of its kernel. Neither happens across a cast to float64 and back, which changes no
    value, and which `float_constants.drop_casts` takes out of the file again.
    """
    return tf.cast(tf.cast(values, tf.float64), tf.float32)


def stored(values: tf.Tensor, grid: Int8Grid) -> NDArray[np.int32]:
    """The stored integers of an eager tensor that lies on a grid."""
    levels = np.rint(values.numpy() / np.float32(grid.scale)).astype(np.int32)
    return np.asarray(levels + grid.zero_point, np.int32)
