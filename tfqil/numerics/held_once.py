"""Operators that a graph holds once, however many layers compute them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def held_once(function: Callable[..., Any], signature: Sequence[tf.TensorSpec] | None = None) -> Callable[..., Any]:
    """A function of tensors that becomes one operator of a graph, a call, wherever it is used.

    Networks have a hundred intervals, each with some dozen operators on scalars: written out they take long to trace,
    and more memory than what they compute with.

    Args:
        function: computes its result from its arguments alone. Arguments that are not tensors are constants.
        signature: of the arguments, where tensors of several shapes shall share a graph.
    """
    traced = tf.function(
        function, input_signature=signature, autograph=False, experimental_attributes={"_noinline": True}
    )

    @functools.wraps(function)
    def called(*arguments: Any, **keywords: Any) -> Any:
        # Without a graph there is nothing to hold, and each shape would be traced.
        return (function if tf.executing_eagerly() else traced)(*arguments, **keywords)

    return called
