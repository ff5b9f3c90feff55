"""A learning rate of its own for what quantizers learn."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfqil import _host
from tfqil.training.inner_optimizer import deserialize, inner_optimizer, serialize


@_host.serializable
class IntervalRateOptimizer(_host.WrappingOptimizer):
    """Lets the intervals of quantizers learn at a share of the rate of the weights.

    Update: the step of `inner`, then v <- v_before + rate (v - v_before) for every variable that a quantizer learns:
        centers, half-widths, exponents, resolutions. Since it is the step that is scaled, not the gradient, this is a
        learning rate for every optimizer: Adam divides a scaled gradient by its size. Constraints still hold, because
        they are convex.
    Works in graphs, compiled by XLA, and on the replicas of a `tf.distribute` strategy. Its state is that of `inner`,
        so checkpoints of either load into the other.

    Args:
        inner: a tf_keras optimizer, or the name of one; it may be a `BlendedOptimizer`. Keras itself wraps this one for
            loss scaling.
        rate: share of the weights' learning rate, above 0; the paper's is 0.01, with SGD on ImageNet.

    Raises:
        TypeError: inner is no tf_keras optimizer, or a legacy one.
        ValueError: rate out of range, or an optimizer that has such a rate, scales losses already or overwrites weights
            with their averages during training.

    Reference: Jung et al., CVPR 2019 (arXiv 1808.05779); the ratio is that of re-implementations.
    """

    def __init__(self, inner: Any, rate: float = 0.01) -> None:
        inner = inner_optimizer(inner, IntervalRateOptimizer)
        if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"Got rate={rate!r}, expected a number above 0: 0.01 is the paper's; 1 changes nothing.")
        if _host.overwrites_with_average(inner):
            raise ValueError(
                "Got an optimizer with ema_overwrite_frequency, which sets weights to their averages within a step, "
                "expected None: leave it out, and they are set at the end of training."
            )
        super().__init__(inner)
        self._rate: float = float(rate)

    @property
    def rate(self) -> float:
        """Share of the weights' learning rate."""
        return self._rate

    def apply_gradients(self, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        """Lets the inner optimizer apply the gradients, then takes back a part of the intervals' steps."""
        pairs = list(grads_and_vars)
        moving = [variable for gradient, variable in pairs if gradient is not None and _host.is_interval(variable)]
        before = [tf.identity(variable) for variable in moving]
        result = self.inner.apply_gradients(pairs, *args, **kwargs)
        if self._rate != 1.0 and moving:
            back = [(1.0 - self._rate) * (variable - start) for variable, start in zip(moving, before, strict=True)]
            _host.update_copies(moving, _take_back, back)
            # Moving averages of weights have seen the whole step.
            averages = [_host.average_of(self.inner, variable) for variable in moving]
            seen = [(*found, step) for found, step in zip(averages, back, strict=True) if found]
            shares = [(1.0 - momentum) * step for _, momentum, step in seen]
            _host.update_copies([average for average, _, _ in seen], _take_back, shares)
        return result

    def get_config(self) -> dict[str, Any]:
        """The inner optimizer and the rate."""
        return {"inner": serialize(self.inner), "rate": self._rate}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> IntervalRateOptimizer:
        """The inverse of `get_config`."""
        return cls(deserialize(config["inner"], custom_objects), config["rate"])


def _take_back(variable: Any, copy: Any, back: Any) -> None:
    del variable
    copy.assign_sub(back)
