"""The inputs of a model from what a user hands in: an array, one per input, or a dictionary by their names."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


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
