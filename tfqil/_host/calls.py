"""One call of a layer in a functional graph, and the tensors that it reads and makes."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf
from tf_keras.src.layers.core import tf_op_layer

from tfqil._host.framework import keras
from tfqil._host.graph import Node, as_list

# What Keras makes of calls of TensorFlow functions in a functional graph.
_TFCall = tf_op_layer.TFOpLambda


def arguments_of(node: Node, tensors: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that a layer had in a node, with new tensors."""
    queues: dict[str, list[Any]] = {}  # A layer may read a tensor more than once; Keras takes one entry for each time.
    for old, new in zip(node.keras_node.flat_input_ids, tensors, strict=True):
        queues.setdefault(str(old), []).append(new)
    arguments, keywords = node.keras_node.map_arguments(queues)
    return tuple(arguments), keywords


def run_as_before(node: Node, layer: Any, tensors: list[Any]) -> Any:
    """Calls a layer on new tensors with the arguments that it had in a node."""
    arguments, keywords = arguments_of(node, tensors)
    return layer(*arguments, **keywords)


def has_output_shape(node: Node, tensor: Any) -> bool:
    """Whether a tensor has the shape of the output of a node."""
    (expected,) = (output.shape for output in tf.nest.flatten(node.keras_node.outputs))
    return bool(tensor.shape.is_compatible_with(expected))


def keyword(node: Node, name: str, default: Any) -> Any:
    """The value of a keyword argument in a call of a functional graph."""
    return node.keras_node.call_kwargs.get(name, default)


def is_symbolic(value: Any) -> bool:
    """Whether a value is a tensor of a functional graph."""
    return tf.is_tensor(value) and bool(keras.backend.is_keras_tensor(value))


def is_floating(node: Node) -> bool:
    """Whether the outputs of a node are floats."""
    return all(tensor.dtype.is_floating for tensor in tf.nest.flatten(node.keras_node.outputs))


def is_inferring_shapes() -> bool:
    """Whether Keras calls a layer only to see the shape of its output, in a graph that it throws away."""
    return not tf.executing_eagerly() and tf.compat.v1.get_default_graph().name.endswith("_scratch_graph")


def with_mask(tensor: Any, source: Any) -> Any:
    """A tensor with the mask of another one, as Keras hands masks on beside tensors."""
    mask = getattr(source, "_keras_mask", None)
    if mask is not None and tensor is not source:
        tensor._keras_mask = mask
    return tensor


def joint_mask(masks: Any) -> Any:
    """A mask of time steps that is true where all of several are; None without any."""
    given = [mask for mask in as_list(masks) if mask is not None]
    return functools.reduce(tf.logical_and, given) if given else None


def inputs_in_order(model: Any, arguments: tuple[Any, ...]) -> list[Any]:
    """What a model is called on, in the order of its inputs."""
    return list(model._flatten_to_reference_inputs(arguments[0]))


def function_of(layer: Any) -> str | None:
    """The name of the TensorFlow function that a layer of a plain call stands for, as in "nn.relu"; None without."""
    return str(layer.get_config()["function"]) if isinstance(layer, _TFCall) else None


def latest_node(layer: Any, **keywords: Any) -> Any:
    """The latest call of a layer in a functional graph with the given keywords; None without one."""
    for node in reversed(layer.inbound_nodes):
        if all(node.call_kwargs.get(name) == value for name, value in keywords.items()):
            return node
    return None


def producer_of(tensor: Any) -> Any:
    """The call that made a tensor of a functional graph."""
    history = tensor._keras_history
    return history.layer.inbound_nodes[history.node_index]


def nodes_before(node: Any) -> list[Any]:
    """The calls whose outputs a call in a functional graph reads."""
    return list(node.parent_nodes)
