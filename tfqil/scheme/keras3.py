"""Keras 3 models, which TFMOT cannot take, as tf_keras models with the same weights and outputs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfqil import _host
from tfqil.scheme.keras3_layers import (
    INNER_LAYERS,
    Behind,
    CannotRebuildError,
    first_line,
    is_keras3,
    layer_like,
    name_of,
    why_no_input,
)
from tfqil.scheme.keras3_operations import call_function, call_operation, why_unknown_operation

# The oldest version, of those that the tests run on, 3.12.4 (with Python 3.10) and 3.15.1.
_OLDEST = (3, 12)


def from_keras3(model: Any) -> Any:
    """Rebuilds a Keras 3 model as a tf_keras model that `quantize_model` takes; `model` is not changed.

    Tested with Keras 3.12 and 3.15; versions before 3.12 are refused.

    Carried over are Functional and Sequential models, nested ones and layers that are called more than once among them,
    with any number of inputs and outputs, of

    * convolutions, also depthwise, separable and transposed, Dense, EinsumDense, Embedding;
    * normalizations: batch, layer, group, unit; Rescaling, and Normalization with what it has adapted to;
    * pooling, padding, cropping, resizing, reshaping, merging and regularizing layers;
    * recurrent layers and cells, ConvLSTM, Bidirectional, TimeDistributed; attention, also with several heads;
    * activations: layers, functions of `keras.activations`, layers as the activation of another one;
    * `x + y`, `x * 2`, `x[:, 0]` and the usual functions of `keras.ops`, which become TensorFlow calls;
    * augmentation by RandomFlip, RandomRotation, RandomTranslation, RandomZoom, RandomContrast and RandomBrightness,
      which do nothing at inference; in training they draw other numbers.

    Layers keep their names, dtype policies (mixed ones too), regularizers, constraints and `trainable`. Masks are found
    anew from Embedding and Masking layers. What `compile` set is not carried over, nor is `training=` in the call of a
    layer, which `fit` and `predict` of Keras 3 overrule.

    Args:
        model: a built Functional or Sequential model of Keras 3.

    Returns:
        A functional tf_keras model of the same name, inputs and outputs. Outputs are equal up to the rounding of
        floats: what Keras 3 calls with other TensorFlow functions adds up in another order. A list of one output comes
        as that output alone, as tf_keras returns it.

    Raises:
        TypeError: a tf_keras model, a subclassed model, or no model.
        ValueError: a model of an older Keras, an unbuilt one, or one with layers that have no equal in tf_keras: custom
            layers, Lambda, lookups of strings and numbers, layers with LoRA or quantized weights, and what only Keras 3
            has. All are named.
    """
    _require_rebuildable(model)
    rebuilder = _Rebuilder(model)
    if rebuilder.problems:
        raise ValueError(_sentence(model, rebuilder.problems))
    rebuilt = rebuilder.connect(model)
    rebuilder.copy_weights(model)
    return rebuilt


def _require_rebuildable(model: Any) -> None:
    if isinstance(model, _host.Model):
        raise TypeError(
            f"Got the tf_keras model {model.name!r}, expected a Keras 3 model: it needs no rebuilding, pass it to "
            "tfqil.quantize_model as it is."
        )
    if not is_keras3(model, "Model"):
        raise TypeError(
            f"Got {type(model).__name__}, expected a Functional or Sequential model of Keras 3, version "
            f"{_version(_OLDEST)} or later."
        )
    _require_version(sys.modules["keras"].__version__)
    if not _is_model(model):
        raise TypeError(
            f"Got the subclassed Keras 3 model {model.name!r} ({type(model).__name__}), expected a Functional or "
            "Sequential one: rebuild it with the functional API, whose layers can be seen."
        )
    if _graph(model) is None:
        raise ValueError(
            f"Got the unbuilt Keras 3 model {model.name!r}, expected a built one: give it an Input layer or call "
            "model.build(input_shape) first."
        )


def _require_version(version: str) -> None:
    """Raises one sentence for a Keras that is older than the tests."""
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise ValueError(
            f"Got a model of Keras {version}, expected one of Keras {_version(_OLDEST)} or later: save the model, run "
            "`pip install --upgrade keras`, and load it there."
        )


def _version(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _sentence(model: Any, problems: dict[str, str]) -> str:
    named = ", ".join(f"{name!r} ({why})" for name, why in problems.items())
    return (
        f"Got layers of the Keras 3 model {model.name!r} that have no equal in tf_keras: {named}; expected standard "
        "layers only: replace them, or build the model with `import tf_keras`."
    )


class _Rebuilder:
    """Layers of tf_keras for those of a Keras 3 model, each once.

    Args:
        model: the Keras 3 model.

    Attributes:
        problems: why layers cannot be rebuilt, by their names.
    """

    def __init__(self, model: Any) -> None:
        self.problems: dict[str, str] = {}
        self._layers: dict[int, tuple[Any, Behind | None]] = {}
        self._models: dict[int, Any] = {}
        self._look_through(model, "")

    def connect(self, model: Any) -> Any:
        """The functional model of tf_keras that calls the layers as a Keras 3 model does."""
        if id(model) in self._models:
            return self._models[id(model)]
        graph = _graph(model)
        tensors = {id(old): _input(old) for old in graph.inputs}
        for call in _calls(graph):
            try:
                outputs = tf.nest.flatten(self._outputs(call, tensors))
            except (TypeError, ValueError, NotImplementedError) as error:
                problem = f"tf_keras refuses its call: {first_line(error)}"
                raise ValueError(_sentence(model, {call.operation.name: problem})) from error
            _require_same(model, call, outputs)
            tensors.update((id(old), new) for old, new in zip(call.outputs, outputs, strict=True))
        inputs, outputs = (_mapped(structure, tensors) for structure in (graph._inputs_struct, graph._outputs_struct))
        connected = self._models[id(model)] = _host.Model(inputs, outputs, name=name_of(model))
        if not model.trainable:
            connected.trainable = False
        return connected

    def copy_weights(self, model: Any) -> None:
        """Gives the layers the weights of those of a Keras 3 model."""
        for operation in _operations(model):
            if _is_model(operation):
                self.copy_weights(operation)
            elif id(operation) in self._layers:
                self._copy(operation, self._layers[id(operation)][0])

    def _look_through(self, model: Any, path: str) -> None:
        """Rebuilds the layers of a model and of those inside it, notes what cannot be."""
        for tensor in _graph(model).inputs:
            layer = tensor._keras_history[0]
            self._note(path + layer.name, why_no_input(layer))
        for operation in _operations(model):
            name = path + operation.name
            if _is_model(operation) and _graph(operation) is not None:
                self._look_through(operation, f"{name}/")
            elif is_keras3(operation, "Layer"):
                self._note(name, self._why_not(operation))
            else:
                self._note(name, why_unknown_operation(operation))

    def _note(self, name: str, problem: str | None) -> None:
        if problem:
            self.problems[name] = problem

    def _why_not(self, layer: Any) -> str | None:
        """Rebuilds a layer; says why it cannot be."""
        try:
            self._layer(layer)
        except CannotRebuildError as error:
            return str(error)
        return None

    def _layer(self, layer: Any) -> tuple[Any, Behind | None]:
        if id(layer) not in self._layers:
            self._layers[id(layer)] = layer_like(layer, self._inner)
        return self._layers[id(layer)]

    def _inner(self, layer: Any) -> Any:
        """The layer or model for one inside a wrapper, or for an activation."""
        if _is_model(layer) and _graph(layer) is not None:
            known = len(self.problems)
            self._look_through(layer, f"{layer.name}/")
            if len(self.problems) > known:
                raise CannotRebuildError(f"the model {layer.name!r} inside it has such layers")
            return self.connect(layer)
        rebuilt, behind = self._layer(layer)
        if behind is not None:
            raise CannotRebuildError(f"{layer.name!r} inside it has an activation that tf_keras does not have")
        return rebuilt

    def _outputs(self, call: _Call, tensors: dict[int, Any]) -> Any:
        """What a call gives on tensors of tf_keras."""
        operation = call.operation
        arguments, keywords = _mapped(call.arguments, tensors), _mapped(call.keywords, tensors)
        if _is_model(operation):
            return self.connect(operation)(*arguments, **keywords)
        if id(operation) not in self._layers:
            return call_operation(operation, call.outputs[0].dtype, arguments, keywords)
        layer, behind = self._layers[id(operation)]
        outputs = layer(*arguments, **keywords)
        if behind is None:
            return outputs
        outputs = call_function(behind.operation, outputs)
        return outputs if behind.regularizer is None else behind.regularizer(outputs)

    def _copy(self, layer: Any, rebuilt: Any) -> None:
        """Gives a layer, and those inside it, the weights of one of Keras 3."""
        attributes = INNER_LAYERS.get(type(layer).__name__, ())
        for attribute in attributes:
            for old, new in zip(_listed(getattr(layer, attribute)), _listed(getattr(rebuilt, attribute)), strict=True):
                if _is_model(old):
                    self.copy_weights(old)
                else:
                    self._copy(old, new)
        if not attributes and layer.weights:
            rebuilt.set_weights(_values(layer, rebuilt))
            if is_keras3(layer, "Normalization"):
                rebuilt.finalize_state()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Call:
    """One call of a layer, an operation or a model in a graph of Keras 3."""

    operation: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    outputs: list[Any]


def _is_model(value: Any) -> bool:
    """Whether something is a Functional or Sequential model of Keras 3 that runs as such."""
    if not is_keras3(value, "Functional", "Sequential"):
        return False
    running = next(cls for cls in type(value).__mro__ if "call" in vars(cls))
    return running.__module__.partition(".")[0] == "keras"


def _graph(model: Any) -> Any:
    """The Functional model that a Sequential one runs; the model itself if it is one; None if it is unbuilt."""
    return model._functional if is_keras3(model, "Sequential") else model


def _operations(model: Any) -> list[Any]:
    """What a model calls: layers, models and operations, each once."""
    return list({id(call.operation): call.operation for call in _calls(_graph(model))}.values())


def _calls(graph: Any) -> list[_Call]:
    """The calls of a Functional model that its outputs need, in an order in which they can run."""
    by_depth = graph._nodes_by_depth
    nodes = [node for depth in sorted(by_depth) for node in by_depth[depth] if not node.is_input]
    needed = {id(tensor) for tensor in graph.outputs}
    calls: list[_Call] = []
    for node in nodes:
        if needed.isdisjoint(map(id, node.outputs)):
            continue
        keywords = _keywords(node)
        needed.update(map(id, _tensors((node.arguments.args, keywords))))
        calls.append(
            _Call(operation=node.operation, arguments=node.arguments.args, keywords=keywords, outputs=node.outputs)
        )
    return calls[::-1]


def _keywords(node: Any) -> dict[str, Any]:
    """The keywords of a call that change what it computes.

    Not `training`: Keras 3 writes the default of the layer there too, and its `fit` and `predict` overrule it. Nor the
    masks that come beside the tensors, which some versions of Keras 3 write there: tf_keras finds its own.
    """
    beside = {id(getattr(tensor, "_keras_mask", None)) for tensor in _tensors(node.arguments.args)}
    given = {name: value for name, value in node.arguments.kwargs.items() if value is not None and name != "training"}
    return {
        name: value
        for name, value in given.items()
        if not name.endswith("mask") or not all(id(mask) in beside for mask in _host.as_list(value))
    }


def _tensors(structure: Any) -> Iterator[Any]:
    """The symbolic tensors of Keras 3 in a structure."""
    if isinstance(structure, (list, tuple, dict)):
        for part in structure.values() if isinstance(structure, dict) else structure:
            yield from _tensors(part)
    elif is_keras3(structure, "KerasTensor"):
        yield structure


def _mapped(structure: Any, tensors: dict[int, Any]) -> Any:
    """A structure with other tensors in the places of those of Keras 3."""
    if isinstance(structure, dict):
        return {key: _mapped(part, tensors) for key, part in structure.items()}
    if isinstance(structure, (list, tuple)):
        return type(structure)(_mapped(part, tensors) for part in structure)
    return tensors[id(structure)] if is_keras3(structure, "KerasTensor") else structure


def _input(tensor: Any) -> Any:
    return _host.keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor._keras_history[0].name)


def _values(layer: Any, rebuilt: Any) -> list[Any]:
    """The weights of a layer; an activation that Keras 3 has not built yet starts from those of the rebuilt one."""
    values: list[Any] = layer.get_weights()
    activation: Any = getattr(rebuilt, "activation", None)
    if _host.is_layer(activation) and not layer.activation.weights:
        values += activation.get_weights()
    return values


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _require_same(model: Any, call: _Call, outputs: list[Any]) -> None:
    """Raises unless a call gives tensors of the same types and as many axes as in Keras 3, whose sizes may be wrong."""
    expected = [(tensor.dtype, len(tensor.shape)) for tensor in call.outputs]
    given = [(tensor.dtype.name, tensor.shape.rank) for tensor in outputs]
    if given != expected:
        got, wanted = (", ".join(f"{dtype} with {rank} axes" for dtype, rank in each) for each in (given, expected))
        problem = f"its output would be {got} instead of {wanted}"
        raise ValueError(_sentence(model, {call.operation.name: problem}))
