"""What is kept with variables and models in a process; files do not hold it."""

from __future__ import annotations

import collections.abc
from typing import Any

import tensorflow as tf


def set_owner(variable: Any, layer: Any) -> None:
    """Notes on a variable which layer quantizes it.

    Optimizers see variables only, and one that Keras loads from a file knows no model.
    """
    variable.tfqil_owner = layer


def owner(variable: Any) -> Any:
    """The layer that `set_owner` noted on a variable; None without one."""
    return getattr(variable, "tfqil_owner", None)


def set_note(model: Any, name: str, value: Any) -> None:
    """Keeps a value with a model in this process; files do not hold it."""
    vars(model)[f"_tfqil_{name}"] = value


def note(model: Any, name: str, default: Any) -> Any:
    """The value that `set_note` kept with a model."""
    return vars(model).get(f"_tfqil_{name}", default)


def mark_intervals(variables: collections.abc.Iterable[Any]) -> None:
    """Notes on variables that they are what a quantizer learns; values that are no trainable variables are left out."""
    for variable in variables:
        if isinstance(variable, tf.Variable) and variable.trainable:
            variable.tfqil_is_interval = True


def is_interval(variable: Any) -> bool:
    """Whether `mark_intervals` noted that a quantizer learns a variable."""
    return getattr(variable, "tfqil_is_interval", False)
