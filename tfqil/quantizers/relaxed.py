"""BinaryRelax: training between the float weights and any quantizer's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfqil import _host
from tfqil.numerics import relaxation
from tfqil.quantizers.base import Variables, WeightQuantizer


@_host.serializable
@dataclasses.dataclass(frozen=True)
class BinaryRelax(WeightQuantizer):
    """Lets training see weights between the float ones and those of another quantizer; inference sees the latter.

    Forward: (w + lambda Q(w)) / (1 + lambda) in training, Q(w) when lambda is infinite and at inference, always.
    Gradient: that of the interpolation, Q being passed as its own quantizer does: to w it is the gradient at the
        relaxed weights, unchanged, if Q passes it straight through (`numerics.relaxation.relax`).
    Shapes and units: lambda is a scalar without units, a variable that is not trained. It is minus infinity, which is
        as exact, until a `tfqil.callbacks.BinaryRelaxSchedule` sets it: without one, training is the inner quantizer's
        own.
    Raises: TypeError if `inner` is no weight quantizer; ValueError if it is a BinaryRelax, or normalizes its output to
        another scale than the weights have.
    Reference: Yin et al., BinaryRelax (arXiv 1801.06313).

    Attributes:
        inner: the quantizer to relax.
    """

    inner: WeightQuantizer

    def __post_init__(self) -> None:
        if not isinstance(self.inner, WeightQuantizer):
            raise TypeError(
                f"Got {self.inner!r} to relax, expected a tfqil WeightQuantizer, such as those of tfqil.quantizers: "
                "pass an instance."
            )
        if isinstance(self.inner, BinaryRelax):
            raise ValueError("Got a BinaryRelax to relax, expected another quantizer: relax it once.")
        if getattr(self.inner, "normalized", False):
            raise ValueError(
                "Got a quantizer with normalized=True to relax, expected one whose output has the weights' scale: "
                "leave normalized out, since both are averaged."
            )

    @property
    def label(self) -> str:
        """With the inner quantizer."""
        return f"BinaryRelax({self.inner.label})"

    @property
    def bits(self) -> int:
        """Those of the inner quantizer."""
        return int(self.inner.bits)  # type: ignore[attr-defined]

    @property
    def largest_code(self) -> int:
        """That of the inner quantizer."""
        return self.inner.largest_code

    @property
    def code_count(self) -> int:
        """That of the inner quantizer."""
        return self.inner.code_count

    def with_bits(self, bits: int) -> BinaryRelax:
        """The inner quantizer at another width, relaxed."""
        return BinaryRelax(self.inner.with_bits(bits))

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Adds the variables of the inner quantizer, and lambda, to `layer`."""
        variables = dict(self.inner.build(tensor_shape, name, layer))
        variables["relaxation"] = layer.add_weight(
            name=f"{name}_relaxation",
            shape=(),
            initializer=tf.constant_initializer(-math.inf),
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        return variables

    def __call__(self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any) -> tf.Tensor:
        """The relaxed weights in training, the quantized ones at inference."""
        quantized = self.inner(inputs, training, weights=weights, **kwargs)
        if not training:
            return quantized
        return relaxation.relax(tf.convert_to_tensor(inputs), quantized, tf.convert_to_tensor(weights["relaxation"]))

    def codes_and_step(self, kernel: tf.Tensor, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        """Those of the inner quantizer."""
        return self.inner.codes_and_step(kernel, variables)

    def codes(self, kernel: tf.Tensor, variables: Variables) -> tf.Tensor:
        """Those of the inner quantizer."""
        return self.inner.codes(kernel, variables)

    def step(self, kernel: tf.Tensor, variables: Variables) -> tf.Tensor:
        """That of the inner quantizer."""
        return self.inner.step(kernel, variables)

    def initialize(self, kernel: tf.Tensor, variables: Variables) -> None:
        """Fits the inner quantizer."""
        self.inner.initialize(kernel, variables)

    def get_config(self) -> dict[str, Any]:
        """The inner quantizer in the form that every Keras file format reads."""
        return {"inner": _host.serialize_object(self.inner)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BinaryRelax:
        """The inverse of `get_config`."""
        return cls(_host.deserialize_object(config["inner"]))
