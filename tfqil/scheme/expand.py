"""Takes compound layers apart, so that each layer of a model does one thing: a kernel, an activation, a sum."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
from absl import logging

from tfqil import _host
from tfqil.scheme import tf_calls
from tfqil.scheme.flatten import copy_of
from tfqil.scheme.joined import JoinedTensors
from tfqil.scheme.kinds import LEAKY_SLOPE_UNIT, Kind, activation_name, ceiling_of, kind_of
from tfqil.scheme.names import Names

layers = _host.keras.layers


def expand(model: Any) -> tuple[Any, dict[str, str]]:
    """Splits layers that do several things, and makes layers of plain TensorFlow calls.

        SeparableConv2D                     NAME_depthwise and NAME_pointwise
        inline activation of a kernel       NAME_activation
        swish, hard_sigmoid                 products and clips: NAME_sigmoid and NAME, NAME_affine and NAME
        Add, Multiply of more than two      one by one: NAME_1, ..., NAME
        Normalization, Rescaling, x * 2.0   Rescaling; one after the other are one
        a layer without weights, again      NAME_2 and so on; one with weights is called again

    The layers of `model` are used, not copied: give it a copy.

    Returns:
        The model, and for each new or changed layer the name of the layer it came from.
    """
    expander = _Expander(Names(layer.name for layer in model.layers))
    return _host.replay(model, expander.call), expander.origins


class _Expander:
    def __init__(self, names: Names) -> None:
        self._names = names
        self.origins: dict[str, str] = {}
        self._calls: collections.Counter[str] = collections.Counter()
        self._taken_apart: dict[str, list[Any]] = {}
        # What makes a tensor, by its id: (source, scale, offset) of an affine layer, (source, ceiling) of a ReLU.
        self._affine: dict[int, tuple[Any, Any, Any]] = {}
        self._clipped: dict[int, tuple[Any, float]] = {}
        self._joined = JoinedTensors(names)

    def call(self, node: _host.Node, tensors: list[Any]) -> Any:
        """The outputs of what stands for a node's layer."""
        if not node.inputs:
            return tensors[0]
        self._calls[node.layer.name] += 1
        call = self._calls[node.layer.name]
        layer, origin = node.layer, node.layer.name
        name = origin if call == 1 else self._names.fresh(f"{origin}_{call}")
        if _host.function_of(layer) is not None:
            arguments, keywords = _host.arguments_of(node, tensors)
            in_order = tf_calls.arguments_in_order(layer, arguments, keywords)
            if _host.function_of(layer) == "__operators__.getitem":
                part = self._joined.sliced(in_order[0], in_order[1])
                if part is not None:
                    return part
            translated = tf_calls.as_layer(name, _host.function_of(layer) or "", in_order)
            if translated is not None:
                outputs = self._run(*translated, origin=origin)
                if _host.has_output_shape(node, outputs):
                    return outputs
        elif not layer.weights and call > 1:
            layer = copy_of(layer, name)
        if _is_simple_call(node, tensors):
            return self._run(layer, tensors, origin=origin, name=name)
        return _host.run_as_before(node, layer, tensors)

    def _run(self, layer: Any, tensors: list[Any], *, origin: str, name: str | None = None) -> Any:
        """Calls a layer, or what it is made of; `name` is that of this call."""
        name = name or layer.name
        kind = kind_of(layer)
        if kind in (Kind.SUM, Kind.PRODUCT) and len(tensors) > 2:
            return self._one_by_one(layer, tensors, origin)
        if type(layer) is layers.Average:
            total = self._one_by_one(layers.Add(name=self._names.fresh(f"{name}_sum")), tensors, origin)
            return self._rescaled(name, total, 1.0 / len(tensors), 0.0, origin)
        if type(layer) is layers.Concatenate and len(tensors) == 1:
            return tensors[0]
        if kind is Kind.AFFINE:
            return self._rescaled(name, tensors[0], layer.scale, layer.offset, origin)
        if type(layer) is layers.Normalization and not layer.invert and _is_per_channel(layer):
            mean, variance = (np.ravel(statistic.numpy()) for statistic in (layer.mean, layer.variance))
            scale = 1.0 / np.maximum(np.sqrt(variance), 1e-7)
            return self._rescaled(name, tensors[0], scale, -mean * scale, origin)
        if type(layer) is layers.SeparableConv2D:
            outputs = tensors[0]
            for part in self._parts(layer, lambda: _separable_parts(layer, tensors[0], self._names)):
                outputs = self._new(part, origin)(outputs)
            return self._activated(layer.activation, self._names.fresh(f"{name}_pointwise_activation"), outputs, origin)
        if kind is Kind.LINEAR:
            (function,) = self._parts(layer, lambda: [_take_activation(layer)])
            self.origins[layer.name] = origin
            return self._activated(function, self._names.fresh(f"{name}_activation"), layer(tensors[0]), origin)
        if type(layer) is layers.Activation and activation_name(layer) != "linear":
            return self._activated(layer.activation, name, tensors[0], origin, layer)
        if type(layer) is layers.LeakyReLU:
            layer = layers.LeakyReLU(_multiple_of_unit(float(layer.alpha), name), name=name)
        outputs = self._placed(layer, tensors, origin)
        self._joined.note(layer, tensors, outputs)
        return outputs

    def _placed(self, layer: Any, tensors: list[Any], origin: str) -> Any:
        """The outputs of a layer that stands as it is, with a note of what a ReLU with a ceiling clips."""
        outputs = self._new(layer, origin)(tensors if len(tensors) > 1 else tensors[0])
        if kind_of(layer) is Kind.RELU and (ceiling := ceiling_of(layer)) is not None:
            self._clipped[id(outputs)] = tensors[0], float(ceiling)
        return outputs

    def _new(self, layer: Any, origin: str) -> Any:
        self.origins[layer.name] = origin
        return layer

    def _parts(self, layer: Any, make: Any) -> list[Any]:
        """What a layer was taken apart into when it was called first."""
        if layer.name not in self._taken_apart:
            self._taken_apart[layer.name] = make()
        return self._taken_apart[layer.name]

    def _one_by_one(self, layer: Any, tensors: list[Any], origin: str) -> Any:
        """Merges more than two tensors one by one: the runtime takes two, and each result has a grid of its own."""
        total = tensors[0]
        for index, tensor in enumerate(tensors[1:], start=1):
            last = index == len(tensors) - 1
            part = type(layer)(name=layer.name if last else self._names.fresh(f"{layer.name}_{index}"))
            total = self._new(part, origin)([total, tensor])
        return total

    def _rescaled(self, name: str, tensor: Any, scale: Any, offset: Any, origin: str) -> Any:
        """Scale * tensor + offset, together with the affine layer before it; behind a clip, the clip of the multiple.

        a min(max(x, 0), c) = min(max(a x, 0), a c) for a > 0, so that the constants of a hard sigmoid,
        relu6(x + 3) / 6, become one affine layer before one clip.
        """
        scale, offset = (_flat(np.asarray(values, np.float64)) for values in (scale, offset))
        clipped = self._clipped.get(id(tensor))
        if clipped is not None and scale.ndim == 0 and scale > 0 and not np.any(offset):
            source = self._rescaled(self._names.fresh(f"{name}_affine"), clipped[0], scale, 0.0, origin)
            return self._placed(layers.ReLU(float(clipped[1] * scale), name=name), [source], origin)
        before = self._affine.get(id(tensor))
        if before is not None:
            tensor, scale, offset = before[0], before[1] * scale, before[2] * scale + offset
        layer = layers.Rescaling(scale.tolist(), offset.tolist(), name=name)
        outputs = self._new(layer, origin)(tensor)
        self._affine[id(outputs)] = tensor, scale, offset
        return outputs

    def _activated(self, function: Any, name: str, tensor: Any, origin: str, layer: Any = None) -> Any:
        """The tensor behind an activation function."""
        layer = layer or layers.Activation(function, name=name)
        function_name = activation_name(layer)
        if function_name == "linear":
            return tensor
        if function_name in ("silu", "swish"):
            gate = self._new(layers.Activation("sigmoid", name=self._names.fresh(f"{name}_sigmoid")), origin)(tensor)
            return self._new(layers.Multiply(name=name), origin)([tensor, gate])
        if function_name == "hard_sigmoid":
            affine = self._rescaled(self._names.fresh(f"{name}_affine"), tensor, 0.2, 0.5, origin)
            return self._placed(layers.ReLU(1.0, name=name), [affine], origin)
        if function_name == "leaky_relu":
            return self._run(layers.LeakyReLU(0.2, name=name), [tensor], origin=origin)
        return self._placed(layer, [tensor], origin)


