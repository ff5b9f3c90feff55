"""The labels and the normalization that a caller hands to `convert`, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfqil.export.metadata import Normalization
from tfqil.export.signature import names_in_file


def labels_by_output(plain: Any, labels: Any) -> dict[str, tuple[str, ...]]:
    """The labels of a model's outputs, by the names of the outputs in its file.

    Args:
        plain: a deployable model.
        labels: a sequence for a model with one output, or a dictionary, name of the output -> labels, or None.

    Raises:
        TypeError, ValueError: no such thing, an unknown output, another number of labels than classes, or a label that
            is no line of text.
    """
    if labels is None:
        return {}
    shapes = dict(zip(names_in_file(plain), (tensor.shape for tensor in plain.outputs), strict=True))
    if not isinstance(labels, Mapping):
        if len(shapes) > 1:
            raise ValueError(
                f"Got one list of labels for the outputs {', '.join(map(repr, shapes))}, expected a dictionary: pass "
                "{name of an output: labels}."
            )
        labels = dict.fromkeys(shapes, labels)
    unknown = [name for name in labels if name not in shapes]
    if unknown:
        raise ValueError(
            f"Got labels for {', '.join(map(repr, unknown))}, expected outputs of the model: name one of "
            f"{', '.join(map(repr, shapes))}."
        )
    return {name: _checked_labels(names, name, shapes[name]) for name, names in labels.items()}


def normalization_of(q_model: Any, normalization: Any) -> Normalization:
    """A normalization of a model's one input.

    Args:
        q_model: the quantized model.
        normalization: (mean, std), each one number or a sequence of one per channel.

    Raises:
        TypeError, ValueError: several inputs, no such pair, neither one number nor one per channel, or numbers that
            float32 does not hold or, of a standard deviation, that are not positive there.
    """
    if isinstance(normalization, np.ndarray):
        normalization = tuple(normalization)
    if not isinstance(normalization, (list, tuple)) or len(normalization) != 2:
        error = ValueError if isinstance(normalization, (list, tuple)) else TypeError
        raise error(
            f"Got normalization={normalization!r}, expected a pair (mean, std), with which an app computes "
            "(pixel - mean) / std: pass two numbers, such as (0, 255), or two sequences of one number per channel."
        )
    if len(q_model.inputs) != 1:
        raise ValueError(
            f"Got a normalization for a model with {len(q_model.inputs)} inputs, expected one input: leave it out, and "
            "tell the app by other means."
        )
    channels = q_model.inputs[0].shape[-1]
    values = []
    for what, given in zip(("mean", "std"), normalization, strict=True):
        numbers = _finite_numbers(given)
        if numbers is None or numbers.size not in (1, channels):
            raise ValueError(
                f"Got {what}={given!r} of a normalization, expected a finite number, or {channels} of them, one per "
                "channel: pass normalization=(mean, std) in the units of the pixel."
            )
        values.append(tuple(numbers.tolist()))
    mean, std = values
    if min(std) <= 0:
        raise ValueError(
            f"Got std={normalization[1]!r} of a normalization, expected positive numbers: pass what the app divides by."
        )
    return Normalization(mean=mean, std=std)


def _finite_numbers(given: Any) -> NDArray[np.float64] | None:
    """One number or a flat sequence of them, rounded to float32 as metadata store them; None for anything else."""
    try:
        numbers = np.asarray(given)
    except ValueError:  # Sequences of different lengths.
        return None
    if numbers.dtype.kind not in "iuf" or numbers.ndim > 1:
        return None
    with np.errstate(over="ignore"):
        stored = numbers.astype(np.float32).astype(np.float64).reshape(-1)
    return stored if np.all(np.isfinite(stored)) else None


def _checked_labels(labels: Any, output: str, shape: Any) -> tuple[str, ...]:
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise TypeError(
            f"Got {type(labels).__name__} as the labels of the output {output!r}, expected a list of texts, one per "
            "class: pass a list such as ['cat', 'dog']."
        )
    classes = shape[-1] if len(shape) > 1 else None
    if classes is None:
        raise ValueError(
            f"Got labels for the output {output!r} of shape {tuple(shape)}, expected one whose last axis has a known "
            "number of classes: leave them out."
        )
    if len(labels) != classes:
        raise ValueError(
            f"Got {len(labels)} labels for the output {output!r} with {classes} classes, expected {classes}: pass one "
            "label per class, in the order of the classes."
        )
    for place, label in enumerate(labels):
        if not isinstance(label, str):
            raise TypeError(f"Got the label {label!r} of class {place}, expected a text: pass {str(label)!r}.")
        if not label.strip() or label.splitlines() != [label]:
            raise ValueError(
                f"Got the label {label!r} of class {place}, expected one line of text, since a label file has a line "
                "for each class and readers skip empty ones: write it without line breaks, and not empty."
            )
    return tuple(labels)
