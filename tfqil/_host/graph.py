"""Functional graphs: their calls, and how they run again with other calls."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import re
from typing import Any

import tensorflow as tf

from tfqil._host.framework import keras


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One call of a layer in a functional graph; tensors are named by numbers."""

    layer: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    keras_node: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """The calls of a functional or Sequential model in an order in which they can run."""

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def producer(self, tensor: int) -> Node:
        """The call that made a tensor."""
        return self._producers[tensor]

    def readers(self, tensor: int) -> tuple[Node, ...]:
        """The calls that read a tensor, each once."""
        return tuple(self._readers.get(tensor, ()))

    @functools.cached_property
    def _producers(self) -> dict[int, Node]:
        return {tensor: node for node in self.nodes for tensor in node.outputs}

    @functools.cached_property
    def _readers(self) -> dict[int, list[Node]]:
        readers: dict[int, list[Node]] = {}
        for node in self.nodes:
            for tensor in dict.fromkeys(node.inputs):
                readers.setdefault(tensor, []).append(node)
        return readers


def require_functional(model: Any) -> None:
    """Raises one sentence for anything but a built functional or Sequential tf_keras model."""
    if not isinstance(model, keras.Model):
        if type(model).__module__.partition(".")[0] == "keras":
            raise TypeError(
                f"Got a Keras 3 model ({type(model).__name__} of package keras), expected a tf_keras model: "
                "rebuild it with tfqil.from_keras3(model), since TFMOT takes no other."
            )
        raise TypeError(f"Got {type(model).__name__}, expected a tf_keras Functional or Sequential model.")
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            f"Got the unbuilt Sequential model {model.name!r}, expected a built one: give it an Input layer or call "
            "model.build(input_shape) first."
        )
    if not getattr(model, "_is_graph_network", False):
        raise TypeError(
            f"Got the subclassed model {model.name!r} ({type(model).__name__}), expected a Functional or Sequential "
            "one: rebuild it with the functional API, whose layers can be seen and replaced."
        )


def graph_of(model: Any) -> Graph:
    """Reads the calls of a functional or Sequential model, inputs first."""
    by_depth = model._nodes_by_depth
    keras_nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    numbers: dict[str, int] = {}

    def number(identifiers: Any) -> tuple[int, ...]:
        return tuple(numbers.setdefault(str(identifier), len(numbers)) for identifier in identifiers)

    nodes = []
    for keras_node in keras_nodes:
        inputs = () if keras_node.is_input else number(keras_node.flat_input_ids)
        outputs = number(keras_node.flat_output_ids)
        nodes.append(Node(layer=keras_node.layer, inputs=inputs, outputs=outputs, keras_node=keras_node))
    identifiers = [[str(id(t)) for t in keras_tensors] for keras_tensors in (model.inputs, model.outputs)]
    return Graph(nodes=tuple(nodes), inputs=number(identifiers[0]), outputs=number(identifiers[1]))


Call = collections.abc.Callable[[Node, list[Any]], Any]


def replay(model: Any, call: Call, *, finish: collections.abc.Callable[[Any], Any] = lambda output: output) -> Any:
    """Builds a functional model by running the graph of another one with other calls.

    Args:
        model: a functional or Sequential model.
        call: takes a node and its new inputs, returns its new outputs (one or a list): tensors, or any values that
            other calls understand. For the node of a model input it takes the new input itself.
        finish: takes a value that is an output of the model, returns its tensor.

    Returns:
        A functional model with inputs of the same names, shapes and dtypes, and the same structure of outputs.
    """
    graph = graph_of(model)
    tensors: dict[int, Any] = {}
    inputs: dict[int, Any] = {}
    for node in graph.nodes:
        if node.keras_node.is_input:
            arriving = inputs[node.outputs[0]] = _same_input(node.layer)
            new = call(node, [arriving])
        else:
            new = call(node, [tensors[number] for number in node.inputs])
        tensors.update(zip(node.outputs, as_list(new), strict=True))
    arriving = [inputs[number] for number in graph.inputs]
    outputs = [finish(tensors[number]) for number in graph.outputs]
    return keras.Model(
        _structured(model._nested_inputs, arriving), _structured(model._nested_outputs, outputs), name=model.name
    )


def evaluate(model: Any, inputs: list[Any], call: Call) -> list[Any]:
    """Runs the graph of a model on eager tensors, one call after the other, and returns its outputs.

    Unlike a functional call it leaves no trace in the layers. `call` is as in `replay`, without the input nodes.
    """
    graph = graph_of(model)
    tensors = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        if not node.keras_node.is_input:
            outputs = call(node, [tensors[number] for number in node.inputs])
            tensors.update(zip(node.outputs, as_list(outputs), strict=True))
    return [tensors[number] for number in graph.outputs]


def _same_input(layer: Any) -> Any:
    shape = layer.input_shape[0] if isinstance(layer.input_shape, list) else layer.input_shape
    return keras.Input(batch_shape=shape, dtype=layer.dtype, name=layer.name)


def scope_name(name: str) -> str:
    """A layer name that TensorFlow takes for a scope; inputs may have others."""
    return re.sub(r"[^A-Za-z0-9_.\\/>-]", "_", name)


def as_list(value: Any) -> list[Any]:
    """A value alone, or the values of any structure in the order of `tf.nest`."""
    if isinstance(value, (list, tuple, dict)):
        return tf.nest.flatten(value)  # type: ignore[no-any-return]
    return [value]


def _structured(structure: Any, tensors: list[Any]) -> Any:
    """The tensors in the structure of others; a list of one alone, as Keras returns it."""
    if len(tensors) == 1 and not isinstance(structure, dict):
        return tensors[0]
    return tf.nest.pack_sequence_as(structure, tensors)
