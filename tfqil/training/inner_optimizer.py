"""The optimizer inside another one: what may be wrapped, and how it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfqil import _host


def inner_optimizer(inner: Any, wrapper: type) -> Any:
    """The optimizer to wrap, from itself or its name.

    Raises:
        TypeError: no tf_keras optimizer, or a legacy one.
        ValueError: one that a wrapper of this class, or loss scaling, is around already; or an unknown name.
    """
    inner = _host.keras.optimizers.get(inner) if isinstance(inner, str) else inner
    around = inner
    while isinstance(around, _host.WrappingOptimizer):
        if isinstance(around, wrapper):
            raise ValueError(
                f"Got a {wrapper.__name__} to wrap in another one, expected a plain optimizer: wrap it once."
            )
        around = around.inner
    if isinstance(inner, _host.keras.mixed_precision.LossScaleOptimizer):
        raise ValueError(
            f"Got a LossScaleOptimizer to wrap, expected a plain optimizer: wrap that; model.compile then scales "
            f"losses around the {wrapper.__name__} by itself."
        )
    if not isinstance(inner, _host.Optimizer):
        kind = "the legacy optimizer " if isinstance(inner, _host.keras.optimizers.legacy.Optimizer) else ""
        if type(inner).__module__.partition(".")[0] == "keras":
            kind = "the Keras 3 optimizer "
        raise TypeError(
            f"Got {kind}{type(inner).__name__} to wrap, expected a tf_keras optimizer, such as "
            "tf_keras.optimizers.SGD: pass one, or its name."
        )
    return inner


def serialize(inner: Any) -> Any:
    """The config of an inner optimizer."""
    # `.h5` does not read the newer form of an optimizer that a user has registered.
    return _host.keras.optimizers.serialize(inner, use_legacy_format=True)


def deserialize(config: Mapping[str, Any], custom_objects: Any = None) -> Any:
    """The inverse of `serialize`."""
    return _host.keras.optimizers.deserialize(dict(config), custom_objects=custom_objects, use_legacy_format=True)
