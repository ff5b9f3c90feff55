"""Takes compound layers apart, so that each layer of a model does one thing: a kernel, or an activation."""

from __future__ import annotations

import collections
from typing import Any

from tfqil import _host
from tfqil.scheme.kinds import Kind, activation_name, kind_of

layers = _host.keras.layers


def expand(model: Any) -> tuple[Any, dict[str, str]]:
    """Splits separable convolutions and inline activations into layers of their own.

    SeparableConv2D becomes NAME_depthwise and NAME_pointwise; an activation function of a layer with a kernel becomes
    the layer NAME_activation; a layer without weights that is called again becomes NAME_2 and so on. The layers of
    `model` are used, not copied: give it a copy.

    Returns:
        The model, and for each new or changed layer the name of the layer it came from.
    """
    origins: dict[str, str] = {}
    calls: collections.Counter[str] = collections.Counter()

    def call(node: _host.Node, tensors: list[Any]) -> Any:
        if not node.inputs:
            return tensors[0]
        calls[node.layer.name] += 1
        if kind_of(node.layer) is Kind.SUM and len(tensors) > 2:
            return _pairwise_sum(node.layer, tensors, origins)
        parts = _parts(_of_one_call(node.layer, calls[node.layer.name]), tensors[0])
        origins.update({part.name: node.layer.name for part in parts})
        first, *rest = parts
        outputs = _host.run_as_before(node, first, tensors)
        for part in rest:
            outputs = part(outputs)
        return outputs

    return _host.replay(model, call), origins


def _pairwise_sum(layer: Any, tensors: list[Any], origins: dict[str, str]) -> Any:
    """Adds more than two tensors one by one: the runtime adds two, and each sum has a grid of its own."""
    total = tensors[0]
    for index, tensor in enumerate(tensors[1:], start=1):
        last = index == len(tensors) - 1
        part = layers.Add(name=layer.name if last else f"{layer.name}_{index}")
        origins[part.name] = layer.name
        total = part([total, tensor])
    return total


def _of_one_call(layer: Any, call: int) -> Any:
    """The layer for its first call, a copy of another name for each later one; each call has a grid of its own."""
    if call == 1:
        return layer
    if layer.weights:
        raise ValueError(
            f"Got the layer {layer.name!r} ({type(layer).__name__}) called more than once, expected one call of each "
            "layer with weights: give every call a layer of its own."
        )
    return type(layer).from_config({**layer.get_config(), "name": f"{layer.name}_{call}"})


def _parts(layer: Any, inputs: Any) -> list[Any]:
    if type(layer) is layers.SeparableConv2D:
        return _separable_parts(layer, inputs)
    if kind_of(layer) is Kind.LINEAR and activation_name(layer) != "linear":
        return [layer, _own_activation(layer)]
    return [layer]


def _own_activation(layer: Any) -> Any:
    function, layer.activation = layer.activation, _host.keras.activations.linear
    return layers.Activation(function, name=f"{layer.name}_activation")


def _separable_parts(layer: Any, inputs: Any) -> list[Any]:
    depthwise = layers.DepthwiseConv2D(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        depthwise_regularizer=layer.depthwise_regularizer,
        depthwise_constraint=layer.depthwise_constraint,
        name=f"{layer.name}_depthwise",
        trainable=layer.trainable,
    )
    pointwise = layers.Conv2D(
        layer.filters,
        1,
        use_bias=layer.use_bias,
        activation=layer.activation,
        kernel_regularizer=layer.pointwise_regularizer,
        kernel_constraint=layer.pointwise_constraint,
        bias_regularizer=layer.bias_regularizer,
        bias_constraint=layer.bias_constraint,
        name=f"{layer.name}_pointwise",
        trainable=layer.trainable,
    )
    pointwise.build(depthwise(inputs).shape)
    depthwise.set_weights([layer.depthwise_kernel.numpy()])
    bias = [layer.bias.numpy()] if layer.use_bias else []
    pointwise.set_weights([layer.pointwise_kernel.numpy(), *bias])
    return [depthwise, *_parts(pointwise, inputs)]
