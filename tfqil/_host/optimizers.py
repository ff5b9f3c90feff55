"""Optimizers around others, and the averages of variables that optimizers keep."""

from __future__ import annotations

import collections.abc
from typing import Any

import tensorflow as tf

from tfqil._host.framework import Optimizer


def average_of(optimizer: Any, variable: Any) -> tuple[Any, float] | None:
    """The moving average that an optimizer with `use_ema` keeps of a variable, and its momentum; None without one."""
    optimizer = _innermost(optimizer)
    if not optimizer.use_ema:
        return None
    number = optimizer._index_dict[optimizer._var_key(variable)]
    return optimizer._model_variables_moving_average[number], float(optimizer.ema_momentum)


def overwrites_with_average(optimizer: Any) -> bool:
    """Whether an optimizer sets variables to their moving averages during training, not only at its end."""
    optimizer = _innermost(optimizer)
    return bool(optimizer.use_ema and optimizer.ema_overwrite_frequency)


def _innermost(optimizer: Any) -> Any:
    """The optimizer inside all wrappers, which has the state."""
    return _innermost(optimizer.inner) if isinstance(optimizer, WrappingOptimizer) else optimizer


class WrappingOptimizer(tf.__internal__.tracking.DelegatingTrackableMixin, Optimizer):  # type: ignore[misc, valid-type]
    """An optimizer around another one, whose state it shares; checkpoints of either load into the other.

    Built as Keras's own LossScaleOptimizer is: without `Optimizer.__init__`, which would create state of its own.
    """

    @tf.__internal__.tracking.no_automatic_dependency_tracking
    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.name = inner.name
        self._mesh, self._run_with_dtensor = inner._mesh, inner._run_with_dtensor
        tf.__internal__.tracking.DelegatingTrackableMixin.__init__(self, inner)

    def build(self, var_list: collections.abc.Sequence[Any]) -> None:
        """Creates the state of the inner optimizer."""
        self.inner.build(var_list)

    def compute_gradients(self, loss: Any, var_list: Any, tape: Any = None) -> Any:
        """Those of the inner optimizer."""
        return self.inner.compute_gradients(loss, var_list, tape)

    def apply_gradients(self, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        """The step of the inner optimizer; arguments as there."""
        return self.inner.apply_gradients(grads_and_vars, *args, **kwargs)

    def aggregate_gradients(self, grads_and_vars: Any) -> Any:
        """As the inner optimizer does."""
        return self.inner.aggregate_gradients(grads_and_vars)

    def finalize_variable_values(self, var_list: Any) -> None:
        """As the inner optimizer does, at the end of training."""
        self.inner.finalize_variable_values(var_list)

    @property
    def iterations(self) -> Any:
        """The count of steps."""
        return self.inner.iterations

    @iterations.setter
    def iterations(self, variable: Any) -> None:
        self.inner.iterations = variable

    @property
    def learning_rate(self) -> Any:
        """That of the inner optimizer."""
        return self.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner.learning_rate = learning_rate

    @property
    def _learning_rate(self) -> Any:
        """That of the inner optimizer, or its schedule, which the TensorBoard callback looks for."""
        return self.inner._learning_rate

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Excludes variables from the weight decay of the inner optimizer."""
        self.inner.exclude_from_weight_decay(var_list, var_names)

    @property
    def variables(self) -> Any:
        """The state of the inner optimizer."""
        return self.inner.variables

    def set_weights(self, weights: Any) -> None:
        """Sets the state of the inner optimizer, as loading `.h5` does."""
        self.inner.set_weights(weights)
