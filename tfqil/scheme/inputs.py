"""The inputs of a model from what a user hands in: an array, one per input, or a dictionary by their names."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

_ARRAY_BATCH = 64


def input_tensors(model: Any, data: Any, what: str) -> list[tf.Tensor]:
    """A batch of examples as one tensor per input of a model, in the model's order and of its types.

    Args:
        model: a functional model.
        data: an array; a list or tuple of one per input; or a dictionary, names of inputs -> arrays.
        what: what the data are, for sentences: "calibration data".

    Raises:
        ValueError: another number of arrays, an unknown name, another shape, no example, or NaN or Inf.
    """
    arrays = _in_order(model, data, what)
    if len(arrays) != len(model.inputs):
        raise ValueError(f"Got {len(arrays)} input arrays in a batch of {what}, expected {len(model.inputs)}.")
    tensors = [tf.cast(tf.convert_to_tensor(a), e.dtype) for a, e in zip(arrays, model.inputs, strict=True)]
    for name, tensor, expected in zip(model.input_names, tensors, model.inputs, strict=True):
        of_input = f" for the input {name!r}" if len(tensors) > 1 else ""
        if not expected.shape.is_compatible_with(tensor.shape):
            raise ValueError(
                f"Got {what} of shape {tuple(tensor.shape)}{of_input}, expected {tuple(expected.shape)}: pass batches "
                "of examples as the model takes them."
            )
        if not tensor.shape[0]:
            raise ValueError(f"Got an empty batch of {what}{of_input}, expected at least one example.")
        if tensor.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(tensor))):
            raise ValueError(f"Got NaN or Inf in the {what}{of_input}, expected finite numbers: clean the data first.")
    sizes = {name: int(tensor.shape[0]) for name, tensor in zip(model.input_names, tensors, strict=True)}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Got {what} with other numbers of examples per input ({sizes}), expected the same for all.")
    return tensors


def input_batches(model: Any, dataset: Any, batches: int, what: str) -> Iterator[list[tf.Tensor]]:
    """The inputs of a model from the first batches of a data set, each as `input_tensors` gives them.

    Args:
        model: a functional model.
        dataset: an iterable of batches, each the inputs or a tuple that starts with them; or an array of examples, a
            list or tuple of one per input, or a dictionary by their names.
        batches: how many there are at most.
        what: what the data are, for sentences.

    Raises:
        TypeError or ValueError: a count that is none, no batch, or one that `input_tensors` refuses.
    """
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise ValueError(f"Got batches={batches!r}, expected a whole number of at least 1.")
    is_empty = True
    for batch in itertools.islice(_batches(dataset, len(model.inputs)), batches):
        is_empty = False
        yield input_tensors(model, batch[0] if isinstance(batch, tuple) else batch, what)
    if is_empty:
        raise ValueError("Got a data set without a batch, expected at least one: pass some training examples.")


def _in_order(model: Any, data: Any, what: str) -> list[Any]:
    if not isinstance(data, dict):
        return list(data) if isinstance(data, (list, tuple)) else [data]
    missing = [name for name in model.input_names if name not in data]
    if missing:
        raise ValueError(
            f"Got {what} for {', '.join(map(repr, data))}, expected them for the inputs "
            f"{', '.join(map(repr, model.input_names))} of the model: {', '.join(map(repr, missing))} is missing."
        )
    return [data[name] for name in model.input_names]


def _batches(dataset: Any, inputs: int) -> Iterator[Any]:
    if inputs == 1 and isinstance(dataset, tuple) and dataset and isinstance(dataset[0], np.ndarray):
        dataset = dataset[0]  # (examples, labels), as `fit` takes them.
    if isinstance(dataset, (np.ndarray, tf.Tensor)):
        return (dataset[start : start + _ARRAY_BATCH] for start in range(0, len(dataset), _ARRAY_BATCH))
    if isinstance(dataset, dict):
        starts = range(0, max(map(len, dataset.values()), default=0), _ARRAY_BATCH)
        return ({name: part[start : start + _ARRAY_BATCH] for name, part in dataset.items()} for start in starts)
    arrays = isinstance(dataset, (list, tuple)) and all(isinstance(part, np.ndarray) for part in dataset)
    if arrays and len(dataset) == inputs:
        starts = range(0, len(dataset[0]), _ARRAY_BATCH)
        return ([part[start : start + _ARRAY_BATCH] for part in dataset] for start in starts)
    if not isinstance(dataset, Iterable):
        raise TypeError(
            f"Got {type(dataset).__name__} as the data set, expected an array, a tf.data.Dataset or another iterable "
            "of batches."
        )
    return iter(dataset)
