"""Lowering: from the grids of a trained model to a plain model of integer layers.

A value on its way through the graph is `Quantized` (a tensor on an int8 grid), `Float`, or pending: an operator whose
output grid is not known before the quantizer behind it is reached. Batch normalizations and ReLUs that a pending
operator meets become part of it, since the runtime applies them to the accumulator, before anything is rounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfqil import _host
from tfqil.export import layers as integer
from tfqil.export.arithmetic import REQUANTIZATION_SCALE_LIMIT, Int8Grid
from tfqil.export.freeze import require_calibrated, require_quantized
from tfqil.export.grids import int8_grid, surviving_weight_steps
from tfqil.scheme.kinds import Kind, activation_name, kind_of
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer

keras_layers = _host.keras.layers

# Bias codes stay below this, so that bias and accumulator together fit int32.
_LARGEST_BIAS_CODE = 2**29
# A channel without weights has a free step; its bias gets this many codes, exact in float32.
_CODES_OF_A_CONSTANT = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """A tensor on an int8 grid."""

    tensor: Any
    grid: Int8Grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Float:
    """A tensor that is on no grid."""

    tensor: Any
    is_input: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What the quantizer behind an operator asks for: output grid, clipping, and the offset to subtract before."""

    grid: Int8Grid
    activation: str
    lower: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pending:
    """An operator whose output grid is not known yet."""

    name: str

    def emit(self, target: Target) -> Any:
        """Adds the operator to the graph and returns its output tensor."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Pending):
    """A layer with a kernel: w = step * codes per channel, bias in the units of its output."""

    source: Quantized
    operator: str
    codes: NDArray[np.int32]
    steps: NDArray[np.float64]
    bias: NDArray[np.float64]
    options: Mapping[str, Any]

    def folded(self, norm: Any) -> Linear:
        """The same with a batch normalization in it; a negative gamma flips the codes of its channel."""
        scale, shift = _scale_and_shift(norm)
        flipped = (self.codes.reshape(-1, scale.size) * np.where(scale < 0, -1, 1)).reshape(self.codes.shape)
        return dataclasses.replace(
            self, codes=flipped, steps=self.steps * np.abs(scale), bias=self.bias * scale + shift
        )

    def emit(self, target: Target) -> Any:
        """The integer layer; steps whose bias would overflow int32 grow until it fits."""
        input_step = np.float64(self.source.grid.scale)
        bias = self.bias - target.lower
        has_weights = self.steps > 0
        smallest = np.abs(bias) / (_LARGEST_BIAS_CODE * input_step)
        constant = np.maximum(np.abs(bias), target.grid.scale) / (_CODES_OF_A_CONSTANT * input_step)
        steps = surviving_weight_steps(np.where(has_weights, np.maximum(self.steps, smallest), constant))
        codes = (self.codes.reshape(-1, steps.size) * has_weights).reshape(self.codes.shape).astype(np.int32)
        if np.any(input_step * steps / target.grid.scale >= REQUANTIZATION_SCALE_LIMIT):
            raise ValueError(
                f"Got a step of {target.grid.scale:.3g} for the output of {self.name!r}, expected more than 1/256 of "
                "its accumulator's step: its interval has collapsed; calibrate again or lower its learning rate."
            )
        layer = integer.IntegerLinear(
            name=self.name,
            grid=target.grid,
            activation=target.activation,
            operator=self.operator,
            codes=codes,
            steps=steps,
            bias_codes=np.rint(bias / (input_step * steps)).astype(np.int64),
            input_grid=self.source.grid,
            **self.options,
        )
        return layer(self.source.tensor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sum(Pending):
    """The sum of two tensors."""

    sources: tuple[Quantized, ...]

    def emit(self, target: Target) -> Any:
        """An ADD; there is no bias to take an offset."""
        _require_no_lower(self.name, target)
        grids = [source.grid for source in self.sources]
        layer = integer.IntegerAdd(name=self.name, grid=target.grid, activation=target.activation, input_grids=grids)
        return layer([source.tensor for source in self.sources])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean(Pending):
    """The average over all positions."""

    source: Quantized
    keepdims: bool

    def emit(self, target: Target) -> Any:
        """A MEAN; it has no fused activation, and what it averages is clipped already."""
        _require_no_lower(self.name, target)
        layer = integer.IntegerMean(
            name=self.name, grid=target.grid, input_grid=self.source.grid, keepdims=self.keepdims
        )
        return layer(self.source.tensor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lookup(Pending):
    """A function with a prescribed output grid."""

    source: Quantized
    function: str

    def emit(self, target: Target) -> Any:
        """A SOFTMAX, LOGISTIC or TANH."""
        layer = integer.IntegerLookup(
            name=self.name, grid=target.grid, input_grid=self.source.grid, function=self.function
        )
        return layer(self.source.tensor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift(Pending):
    """A tensor on one grid that goes to another one, perhaps through a ReLU."""

    source: Quantized

    def emit(self, target: Target) -> Any:
        """A SUB; nothing if the grids are the same."""
        if self.source.grid == target.grid and not target.lower and target.activation != "relu6":
            return self.source.tensor
        layer = integer.IntegerShift(
            name=self.name,
            grid=target.grid,
            activation=target.activation,
            input_grid=self.source.grid,
            offset=target.lower,
        )
        return layer(self.source.tensor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Join(Pending):
    """A concatenation; every branch is written on the grid of the whole."""

    branches: tuple[Pending, ...]
    axis: int

    def emit(self, target: Target) -> Any:
        """The branches, then a CONCATENATION."""
        tensors = [branch.emit(target) for branch in self.branches]
        return keras_layers.Concatenate(axis=self.axis, name=self.name)(tensors)


Value = Quantized | Float | Pending


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
            return Quantized(
                tensor=integer.IntegerQuantize(name=layer.name, grid=int8, activation=activation)(value.tensor),
                grid=int8,
            )
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
        return Linear(
            name=layer.name,
            source=value,
            operator=operator,
            codes=grid.codes,
            steps=np.broadcast_to(grid.step, trailing).reshape(-1).astype(np.float64),
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
    scale, shift = _scale_and_shift(norm)
    signs = np.where(scale < 0, -127, 127).astype(np.int32)
    return Linear(
        name=norm.name,
        source=value,
        operator="depthwise",
        codes=signs.reshape(1, 1, -1, 1),
        steps=np.abs(scale) / 127,
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
    copy = type(layer).from_config(layer.get_config())
    return dataclasses.replace(value, tensor=copy(_tensor(value)))


def _run_in_float(node: _host.Node, layer: Any, values: list[Any]) -> Float:
    copy = type(layer).from_config(layer.get_config())
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


def _scale_and_shift(norm: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gamma / sigma and beta - mean * gamma / sigma, float64 (channels,)."""
    mean, variance = (np.asarray(v, np.float64) for v in (norm.moving_mean, norm.moving_variance))
    gamma = np.asarray(norm.gamma, np.float64) if norm.scale else np.ones_like(mean)
    beta = np.asarray(norm.beta, np.float64) if norm.center else np.zeros_like(mean)
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return scale, beta - mean * scale


def _require_no_lower(name: str, target: Target) -> None:
    if target.lower:
        raise ValueError(
            f"Got a lower end of {target.lower:.3g} behind {name!r}, expected 0, since this operator has no bias to "
            "subtract it in: use a quantizer with zero_lower=True there."
        )


def deployable(q_model: Any, *, builtin: frozenset[str] = frozenset()) -> Any:
    """A plain model of what the file computes: batch norms folded, grids as 8-bit fake quantizations.

    Run eagerly, as `model(x)` and `model.predict(x)` do, it gives the outputs of the integer file bit for bit. Any
    TFLiteConverter with `optimizations=[tf.lite.Optimize.DEFAULT]` turns it into an integer file.

    Args:
        q_model: a calibrated or trained model from `quantize_model` or `quantize_apply`.
        builtin: layers that the runtime's builtin kernels run, whose rounding differs from XNNPACK's: those whose
            convolution kernels are stored as INT4 (storage "smallest").

    Raises:
        TypeError, ValueError: a float model, or one whose activation grids no data have set.
    """
    return Lowering(q_model, builtin).model()