def _is_simple_call(node: _host.Node, tensors: list[Any]) -> bool:
    """Whether a layer was called on its tensors alone, without other arguments."""
    arguments, keywords = _host.arguments_of(node, tensors)
    return len(arguments) == 1 and not keywords and len(_host.as_list(arguments[0])) == len(tensors)


def _is_per_channel(layer: Any) -> bool:
    """Whether a Normalization has one mean and variance per channel, or one for all."""
    return layer.mean is not None and layer.mean.shape.num_elements() in (1, layer.mean.shape[-1])


def _flat(values: np.ndarray) -> np.ndarray:
    """One value as a scalar, several as a vector."""
    return values.reshape(()) if values.size == 1 else values.reshape(-1)


def _multiple_of_unit(slope: float, layer: str) -> float:
    multiple = round(slope / LEAKY_SLOPE_UNIT) * LEAKY_SLOPE_UNIT
    if slope and not multiple:
        logging.warning(
            "tfqil: the slope %g of %r becomes 0, since the runtime has multiples of 1/256: a PReLU with fixed slopes "
            "keeps it.", slope, layer,
        )  # fmt: skip
    return multiple


def _take_activation(layer: Any) -> Any:
    function, layer.activation = layer.activation, _host.keras.activations.linear
    return function


def _separable_parts(layer: Any, inputs: Any, names: Names) -> list[Any]:
    depthwise = layers.DepthwiseConv2D(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        depthwise_regularizer=layer.depthwise_regularizer,
        depthwise_constraint=layer.depthwise_constraint,
        name=names.fresh(f"{layer.name}_depthwise"),
        trainable=layer.trainable,
    )
    pointwise = layers.Conv2D(
        layer.filters,
        1,
        use_bias=layer.use_bias,
        kernel_regularizer=layer.pointwise_regularizer,
        kernel_constraint=layer.pointwise_constraint,
        bias_regularizer=layer.bias_regularizer,
        bias_constraint=layer.bias_constraint,
        name=names.fresh(f"{layer.name}_pointwise"),
        trainable=layer.trainable,
    )
    pointwise.build(depthwise(inputs).shape)
    depthwise.set_weights([layer.depthwise_kernel.numpy()])
    bias = [layer.bias.numpy()] if layer.use_bias else []
    pointwise.set_weights([layer.pointwise_kernel.numpy(), *bias])
    return [depthwise, pointwise]
