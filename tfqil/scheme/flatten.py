"""A flat copy of a model: nested models and blocks of layers opened, annotations taken off."""

from __future__ import annotations

import collections
import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from tfqil import _host
from tfqil.scheme.kinds import kind_of
from tfqil.scheme.tf_calls import is_known_call


def flatten(model: Any) -> tuple[Any, dict[str, Any]]:
    """Copies a model into one whose layers are all in one graph; `model` is not changed.

    The layers of a nested model keep their names if no other layer has the same, else they get the nested model's in
    front. A custom layer that consists of known layers and plain TensorFlow calls, and has no weights besides theirs,
    is opened too; its parts are called after it. One without inner layers is not if it takes `training`: it may do
    another thing then.

    Returns:
        The copy, and the configs of annotated layers by the name of the layer in the copy.
    """
    copier = _Copier(_unique_names(model))
    flat = _host.replay(model, copier.call)
    copier.copies.copy_weights()
    if any(_host.is_layer(getattr(layer, "activation", None)) for layer in flat.layers):
        flat = _host.replay(flat, _ActivationsApart().call)
    return flat, copier.configs


def _leaves(model: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Every layer inside a model and the names of the nested models around it."""
    for layer in model.layers:
        inner = _host.unannotated(layer)
        if _host.is_model(inner):
            yield from _leaves(inner, (*path, inner.name))
        else:
            yield inner, path


def _unique_names(model: Any) -> dict[int, str]:
    """A name for each layer, by its id."""
    leaves = {id(layer): (layer, path) for layer, path in _leaves(model)}
    count = collections.Counter(layer.name for layer, _ in leaves.values())
    names: dict[int, str] = {}
    taken: set[str] = set()
    for identity, (layer, path) in leaves.items():
        name = base = layer.name if count[layer.name] == 1 else "_".join((*path, layer.name))
        number = 1
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        names[identity] = name
    return names


class _Copier:
    """Calls copies of layers; one copy for all calls of a layer."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.configs: dict[str, Any] = {}
        self.copies = LayerCopies()
        self._names = names

    def call(self, node: _host.Node, tensors: list[Any], **context: Any) -> Any:
        """The outputs of the copy of a node's layer; `context` holds the arguments of nested models around it."""
        if not node.inputs:
            return tensors[0]
        layer = _host.unannotated(node.layer)
        arguments, keywords = _host.arguments_of(node, tensors)
        context = {**context, **{key: value for key, value in keywords.items() if key == "training"}}
        if _host.is_model(layer):
            inputs = _host.inputs_in_order(layer, arguments)
            return _host.evaluate(layer, inputs, functools.partial(self.call, **context))
        if context.get("training") is not None and _takes_training(layer):
            keywords["training"] = context["training"]
        copy = self.copies.of(layer, self._names.get(id(layer)))
        config = _host.annotated_config(node.layer)
        if config is not None:
            self.configs[copy.name] = config
        if _may_be_opened(layer) and len(tensors) == 1 and not keywords:
            opened = _opened(copy, tensors[0])
            if opened is not None:
                return opened
        return copy(*arguments, **keywords)


class LayerCopies:
    """Copies of layers, one for all calls of a layer."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Any, Any]] = {}

    def of(self, layer: Any, name: str | None = None) -> Any:
        """The copy of a layer, made when it is first asked for; with another name if one is given."""
        if id(layer) not in self._copies:
            self._copies[id(layer)] = layer, copy_of(layer, name)
        return self._copies[id(layer)][1]

    def copy_weights(self) -> None:
        """Gives every copy the weights of its original; they exist once it was called."""
        for original, copy in self._copies.values():
            if original.weights and copy is not original:
                _host.copy_state(original, copy)


def copy_of(layer: Any, name: str | None = None, **changes: Any) -> Any:
    """A layer of the same config, without weights as yet; with another name and other changes to its config.

    Raises:
        ValueError: a layer with weights whose config does not make it.
    """
    config = {**layer.get_config(), "name": name or layer.name, **changes}
    function = vars(layer).get("activation")
    keeps_function = inspect.isfunction(function) and type(layer).__module__.startswith("tf_keras.")
    if keeps_function:
        config["activation"] = None  # Its name may be that of one of Keras's, or unknown.
    try:
        copy = type(layer).from_config(config)
    except (NotImplementedError, TypeError, ValueError) as error:
        if not layer.weights:
            return layer  # Such as a Lambda of a Python function: it has nothing that the copy could change.
        raise ValueError(
            f"Got the layer {layer.name!r} ({type(layer).__name__}), which cannot be copied ({error}), expected one "
            "with a get_config that its constructor takes: add `get_config` to the class."
        ) from error
    if keeps_function:
        copy.activation = function
    return copy


class _ActivationsApart:
    """Calls layers whose activation is a layer without it, and that layer after them."""

    def __init__(self) -> None:
        self._taken: dict[str, Any] = {}

    def call(self, node: _host.Node, tensors: list[Any]) -> Any:
        """The outputs of a node's layer and its activation."""
        if not node.inputs:
            return tensors[0]
        layer = node.layer
        if _host.is_layer(getattr(layer, "activation", None)):
            self._taken[layer.name] = copy_of(layer.activation, f"{layer.name}_activation")
            layer.activation = _host.keras.activations.linear
        outputs = _host.run_as_before(node, layer, tensors)
        activation = self._taken.get(layer.name)
        if activation is None:
            return outputs
        opened = _opened(activation, outputs) if _may_be_opened(activation) else None
        return activation(outputs) if opened is None else opened


def _may_be_opened(layer: Any) -> bool:
    """Whether a custom layer has no weights that its inner layers do not have, and no inner layers or one behavior."""
    if type(layer).__module__.startswith("tf_keras.") or kind_of(layer) is not None:
        return False
    own = {id(weight) for weight in layer.weights}
    inner = {id(weight) for part in _parts(layer) for weight in part.weights}
    return own <= inner and (bool(_parts(layer)) or not _takes_training(layer))


def _takes_training(layer: Any) -> bool:
    return "training" in inspect.signature(layer.call).parameters


def _parts(layer: Any) -> list[Any]:
    return list(layer._flatten_layers(include_self=False, recursive=False))


def _opened(layer: Any, tensor: Any) -> Any:
    """The outputs of what a layer calls, called one by one; None if the layer does something unknown."""
    layer.build(tensor.shape)
    for part in _parts(layer):
        if not part.name.startswith(f"{layer.name}_"):
            part._name = f"{layer.name}_{part.name}"
    try:
        # Not its default for `training`, which would hold for the inner layers whatever the model is called with.
        keywords = {"training": None} if _takes_training(layer) else {}
        outputs = layer.call(tensor, **keywords)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # Its code needs tensors with values, or takes other arguments.
    called = _called_between(tensor, outputs)
    if all(map(_is_known, called)):
        return outputs
    if all(_is_known(part) or _may_be_opened(part) for part in called):
        return _opened_inside(tensor, outputs)
    return None


def _opened_inside(tensor: Any, outputs: Any) -> Any:
    """The outputs of a layer whose calls are to be opened in turn; None if one of them does something unknown."""

    def call(node: _host.Node, tensors: list[Any]) -> Any:
        if _is_known(node.layer):
            return _host.run_as_before(node, node.layer, tensors)
        opened = _opened(node.layer, tensors[0])
        if opened is None:
            raise LookupError
        return opened

    try:
        opened = _host.evaluate(_host.Model(tensor, outputs), [tensor], call)
    except LookupError:
        return None
    return opened if isinstance(outputs, (list, tuple)) else opened[0]


def _is_known(layer: Any) -> bool:
    return kind_of(layer) is not None or is_known_call(layer)


def _called_between(source: Any, outputs: Any) -> list[Any]:
    """The layers whose calls lead from a tensor to others."""
    found: dict[int, Any] = {}
    waiting = [tensor._keras_history for tensor in _host.as_list(outputs)]
    start = source._keras_history
    while waiting:
        history = waiting.pop()
        node = history.layer.inbound_nodes[history.node_index]
        if history == start or id(node) in found:
            continue
        found[id(node)] = history.layer
        waiting += [tensor._keras_history for tensor in node.keras_inputs]
    return list(found.values())
