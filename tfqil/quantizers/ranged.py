"""Uniform quantizers by range: the 8-bit grids of edges and of tensors that several kinds of layers share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfqil import _host
from tfqil.numerics import affine
from tfqil.numerics.grid import check_bits, weight_levels
from tfqil.quantizers.base import (
    ActivationQuantizer,
    ProjectedWeightQuantizer,
    Variables,
    add_observed_batches,
    check_limit,
)
from tfqil.quantizers.observation import Fit, Observation, averaged, range_over_replicas

# How much of the range a training batch renews once the first batches have set it.
_MOVING_AVERAGE_RATE = 0.01


@_host.serializable
@dataclasses.dataclass(frozen=True, kw_only=True)
class MaxAbsWeightQuantizer(ProjectedWeightQuantizer):
    """Weights on symmetric levels up to the largest magnitude; it has no variables.

    Forward: s round(w / s), s = max|w| / q, q = 2^(bits-1) - 1. Gradient: identity.
    Shapes and units: s is a scalar, or one per output channel, in the units of the weights.
    Raises: TypeError or ValueError if bits is no integer from 2 to 8.
    Reference: Jacob et al., CVPR 2018; what TFMOT's 8-bit scheme does.
    """

    bits: int = 8
    per_channel: bool = True

    def __post_init__(self) -> None:
        check_bits(self.bits)

    def project(self, kernel: tf.Tensor, channel_rank: int) -> tuple[tf.Tensor, tf.Tensor]:
        """round(w / s) and s = max|w| / q; infinite entries get the largest code, NaN gets 0."""
        levels = float(weight_levels(self.bits))
        step = affine.largest_magnitude_step(kernel, channel_rank, bits=self.bits)
        codes = tf.clip_by_value(tf.round(kernel / step), -levels, levels)
        return tf.where(tf.math.is_nan(codes), tf.zeros_like(codes), codes), step


@_host.serializable
@dataclasses.dataclass(frozen=True, kw_only=True)
class SlopeQuantizer(MaxAbsWeightQuantizer):
    """The slopes of a PReLU on 8 bits, as the converter quantizes them; slopes of less than 1e-5 are none.

    Forward: s round(a / s), s = max|a| / 127, 0 where max|a| is smaller. Gradient: identity.
    Shapes and units: s is a scalar, without units.
    """

    per_channel: bool = False

    def project(self, kernel: tf.Tensor, channel_rank: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Codes of which the largest is 127, and the step."""
        codes, step = super().project(kernel, channel_rank)
        # Below, the step has a floor, and the codes would not be those of the converter, which has none.
        reaches = tf.reduce_max(tf.abs(codes)) == float(weight_levels(self.bits))
        return tf.where(reaches, codes, tf.zeros_like(codes)), step


@_host.serializable
@dataclasses.dataclass(frozen=True, kw_only=True)
class RangeActivationQuantizer(ActivationQuantizer):
    """Activations on the levels between the ends of their range, 0 being one of the levels.

    Forward: s clip(round(x / s), -z, q - z), s = (maximum - minimum) / q, z = round(-minimum / s), q = 2^bits - 1.
    Gradient: 1 inside the range, else 0. The range is a moving average over training batches (of all replicas), not
        learned.
    Shapes and units: scalars in the units of the activations.
    Raises: TypeError or ValueError if bits is no integer from 2 to 8.
    Reference: Jacob et al., CVPR 2018; what TFMOT's 8-bit scheme does.

    Attributes:
        bits: width, 2 to 8.
        signed: whether negative values occur; if not, the lower end of the range is 0 and a ReLU is absorbed.
        limit: what the upper end never exceeds, 6 where a ReLU6 is absorbed; None for no such limit.
    """

    bits: int = 8
    signed: bool = True
    limit: float | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_limit(self.limit)

    @property
    def is_signed(self) -> bool:
        """Whether the grid has negative levels."""
        return self.signed

    def within(self, limit: float) -> RangeActivationQuantizer:
        """The same with a limit."""
        return dataclasses.replace(self, limit=limit)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Adds the ends of the range and the count of observed batches to `layer`."""
        del tensor_shape
        variables = {"observed_batches": add_observed_batches(layer, name)}
        ends = {"minimum": -6.0, "maximum": 6.0} if self.signed else {"maximum": 6.0}
        for key, value in ends.items():
            variables[key] = layer.add_weight(
                name=f"{name}_{key}",
                shape=(),
                initializer=tf.constant_initializer(value),
                trainable=False,
                aggregation=tf.VariableAggregation.MEAN,
            )
        return variables

    def __call__(self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any) -> tf.Tensor:
        """The quantized activations; training batches move the range."""
        del kwargs
        if training:
            self.learn(inputs, weights)
        step, zero, _ = self.step_zero_lower(weights)
        return affine.quantize_affine(inputs, step, zero, bits=self.bits)

    def learn(self, inputs: tf.Tensor, variables: Variables) -> None:
        """Moves the range to that of a training batch of all replicas: to the mean of the first ones, then slowly."""
        fit = range_over_replicas(tf.stop_gradient(inputs), signed=self.signed)
        if self.limit is not None:
            fit.values["maximum"] = tf.minimum(fit.values["maximum"], self.limit)
        for name, value in averaged(fit, variables, later=_MOVING_AVERAGE_RATE).items():
            variables[name].assign(value)

    def united(self, variables: Sequence[Variables]) -> Variables:
        """The range that contains those of all tensors."""
        ends = {"maximum": tf.reduce_max(tf.stack([tf.convert_to_tensor(v["maximum"]) for v in variables]))}
        if self.signed:
            ends["minimum"] = tf.reduce_min(tf.stack([tf.convert_to_tensor(v["minimum"]) for v in variables]))
        return ends

    def step_zero_lower(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The nudged grid of the range; nothing is subtracted."""
        maximum = tf.convert_to_tensor(variables["maximum"])
        minimum = tf.convert_to_tensor(variables["minimum"]) if self.signed else tf.zeros_like(maximum)
        step, zero = affine.range_step_and_zero(minimum, maximum, bits=self.bits)
        return step, zero, tf.zeros_like(step)

    def fitted(self, observation: Observation) -> Fit:
        """The ends of the range."""
        return Fit({"minimum": observation.minimum, "maximum": observation.maximum}, tf.constant(True))


@_host.serializable
@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedActivationQuantizer(ActivationQuantizer):
    """Activations on a grid that the runtime prescribes: softmax and sigmoid 1/256, tanh 1/128.

    Forward: s clip(round(x / s), -z, 255 - z) at inference, x in training: rounding a probability below 1/512 to 0
    would take the gradient from just the examples that are classified worst. Gradient: identity. It has no variables.
    Reference: the int8 specification of LiteRT.
    """

    step: float = 1 / 256
    zero: int = 0

    @property
    def bits(self) -> int:
        """8: the runtime knows no other such grids."""
        return 8

    @property
    def is_signed(self) -> bool:
        """Whether the grid has negative levels."""
        return self.zero > 0

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Adds no variable."""
        del tensor_shape, name, layer
        return {}

    def __call__(self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any) -> tf.Tensor:
        """The quantized activations; in training the inputs."""
        del weights, kwargs
        if training:
            return inputs
        return affine.quantize_affine(inputs, tf.constant(self.step), tf.constant(float(self.zero)), bits=self.bits)

    def step_zero_lower(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The prescribed grid."""
        return tf.constant(self.step), tf.constant(float(self.zero)), tf.constant(0.0)

    def fitted(self, observation: Observation) -> Fit:
        """Nothing to fit."""
        del observation
        return Fit({}, tf.constant(False))
