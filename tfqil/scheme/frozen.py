"""Inference of what is not trained any more: kernels that come from elsewhere, and grids as constants.

One thread sees it, for a while: the layers are not changed, and other threads go on with them as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import tensorflow as tf

Result = TypeVar("Result")

# Kernels by the id of their layer; None where nothing is frozen.
_KERNELS: ContextVar[Mapping[int, tf.Tensor] | None] = ContextVar("tfqil_frozen_kernels", default=None)


@contextlib.contextmanager
def frozen(layers: list[Any], kernels: list[tf.Tensor]) -> Iterator[None]:
    """Lets layers infer with other values of their kernels, and quantizers with their grids as they are now.

    Args:
        layers: each a `QuantizedLayer`.
        kernels: for each what it computes with, code * step, in the layout of its kernel.
    """
    token = _KERNELS.set({id(layer): kernel for layer, kernel in zip(layers, kernels, strict=True)})
    try:
        yield
    finally:
        _KERNELS.reset(token)


def frozen_kernel(layer: Any) -> tf.Tensor | None:
    """What stands in place of the kernel of a layer; None if nothing does."""
    return (_KERNELS.get() or {}).get(id(layer))


def held(compute: Callable[[], Result]) -> Result:
    """What a function of variables alone returns; where they are frozen, as values from outside the traced graph."""
    if _KERNELS.get() is None:
        return compute()
    with tf.init_scope():
        return compute()


def constants(compute: Callable[[], Result]) -> Result:
    """What a function of variables alone returns, for operators; where they are frozen, as constants of their graph.

    What `held` returns would be an input of the graph for each tensor, which takes more bytes in what is stored.
    """
    found = held(compute)
    if _KERNELS.get() is None:
        return found
    return tf.nest.map_structure(lambda part: tf.constant(part.numpy()) if tf.is_tensor(part) else part, found)
