"""The layers of a deployable model whose output is on the grid of their input, though its values are new ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfqil import _host
from tfqil.export import arithmetic_elementwise, arithmetic_tables
from tfqil.export.arithmetic import Int8Grid
from tfqil.export.layers import IntegerLayer, stored
from tfqil.numerics.storable import storable
from tfqil.scheme.layers import QuantizedLayer

keras_layers = _host.keras.layers


class IntegerAveragePool(IntegerLayer):
    """Averages over windows that may reach over the border; pixels outside are not counted (AVERAGE_POOL_2D)."""

    def __init__(self, *, layer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._pool, self._strides, self._padding = layer.pool_size, layer.strides, layer.padding

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The runtime's rounded average of the stored integers."""
        x = stored(inputs, self.grid)
        return arithmetic_tables.average_pool(x, self._pool, self._strides, self._padding)

    def floats(self, inputs: Any) -> tf.Tensor:
        """The average."""
        return tf.nn.avg_pool2d(inputs, self._pool, self._strides, self._padding.upper())


class IntegerExtreme(IntegerLayer):
    """The larger, or smaller, of tensors (MAXIMUM, MINIMUM)."""

    def __init__(self, *, layer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._is_maximum = isinstance(layer, keras_layers.Maximum)

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The larger or smaller stored integer."""
        choose = np.maximum if self._is_maximum else np.minimum
        return np.asarray(functools.reduce(choose, [stored(values, self.grid) for values in inputs]), np.int32)

    def floats(self, inputs: Any) -> tf.Tensor:
        """The larger or smaller value, of two at a time, as the operators take them."""
        choose = tf.maximum if self._is_maximum else tf.minimum
        return functools.reduce(lambda one, other: choose(self.on_grid(one), other), inputs)


class IntegerLeakyReLU(IntegerLayer):
    """Multiplies negative values by a constant (LEAKY_RELU)."""

    def __init__(self, *, layer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._slope = float(layer.alpha)
        self._kernels = arithmetic_elementwise.leaky_relu_kernels(self.grid, self._slope, self.grid)

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The runtime's product, with 8 fractional bits in XNNPACK."""
        x = stored(inputs, self.grid)
        return arithmetic_elementwise.leaky_relu(x, self.grid, self._slope, self.grid, kernels=self._kernels)

    def floats(self, inputs: Any) -> tf.Tensor:
        """The leaky ReLU."""
        return tf.nn.leaky_relu(inputs, self._slope)


class IntegerPReLU(IntegerLayer):
    """Multiplies negative values by weights, one per channel or per position (PRELU).

    The layer is a QuantizedLayer around a PReLU: w = step * code, with 127 as the largest code.
    """

    def __init__(self, *, layer: QuantizedLayer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        grid = layer.grid()
        self.codes, self.steps = grid.codes, storable(grid.step).numpy().reshape(1)

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The runtime's fixed-point product."""
        slope_grid = Int8Grid(scale=float(self.steps[0]), zero_point=0)
        return arithmetic_elementwise.prelu(stored(inputs, self.grid), self.grid, self.codes, slope_grid, self.grid)

    def floats(self, inputs: Any) -> tf.Tensor:
        """The same with a plain constant, which the converter puts on the grid max|w| / 127, where it is already."""
        slopes = self.codes.astype(np.float32) * self.steps
        return tf.nn.relu(inputs) + (-slopes) * tf.nn.relu(-inputs)


class IntegerResize(IntegerLayer):
    """Enlarges an image by whole factors, with bilinear interpolation (RESIZE_BILINEAR)."""

    def __init__(self, *, layer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._factors = tuple(int(factor) for factor in layer.size)
        self._kernels = "xnnpack"

    def build(self, input_shape: Any) -> None:
        """Notes whether the file has to compute the size of the output; the builtin kernels run it then."""
        if None in tuple(input_shape[1:3]):
            self._kernels = "builtin"
        super().build(input_shape)

    def integers(self, inputs: Any) -> NDArray[np.int32]:
        """The runtime's weighted sum."""
        height, width = self._size(inputs.shape[1:3])
        x = stored(inputs, self.grid)
        return arithmetic_elementwise.resize_bilinear(x, (int(height), int(width)), kernels=self._kernels)

    def floats(self, inputs: Any) -> tf.Tensor:
        """The interpolation."""
        sizes = inputs.shape[1:3] if self._kernels == "xnnpack" else tf.unstack(tf.shape(inputs)[1:3])
        return tf.image.resize(inputs, self._size(sizes))

    def _size(self, sizes: Sequence[Any]) -> list[Any]:
        return [size * factor for size, factor in zip(sizes, self._factors, strict=True)]


_OPERATORS: dict[type, type[IntegerLayer]] = {
    keras_layers.AveragePooling2D: IntegerAveragePool,
    keras_layers.LeakyReLU: IntegerLeakyReLU,
    keras_layers.Maximum: IntegerExtreme,
    keras_layers.Minimum: IntegerExtreme,
    keras_layers.PReLU: IntegerPReLU,
    keras_layers.UpSampling2D: IntegerResize,
}


def tied_operator(name: str, layer: Any, grid: Int8Grid) -> Any:
    """What computes a layer on a grid: a function of the list of its inputs."""
    computes = layer.layer if isinstance(layer, QuantizedLayer) else layer
    operator = _OPERATORS[type(computes)](layer=layer, grid=grid, name=name)
    return lambda inputs: operator(inputs if len(inputs) > 1 else inputs[0])
