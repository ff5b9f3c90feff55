"""The one number by which quantized copies of a model are compared, and the data that it is computed on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfqil import _host
from tfqil.scheme.inputs import input_batches, input_tensors

_ARRAY_BATCH = 64
# To trace a model takes as long as some batches do without it.
_UNTRACED_BATCHES = 4
# Parts of the names of metrics; the first list that has one decides.
_SMALLER_IS_BETTER = ("loss", "error", "mse", "mae", "mape", "entropy", "divergence", "hinge", "poisson", "logcosh")
_LARGER_IS_BETTER = ("acc", "auc", "precision", "recall", "iou", "f1", "f_score", "map", "similarity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A metric of models.

    Attributes:
        name: for tables.
        larger_is_better: whether a larger one is a better one.
        function: model -> number.
        takes_float: whether the function takes float models too.
    """

    name: str
    larger_is_better: bool
    function: Callable[[Any], Any]
    takes_float: bool

    def __call__(self, model: Any, what: str) -> float:
        """The metric of a model.

        Raises:
            ValueError: it is no finite number.
        """
        value = self.function(model)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"Got {value!r} as the metric {self.name!r} of {what}, expected a number.") from None
        if not math.isfinite(number):
            raise ValueError(
                f"Got {number} as the metric {self.name!r} of {what}, expected a finite number: choose another metric, "
                "or data on which it is defined."
            )
        return number


def score_of(model: Any, batches: Iterable[Any], metric: Any, larger_is_better: bool | None) -> Score:
    """The score that a metric is.

    Args:
        model: the float model.
        batches: (inputs, labels) or (inputs, labels, weights) each, for a metric that is a name.
        metric: the name of a metric that the model is compiled with, or "loss"; or a function of a quantized model.
        larger_is_better: whether a larger one is a better one; None to take it from the name, True of a function.

    Raises:
        TypeError: neither a name nor a function, or larger_is_better is none of True, False and None.
        ValueError: the model has no such metric, the batches have no labels, or the name does not say what is better.
    """
    if larger_is_better not in (True, False, None):
        raise TypeError(f"Got larger_is_better={larger_is_better!r}, expected True, False or None.")
    if callable(metric):
        name = getattr(metric, "__qualname__", type(metric).__qualname__)
        better = larger_is_better is not False
        return Score(name=name, larger_is_better=better, function=metric, takes_float=False)
    if not isinstance(metric, str):
        raise TypeError(
            f"Got {metric!r} as metric, expected the name of a metric that the model is compiled with, or a function "
            "that takes a quantized model and returns a number."
        )
    compiled = _CompiledMetric(model, metric, batches)
    compiled.require_known()
    better = _is_larger_better(metric) if larger_is_better is None else larger_is_better
    return Score(name=metric, larger_is_better=better, function=compiled, takes_float=True)


class _CompiledMetric:
    """A metric that a float model is compiled with, of other models with the same outputs."""

    def __init__(self, model: Any, name: str, batches: Iterable[Any]) -> None:
        self._model, self._name, self._batches = model, name, batches

    def __call__(self, model: Any) -> Any:
        """The metric of a model over all batches."""
        return self._results(model, self._batches)[self._name]

    def require_known(self) -> None:
        """Raises one sentence unless the float model and the data have such a metric."""
        if getattr(self._model, "compiled_metrics", None) is None:
            raise ValueError(
                f"Got the metric {self._name!r} and the model {self._model.name!r}, which is not compiled, expected a "
                "compiled one: call model.compile(loss=..., metrics=[...]) first, or pass a function as metric."
            )
        first = next(iter(self._batches))
        if not isinstance(first, (tuple, list)) or len(first) < 2 or _host.unpack(first)[1] is None:
            raise ValueError(
                f"Got data without labels, expected (inputs, labels) for the metric {self._name!r}: pass both, or a "
                "function as metric."
            )
        known = self._results(self._model, [first])
        if self._name not in known:
            raise ValueError(
                f"Got the metric {self._name!r}, expected one that the model is compiled with: "
                f"{', '.join(map(repr, known))}."
            )

    def _results(self, model: Any, batches: Iterable[Any]) -> dict[str, Any]:
        """All metrics: as the float model's `evaluate` computes them, from the outputs of another model."""
        judge = self._model
        judge.reset_metrics()
        traced = _traced(model)
        for number, batch in enumerate(batches):
            inputs, labels, weights = _host.unpack(tf.nest.map_structure(tf.convert_to_tensor, batch))
            tensors = input_tensors(model, inputs, "evaluation data")
            outputs = _run(model, *tensors) if number < _UNTRACED_BATCHES else traced(*tensors)
            judge.compute_loss(inputs, labels, outputs, weights)
            judge.compute_metrics(inputs, labels, outputs, weights)
        results = dict(judge.get_metrics_result())
        judge.reset_metrics()
        return results


