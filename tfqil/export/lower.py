"""Lowering: from the grids of a trained model to a plain model of integer layers.

A value on its way through the graph is on a grid, in float, or an operator that waits for its grid (`pending.py`).
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfqil import _host
from tfqil.export import layers as integer
from tfqil.export.freeze import require_calibrated, require_quantized
from tfqil.export.grids import int8_grid
from tfqil.export.pending import (
    Float,
    Gelu,
    Join,
    Linear,
    Lookup,
    Mean,
    Pending,
    Product,
    Quantized,
    Shift,
    Sum,
    Target,
    Tied,
    Value,
    scale_and_shift,
)
from tfqil.export.phases import Phases
from tfqil.export.pixels import Pixels
from tfqil.export.signature import note_names_in_file, output_names
from tfqil.numerics.int8 import int8_divisors
from tfqil.scheme import tf_calls
from tfqil.scheme.flatten import copy_of
from tfqil.scheme.kinds import FOLDED, FUSED_CEILING, TRAINING_ONLY, Kind, activation_name, kind_of
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer
from tfqil.scheme.tf_calls import arguments_in_order

keras_layers = _host.keras.layers


class Lowering:
    """Lowers one quantized model.

    Args:
        q_model: the model.
        builtin: names of the layers whose kernels the builtin kernels of the runtime run, not XNNPACK.
        pixels: the inputs that the file takes as bytes of pixels, by their names, as `find_pixels` gives them: their
            normalization becomes the grid of the input, and the model that is made takes bytes as floats.

    Attributes:
        pixels: the same.
        output_scales: of the model that was made last, the scale of each output; None for float.
    """

    def __init__(
        self, q_model: Any, builtin: frozenset[str] = frozenset(), *, pixels: Mapping[str, Pixels] | None = None
    ) -> None:
        require_quantized(q_model)
        require_calibrated(q_model)
        self._q_model = q_model
        self._builtin = builtin
        self.pixels = dict(pixels or {})
        self._passed = frozenset(name for pixels in self.pixels.values() for name in pixels.passed)
        self._pixel_grids = {pixels.quantizer: pixels.grid for pixels in self.pixels.values()}
        self._before_tied = _before_tied(q_model)
        self._settled: dict[str, Quantized] = {}
        self._float_copies: dict[str, Any] = {}
        self._names: collections.Counter[str] = collections.Counter()
        self.output_scales: list[float | None] = []

    def model(self) -> Any:
        """The plain model of integer layers."""
        for state in (self._settled, self._float_copies, self._names, self.output_scales):
            state.clear()
        self._model = _host.replay(self._q_model, self._lowered, finish=self._finished)
        self._model.run_eagerly = True  # `predict` then computes the integers too.
        _number_twins(self._model)
        note_names_in_file(self._model, output_names(self._q_model, self._model.output_names))
        return self._model

    def settled_tensors(self, batch: list[NDArray[np.float32]]) -> dict[str, tuple[NDArray[np.float32], float]]:
        """The tensor behind each quantizer of the model that `model` returned, and its scale, by the layer's name."""
        outputs = [value.tensor for value in self._settled.values()]
        tensors = _host.Model(self._model.inputs, outputs)(batch, training=False)
        return {
            name: (tensor.numpy(), value.grid.scale)
            for (name, value), tensor in zip(self._settled.items(), tensors, strict=True)
        }

    def file_inputs(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """What the inputs of a file get for those of the model, one array each: pixels are bytes, whatever its grid."""
        return [
            np.clip(np.rint(array), 0, 255).astype(np.uint8) if name in self.pixels else array
            for name, array in zip(self._q_model.input_names, arrays, strict=True)
        ]

    def _finished(self, value: Value) -> Any:
        self.output_scales.append(value.grid.scale if isinstance(value, Quantized) else None)
        return _tensor(value)

    def _lowered(self, node: _host.Node, values: list[Any]) -> Any:
        layer = node.layer
        if not node.inputs:
            return Float(tensor=values[0], is_input=True)
        if layer.name in self._passed:
            return values[0]
        if isinstance(layer, QuantizeActivation):
            site = _host.keyword(node, "site", 0)
            name = tensor_name(layer, site)
            settled = self._settled[name] = self._settle(layer, name, site, values[0])
            return settled
        if isinstance(layer, QuantizedLayer):
            if kind_of(layer.layer) is Kind.TIED:
                return Tied(name=self._name_of_call(layer.layer.name), sources=(values[0],), layer=layer)
            return self._linear(layer, values[0])
        kind = kind_of(layer)
        if kind in (None, Kind.LINEAR) or all(isinstance(value, Float) for value in values):
            return self._run_in_float(node, values)
        if kind is Kind.KEEP:
            return [self._on_its_grid(node, kept) for kept in _host.as_list(_kept(node, layer, values))]
        if kind is Kind.CONCATENATE and all(isinstance(value, Quantized) for value in values):
            return self._on_its_grid(node, _concatenated(node, layer, values))
        if kind is Kind.FUNCTION:
            return Gelu(name=layer.name, source=values[0], approximate=_is_approximate(node, values))
        return _PENDING[kind](layer, values) if kind in _PENDING else _unknown(layer)

    def _run_in_float(self, node: _host.Node, values: list[Any]) -> Any:
        """The outputs of a copy of the layer, one copy for all its calls."""
        layer = node.layer
        is_new = layer.name not in self._float_copies
        if is_new:
            self._float_copies[layer.name] = _in_float32(layer)
        copy = self._float_copies[layer.name]
        outputs = _host.run_as_before(node, copy, [_in_float(value) for value in values])
        if is_new and copy is not layer:
            _host.copy_state(layer, copy)
        return [Float(tensor=tensor) for tensor in _host.as_list(outputs)]

    def _settle(self, layer: QuantizeActivation, name: str, site: int, value: Value) -> Quantized:
        """Emits what a quantizer has been waiting for."""
        if name in self._pixel_grids:
            pixels = integer.IntegerPixels(name=name, grid=self._pixel_grids[name])
            return Quantized(tensor=pixels(_tensor(value)), grid=pixels.grid)
        grid, stored = layer.grid(), layer.stored_grid()
        normalizer = float(stored.normalizer)
        int8 = int8_grid(dataclasses.replace(grid, step=float(stored.step)))
        low, high = layer.clips[site]
        activation = "none" if layer.quantizer.is_signed and low is None else "relu"
        if high is not None and grid.maximum + grid.lower > high + grid.step / 2:
            if high != FUSED_CEILING:
                raise ValueError(
                    f"Got a grid up to {grid.maximum:.3g} behind the clip of {name!r} at {high:g}, expected one that "
                    "ends there: quantize the model with LowBitScheme, which places such grids."
                )
            activation = "relu6"
        if isinstance(value, Float):
            if grid.lower:
                value = Float(tensor=keras_layers.Rescaling(1.0, -grid.lower)(value.tensor))
            activation = "none" if value.is_input else activation
            quantize = integer.IntegerQuantize(
                name=name, grid=int8, activation=activation, behind_float=not value.is_input
            )
            return Quantized(tensor=quantize(value.tensor), grid=int8, normalizer=normalizer)
        pending = Shift(name=name, source=value) if isinstance(value, Quantized) else value
        target = Target(grid=int8, activation=activation, lower=grid.lower)
        return Quantized(tensor=pending.emit(target), grid=int8, normalizer=normalizer)

    def _linear(self, wrapper: QuantizedLayer, value: Value) -> Value:
        layer, grid = wrapper.layer, wrapper.grid()
        if not isinstance(value, Quantized):
            raise ValueError(
                f"Got a float input of the quantized layer {layer.name!r}, expected one on a grid: give its producer "
                "a config with quantizers, or leave this layer in float too."
            )
        operator = _operator(layer)
        trailing = grid.codes.shape[-2:] if operator == "depthwise" else grid.codes.shape[-1:]
        channels = int(np.prod(trailing))
        bias = layer.bias.numpy().astype(np.float64) if layer.use_bias else np.zeros(channels)
        options: dict[str, Any] = {"kernels": "builtin" if layer.name in self._builtin else "xnnpack"}
        codes = grid.codes
        if isinstance(layer, keras_layers.Conv1D):
            codes = codes[None]
            options |= _one_dimensional(layer)
        elif operator != "dense":
            options |= {"strides": layer.strides, "padding": layer.padding, "dilations": layer.dilation_rate}
        phases = None
        if isinstance(layer, keras_layers.Conv2DTranspose):
            phases = Phases(
                name=layer.name, window=layer.kernel_size, stride=int(layer.strides[0]), padding=layer.padding
            )
            options |= {"strides": (1, 1), "padding": "valid"}
        steps = np.broadcast_to(grid.step, trailing).reshape(-1).astype(np.float64)
        divisors = int8_divisors(codes.astype(np.float32), len(trailing)).numpy()
        return Linear(
            name=self._name_of_call(layer.name),
            source=value,
            operator=operator,
            codes=(codes // divisors).astype(np.int32),
            steps=steps * divisors.reshape(-1),
            factors=np.full(channels, 1.0 / value.normalizer),
            bias=bias,
            options=options,
            phases=phases,
        )

    def _on_its_grid(self, node: _host.Node, value: Value) -> Value:
        """An output of a layer that keeps grids, with the grid in sight of the converter where it needs that."""
        if node.layer.name not in self._before_tied or not isinstance(value, Quantized):
            return value
        keep = integer.IntegerQuantize(name=self._name_of_call(f"{node.layer.name}_grid"), grid=value.grid)
        return dataclasses.replace(value, tensor=keep(value.tensor))

    def _name_of_call(self, name: str) -> str:
        """A name for each call of a layer."""
        self._names[name] += 1
        call = self._names[name]
        return name if call == 1 else f"{name}_call_{call}"


def tensor_name(layer: QuantizeActivation, site: int) -> str:
    """What the tensor behind a quantizer is called in a lowered model: the layer's name, and its site if it has any."""
    return layer.name if layer.sites == 1 else f"{layer.name}_site_{site}"


def _before_tied(model: Any) -> frozenset[str]:
    """Names of the layers that keep grids and are read, perhaps by way of others, by a layer that ties them.

    Where an average pooling and a convolution read the output of such a layer, the converter sees no grid on it, and
    leaves the convolution in float.
    """
    graph = _host.graph_of(model)
    read_by_tied: set[int] = set()
    names = set()
    for node in reversed(graph.nodes):
        kind = kind_of(node.layer.layer if isinstance(node.layer, QuantizedLayer) else node.layer)
        keeps = kind in (Kind.KEEP, Kind.CONCATENATE) and not read_by_tied.isdisjoint(node.outputs)
        if keeps:
            names.add(node.layer.name)
        if keeps or kind is Kind.TIED:
            read_by_tied.update(node.inputs)
    return frozenset(names)


def _number_twins(model: Any) -> None:
    """Tells layers with equal kernels apart, which calls of one layer are, and averages over equal windows."""
    seen: collections.Counter[tuple[bytes, bytes]] = collections.Counter()
    for layer in model.layers:
        if isinstance(layer, integer.IntegerLinear):
            kernel = layer.codes.tobytes(), layer.steps.tobytes()
            layer.twin = seen[kernel]
            seen[kernel] += 1


def _one_dimensional(layer: Any) -> dict[str, Any]:
    """The options of a one-dimensional convolution as one over images of height 1."""
    return {
        "strides": (1, *layer.strides),
        "padding": layer.padding,
        "dilations": (1, *layer.dilation_rate),
        "axes_before": 1,
    }


def _in_float32(layer: Any) -> Any:
    """A copy of a layer that computes in float32; the layer itself if it cannot be copied and has no weights."""
    return copy_of(layer, **({"dtype": "float32"} if "dtype" in layer.get_config() else {}))


def _norm(layer: Any, values: list[Any]) -> Value:
    (value,) = values
    if isinstance(value, Linear):
        return value.folded(layer)
    return _affine(layer, value)


def _affine(norm: Any, value: Quantized) -> Linear:
    """A batch normalization on its own: a depthwise 1x1 convolution with 8-bit weights."""
    scale, shift = scale_and_shift(norm, int(value.tensor.shape[-1]))
    return Linear(
        name=norm.name,
        source=value,
        operator="depthwise",
        codes=np.full((1, 1, scale.size, 1), 127, np.int32),
        steps=np.full(scale.size, 1 / 127),
        factors=scale,
        bias=shift,
        options={"axes_before": max(0, 4 - value.tensor.shape.rank)},
    )


def _average_pool(layer: Any, values: list[Any]) -> Linear:
    """Average pooling: a depthwise convolution whose weights are all 1 and whose step is 1 / window."""
    (value,) = values
    window, strides, one_dimensional = layer.pool_size, layer.strides, len(layer.pool_size) == 1
    if one_dimensional:  # With equal strides, since a depthwise convolution takes no others.
        window, strides = (1, *window), (*strides, *strides)
    channels = int(value.tensor.shape[-1])
    return Linear(
        name=layer.name,
        source=value,
        operator="depthwise",
        codes=np.ones((*window, channels, 1), np.int32),
        steps=np.full(channels, 1 / math.prod(window)),
        factors=np.ones(channels),
        bias=np.zeros(channels),
        options={"strides": strides, "padding": layer.padding, "axes_before": int(one_dimensional)},
    )


def _join(layer: Any, values: list[Any]) -> Join:
    branches = tuple(
        Shift(name=f"{layer.name}_input_{index}", source=value) if isinstance(value, Quantized) else value
        for index, value in enumerate(values)
    )
    return Join(name=layer.name, branches=branches, axis=layer.axis)


def _concatenated(node: _host.Node, layer: Any, values: list[Any]) -> Quantized:
    """A concatenation of tensors that are on one grid already."""
    grids = {value.grid for value in values}
    if len(grids) > 1:
        raise ValueError(
            f"Got inputs of {layer.name!r} on {len(grids)} different grids, expected one: quantize the model with "
            "LowBitScheme, which gives them one."
        )
    copy = copy_of(layer, dtype="float32")
    return Quantized(tensor=_host.run_as_before(node, copy, [v.tensor for v in values]), grid=values[0].grid)


_PENDING: dict[Kind | None, Callable[[Any, list[Any]], Value]] = {
    **dict.fromkeys(FOLDED, _norm),
    Kind.CONCATENATE: _join,
    Kind.AVERAGE_POOL: _average_pool,
    Kind.SUM: lambda layer, values: Sum(
        name=layer.name, sources=tuple(values), subtracts=isinstance(layer, keras_layers.Subtract)
    ),
    Kind.PRODUCT: lambda layer, values: Product(name=layer.name, sources=tuple(values)),
    Kind.TIED: lambda layer, values: Tied(name=layer.name, sources=tuple(values), layer=layer),
    Kind.MEAN: lambda layer, values: Mean(name=layer.name, source=values[0], keepdims=layer.keepdims),
    Kind.LOOKUP: lambda layer, values: Lookup(name=layer.name, source=values[0], function=activation_name(layer)),
}


def _is_approximate(node: _host.Node, values: list[Any]) -> bool:
    """Whether a GELU is the one with tanh, as only calls of TensorFlow's function are."""
    if _host.function_of(node.layer) is None:
        return False
    arguments, keywords = _host.arguments_of(node, values)
    return bool(arguments_in_order(node.layer, arguments, keywords)[1])


def _kept(node: _host.Node, layer: Any, values: list[Any]) -> Any:
    """Value-keeping layers keep the grid; those that do nothing at inference disappear."""
    value = values[0]  # Others are sizes.
    if isinstance(layer, (*TRAINING_ONLY, keras_layers.Activation)):
        return value
    tensor = _tensor(value)
    if _host.function_of(layer) == "repeat":
        arguments = tf_calls.arguments_in_order(layer, *_host.arguments_of(node, [tensor]))
        enlarging = tf_calls.enlarging(layer.name, arguments)
        if enlarging is not None:
            return dataclasses.replace(value, tensor=enlarging[0](tensor))
    copy = copy_of(layer, dtype="float32")
    outputs = _host.run_as_before(node, copy, [tensor, *map(_tensor, values[1:])])
    return [dataclasses.replace(value, tensor=tensor) for tensor in _host.as_list(outputs)]


def _tensor(value: Value) -> Any:
    if isinstance(value, Pending):
        raise ValueError(
            f"Got no quantizer behind {value.name!r}, expected one that gives its output a grid: quantize the model "
            "with LowBitScheme, which places them."
        )
    return value.tensor


def _in_float(value: Value) -> Any:
    """The tensor of a value for a layer that computes in float."""
    tensor = _tensor(value)
    return integer.Dequantize()(tensor) if isinstance(value, Quantized) else tensor


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
