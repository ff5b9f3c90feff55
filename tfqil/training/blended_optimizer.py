"""Blended coarse gradient descent: an optimizer that draws float weights to their quantization."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from tfqil import _host
from tfqil.numerics.relaxation import blend
from tfqil.scheme.layers import QuantizedLayer
from tfqil.training.inner_optimizer import deserialize, inner_optimizer, serialize


@_host.serializable
class BlendedOptimizer(_host.WrappingOptimizer):
    """Blends each float kernel with its quantization, then lets another optimizer take its step.

    Update: w_f <- (1 - rho) w_f + rho Q(w_f), then the step of `inner` (for SGD: - eta g) with the gradient that was
        taken at Q(w_f); its weight decay sees the blended weights. rho = 0 is `inner`, bit for bit. Variables that no
        quantizer reads (biases, batch normalizations, intervals) are updated by `inner` alone.
    Works in graphs, compiled by XLA, and on the replicas of a `tf.distribute` strategy. It is saved and restored with
        the model (`.keras`, `.h5`; tf_keras keeps no optimizer state in a SavedModel). Its state is that of `inner`, so
        checkpoints of either load into the other.

    Args:
        inner: a tf_keras optimizer, or the name of one. Keras itself wraps the blended one for loss scaling.
        q_model: the quantized model that it will train, to be checked now; which kernels are blended follows from the
            variables of each step. None checks when training starts, as loading a saved model does.
        rho: share of the quantization in each step, in [0, 1); the authors take 1e-5.

    Raises:
        TypeError: inner is no tf_keras optimizer, or a legacy one.
        ValueError: rho out of range, an optimizer that blends or scales losses already, or no quantized kernel.

    Reference: Yin et al., BCGD (arXiv 1808.05240), and the authors' code.
    """

    def __init__(self, inner: Any, q_model: Any, rho: float = 1e-5) -> None:
        inner = inner_optimizer(inner, BlendedOptimizer)
        if isinstance(rho, bool) or not isinstance(rho, numbers.Real) or not (math.isfinite(rho) and 0 <= rho < 1):
            raise ValueError(
                f"Got rho={rho!r}, expected a number from 0 to less than 1: 1e-5 is the authors', 0 turns blending off."
            )
        if q_model is not None:
            _host.require_functional(q_model)
            _require_quantized_kernels([layer for layer in q_model.layers if isinstance(layer, QuantizedLayer)])
        super().__init__(inner)
        self._rho: float = float(rho)

    @property
    def rho(self) -> float:
        """Share of the quantization in each step."""
        return self._rho

    def apply_gradients(self, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        """Blends, then lets the inner optimizer apply the gradients; arguments as there.

        Raises:
            ValueError: none of the variables is a quantized kernel.
        """
        pairs = list(grads_and_vars)
        kernels = [pair for pair in pairs if _host.owner(pair[1]) is not None]
        _require_quantized_kernels(kernels)
        if self._rho:
            _host.update_copies([kernel for gradient, kernel in kernels if gradient is not None], self._blend)
        return self.inner.apply_gradients(pairs, *args, **kwargs)

    def _blend(self, kernel: Any, copy: Any) -> None:
        values = copy.read_value()
        copy.assign(blend(values, _host.owner(kernel).quantized(values), self._rho))

    def get_config(self) -> dict[str, Any]:
        """The inner optimizer and rho; the model that holds the kernels is saved around it."""
        return {"inner": serialize(self.inner), "rho": self._rho}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> BlendedOptimizer:
        """The inverse of `get_config`."""
        return cls(deserialize(config["inner"], custom_objects), None, config["rho"])


def _require_quantized_kernels(kernels: Sequence[Any]) -> None:
    if not kernels:
        raise ValueError(
            "Got no quantized kernel to train, expected some to blend with their quantization: pass the model through "
            "tfqil.quantize_model first, unfreeze its kernels, or use the inner optimizer by itself."
        )