def _run(model: Any, *tensors: tf.Tensor) -> Any:
    return model(tensors if len(tensors) > 1 else tensors[0], training=False)


def _traced(model: Any) -> Callable[..., Any]:
    """Runs a model as one graph for all sizes of a batch."""
    signature = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in model.inputs]
    traced: Callable[..., Any] = tf.function(functools.partial(_run, model), signature, autograph=False)
    return traced


def _is_larger_better(name: str) -> bool:
    for parts, better in ((_SMALLER_IS_BETTER, False), (_LARGER_IS_BETTER, True)):
        if any(part in name.lower() for part in parts):
            return better
    raise ValueError(
        f"Got the metric {name!r}, whose name does not say whether larger is better, expected larger_is_better=True or "
        "False."
    )


def readable_batches(model: Any, data: Any) -> Iterable[Any]:
    """Data as batches that can be read again and again, the first of which the model takes.

    Args:
        model: the float model.
        data: batches, or arrays as `calibrate` takes them, or (inputs, labels) or (inputs, labels, weights) of arrays.

    Raises:
        TypeError or ValueError: an iterator, which can be read once, no example, or a batch that the model does not
            take.
    """
    if _is_labelled(data, len(model.inputs)):
        data = _Slices(data)
    elif hasattr(data, "__next__"):
        raise TypeError(
            f"Got the {type(data).__name__} as data, which can be read once, expected what can be read for each layer: "
            "a tf.data.Dataset, a list of batches, or arrays."
        )
    for _ in input_batches(model, data, 1, "evaluation data"):
        pass
    return data  # type: ignore[no-any-return]


def description(data: Iterable[Any]) -> str:
    """What can be said of data without reading batches: the content of arrays, the form of other data."""
    if isinstance(data, tf.data.Dataset):
        return f"{int(data.cardinality())} batches of {data.element_spec}"
    content = data.arrays if isinstance(data, _Slices) else data
    digest = hashlib.sha256()
    for leaf in tf.nest.flatten(content):
        if not isinstance(leaf, (np.ndarray, tf.Tensor)):
            return type(data).__name__
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(array.data)
    return f"arrays {digest.hexdigest()}"


class _Slices:
    """Batches of (inputs, labels) or (inputs, labels, weights), each of them an array or some nested ones."""

    def __init__(self, arrays: tuple[Any, ...]) -> None:
        self.arrays = arrays
        lengths = {len(leaf) for leaf in tf.nest.flatten(arrays)}
        if len(lengths) > 1:
            raise ValueError(
                f"Got arrays of {' and '.join(map(str, sorted(lengths)))} examples as data, expected the same number "
                "of inputs and labels."
            )
        self._examples = lengths.pop()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for start in range(0, self._examples, _ARRAY_BATCH):
            yield tf.nest.map_structure(lambda array, at=start: array[at : at + _ARRAY_BATCH], self.arrays)


def _is_labelled(data: Any, inputs: int) -> bool:
    """Whether data are arrays of inputs and labels; two arrays are inputs of a model of two."""
    if not isinstance(data, tuple) or len(data) not in (2, 3):
        return False
    arrays = all(isinstance(leaf, (np.ndarray, tf.Tensor)) for leaf in tf.nest.flatten(data))
    return arrays and (inputs == 1 or isinstance(data[0], (tuple, list, dict)))
