"""Lowering: from the grids of a trained model to a plain model of integer layers.

A value on its way through the graph is on a grid, in float, or an operator that waits for its grid (`pending.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfqil import _host
from tfqil.export import layers as integer
from tfqil.export.freeze import require_calibrated, require_quantized
from tfqil.export.grids import int8_grid
from tfqil.export.pending import (
    Float,
    Join,
    Linear,
    Lookup,
    Mean,
    Pending,
    Quantized,
    Shift,
    Sum,
    Target,
    Value,
    scale_and_shift,
)
from tfqil.numerics.int8 import int8_divisors
from tfqil.scheme.kinds import Kind, activation_name, kind_of
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer

keras_layers = _host.keras.layers


class Lowering:
    """Lowers one quantized model.

    Args:
        q_model: the model.
        builtin: names of the layers whose kernels the builtin kernels of the runtime run, not XNNPACK.
    """

    def __init__(self, q_model: Any, builtin: frozenset[str] = frozenset()) -> None:
        require_quantized(q_model)
        require_calibrated(q_model)
        self._q_model = q_model
        self._builtin = builtin
        self._settled: dict[str, Quantized] = {}
        self.output_scales: list[float | None] = []

    def model(self) -> Any:
        """The plain model of integer layers; `output_scales` then holds the scale of each output, None for float."""
        self._settled.clear()
        self.output_scales.clear()
        self._model = _host.replay(self._q_model, self._lowered, finish=self._finished)
        self._model.run_eagerly = True  # `predict` then computes the integers too.
        return self._model

    def settled_tensors(self, batch: list[NDArray[np.float32]]) -> dict[str, tuple[NDArray[np.float32], float]]:
        """The tensor behind each quantizer of the model that `model` returned, and its scale, by the layer's name."""
        outputs = [value.tensor for value in self._settled.values()]
        tensors = _host.Model(self._model.inputs, outputs)(batch, training=False)
        return {
            name: (tensor.numpy(), value.grid.scale)
            for (name, value), tensor in zip(self._settled.items(), tensors, strict=True)
        }

    def _finished(self, value: Value) -> Any:
        self.output_scales.append(value.grid.scale if isinstance(value, Quantized) else None)
        return _tensor(value)

    def _lowered(self, node: _host.Node, values: list[Any]) -> Value:
        layer = node.layer
        if not node.inputs:
            return Float(tensor=values[0], is_input=True)
        if isinstance(layer, QuantizeActivation):
            settled = self._settled[layer.name] = self._settle(layer, values[0])
            return settled
        if isinstance(layer, QuantizedLayer):
            return self._linear(layer, values[0])
        kind = kind_of(layer)
        if kind is Kind.KEEP:
            return _kept(layer, values[0])
        if any(isinstance(value, Float) for value in values) or kind is Kind.LINEAR:
            return _run_in_float(node, layer, values)
        return _PENDING[kind](layer, values) if kind in _PENDING else _unknown(layer)

    def _settle(self, layer: QuantizeActivation, value: Value) -> Quantized:
        """Emits what a quantizer has been waiting for."""
        grid = layer.grid()
        int8 = int8_grid(grid)
        activation = "none" if layer.quantizer.is_signed else "relu"
        if layer.ceiling is not None and grid.maximum + grid.lower > layer.ceiling:
            activation = "relu6"
        if isinstance(value, Float):
            if grid.lower:
                value = Float(tensor=keras_layers.Rescaling(1.0, -grid.lower)(value.tensor))
            activation = "none" if value.is_input else activation
            quantize = integer.IntegerQuantize(
                name=layer.name, grid=int8, activation=activation, behind_float=not value.is_input
            )
            return Quantized(tensor=quantize(value.tensor), grid=int8)
        pending = Shift(name=layer.name, source=value) if isinstance(value, Quantized) else value
        target = Target(grid=int8, activation=activation, lower=grid.lower)
        return Quantized(tensor=pending.emit(target), grid=int8)

    def _linear(self, wrapper: QuantizedLayer, value: Value) -> Value:
        layer, grid = wrapper.layer, wrapper.grid()
        if not isinstance(value, Quantized):
            raise ValueError(
                f"Got a float input of the quantized layer {layer.name!r}, expected one on a grid: give its producer "
                "a config with quantizers, or leave this layer in float too."
            )
        operator = _operator(layer)
        channels = grid.codes.shape[-2] * grid.codes.shape[-1] if operator == "depthwise" else grid.codes.shape[-1]
        trailing = grid.codes.shape[-2:] if operator == "depthwise" else (channels,)
        bias = layer.bias.numpy().astype(np.float64) if layer.use_bias else np.zeros(channels)
        options = {"kernels": "builtin" if layer.name in self._builtin else "xnnpack"}
        if operator != "dense":
            options |= {"strides": layer.strides, "padding": layer.padding, "dilations": layer.dilation_rate}
        steps = np.broadcast_to(grid.step, trailing).reshape(-1).astype(np.float64)
        divisors = int8_divisors(grid.codes.astype(np.float32), len(trailing)).numpy()
        return Linear(
            name=layer.name,
            source=value,
            operator=operator,
            codes=(grid.codes // divisors).astype(np.int32),
            steps=steps * divisors.reshape(-1),
            factors=np.ones(channels),
            bias=bias,
            options=options,
        )


def _norm(layer: Any, values: list[Any]) -> Value:
    (value,) = values
    if isinstance(value, Linear):
        return value.folded(layer)
    return _affine(layer, value)


def _affine(norm: Any, value: Quantized) -> Linear:
    """A batch normalization on its own: a depthwise 1x1 convolution with 8-bit weights."""
    scale, shift = scale_and_shift(norm)
    return Linear(
        name=norm.name,
        source=value,
        operator="depthwise",
        codes=np.full((1, 1, scale.size, 1), 127, np.int32),
        steps=np.full(scale.size, 1 / 127),
        factors=scale,
        bias=shift,
        options={},
    )


def _average_pool(layer: Any, values: list[Any]) -> Linear:
    """Average pooling: a depthwise convolution whose weights are all 1 and whose step is 1 / window."""
    (value,) = values
    height, width = layer.pool_size
    channels = int(value.tensor.shape[-1])
    return Linear(
        name=layer.name,
        source=value,
        operator="depthwise",
        codes=np.ones((height, width, channels, 1), np.int32),
        steps=np.full(channels, 1 / (height * width)),
        factors=np.ones(channels),
        bias=np.zeros(channels),
        options={"strides": layer.strides, "padding": layer.padding},
    )


def _join(layer: Any, values: list[Any]) -> Join:
    branches = tuple(
        Shift(name=f"{layer.name}_input_{index}", source=value) if isinstance(value, Quantized) else value
        for index, value in enumerate(values)
    )
    return Join(name=layer.name, branches=branches, axis=layer.axis)


_PENDING: dict[Kind | None, Callable[[Any, list[Any]], Value]] = {
    Kind.NORM: _norm,
    Kind.CONCATENATE: _join,
    Kind.AVERAGE_POOL: _average_pool,
    Kind.SUM: lambda layer, values: Sum(name=layer.name, sources=tuple(values)),
    Kind.MEAN: lambda layer, values: Mean(name=layer.name, source=values[0], keepdims=layer.keepdims),
    Kind.LOOKUP: lambda layer, values: Lookup(name=layer.name, source=values[0], function=activation_name(layer)),
}


def _kept(layer: Any, value: Value) -> Value:
    """Value-keeping layers keep the grid; those that do nothing at inference disappear."""
    if isinstance(layer, (keras_layers.Dropout, keras_layers.Activation)):
        return value
    copy = type(layer).from_config({**layer.get_config(), "dtype": "float32"})
    return dataclasses.replace(value, tensor=copy(_tensor(value)))


def _run_in_float(node: _host.Node, layer: Any, values: list[Any]) -> Float:
    copy = type(layer).from_config({**layer.get_config(), "dtype": "float32"})
    outputs = _host.run_as_before(node, copy, [_tensor(value) for value in values])
    copy.set_weights(layer.get_weights())
    return Float(tensor=outputs)


def _tensor(value: Value) -> Any:
    if isinstance(value, Pending):
        raise ValueError(
            f"Got no quantizer behind {value.name!r}, expected one that gives its output a grid: quantize the model "
            "with LowBitScheme, which places them."
        )
    return value.tensor


def _unknown(layer: Any) -> Value:
    raise ValueError(f"Got the layer {layer.name!r} ({type(layer).__name__}), expected one that LowBitScheme placed.")


def _operator(layer: Any) -> str:
    if isinstance(layer, keras_layers.DepthwiseConv2D):
        return "depthwise"
    return "dense" if isinstance(layer, keras_layers.Dense) else "conv"


def deployable(q_model: Any, *, builtin: frozenset[str] = frozenset()) -> Any:
    """A plain model of what the file computes: batch norms folded, grids as 8-bit fake quantizations.

    Run eagerly, as `model(x)` and `model.predict(x)` do, it gives the outputs of the integer file bit for bit. Any
    TFLiteConverter with `optimizations=[tf.lite.Optimize.DEFAULT]` turns it into an integer file.

    A layer whose integers do not fit INT8 is a plain float layer with the trained values, before the QUANTIZE to its
    output grid. Such a layer may add its products in another order than the file does.

    Args:
        q_model: a calibrated or trained model from `quantize_model` or `quantize_apply`.
        builtin: layers that the runtime's builtin kernels run, whose rounding differs from XNNPACK's: those whose
            convolution kernels are stored as INT4 (storage "smallest").

    Raises:
        TypeError, ValueError: a float model, or one whose activation grids no data have set.
    """
    return Lowering(q_model, builtin).model()
