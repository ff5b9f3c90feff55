"""QIL quantizers: the interval variables of `numerics.qil` and the grids they stand for."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfqil import _host
from tfqil.numerics import interval_search, qil
from tfqil.numerics.grid import activation_levels, check_bits, weight_levels
from tfqil.numerics.held_once import held_once
from tfqil.quantizers.base import (
    ActivationQuantizer,
    Variables,
    WeightQuantizer,
    add_observed_batches,
    check_limit,
)
from tfqil.quantizers.observation import Fit, Observation, initialize_on_first_batches

# The least half-width: steps stay normal float32 numbers and the runtime's multipliers in range.
SMALLEST_HALF_WIDTH = 1e-5
# Exponents outside this range make all levels but one unreachable at 8 bits.
_GAMMA_RANGE = (0.1, 10.0)
# The upper end of a QIL activation that no data has set yet: that of ReLU6.
_DEFAULT_UPPER_END = 6.0
# Optimal upper ends for normal weights in units of sigma, by bits; papers.md derives them as this package's start.
_NORMAL_UPPER_END = {2: 1.224, 3: 1.952, 4: 2.474, 5: 2.899, 6: 3.270, 7: 3.607, 8: 3.921}


@_host.serializable
@dataclasses.dataclass(frozen=True, kw_only=True)
class QILWeightQuantizer(WeightQuantizer):
    """Weights on symmetric levels of a learned interval of their magnitude.

    Forward: (center + half_width) codes / q, codes = sign(w) round(q clip(u, 0, 1)^gamma), q = 2^(bits-1) - 1,
        u = (|w| - center + half_width) / (2 half_width). At 2 bits the weights are ternary.
    Gradient: exact in the transformer, straight through the rounding (`numerics.qil.quantize_weights`).
    Shapes and units: center and half_width have the units of the weights; scalars, or one per output channel.
    Raises: TypeError or ValueError if bits is no integer from 2 to 8.
    Reference: Jung et al., CVPR 2019 (arXiv 1808.05779), equations (2) and (3).

    Attributes:
        bits: width, 2 to 8.
        per_channel: one interval per output channel instead of one per tensor.
        train_gamma: learn the exponent; it is 1 otherwise.
        normalized: the paper's output in [-1, 1], for layers that a batch normalization follows.
    """

    bits: int = 4
    per_channel: bool = False
    train_gamma: bool = False
    normalized: bool = False

    def __post_init__(self) -> None:
        check_bits(self.bits)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Adds center, half_width and, if it is trained, gamma to `layer`."""
        kernel_shape = tuple(int(size) for size in tensor_shape)
        inner = getattr(layer, "layer", layer)
        shape = _host.channel_shape(inner, kernel_shape) if self.per_channel else ()
        # The spread of He initialization, until `initialize` sees the kernel.
        fan_in = max(1, math.prod(kernel_shape[:-1]))
        half = _NORMAL_UPPER_END[self.bits] * math.sqrt(2.0 / fan_in) / 2.0
        variables = _add_interval(layer, name, shape, half)
        if self.train_gamma:
            variables["gamma"] = layer.add_weight(
                name=f"{name}_gamma",
                shape=shape,
                initializer="ones",
                constraint=lambda gamma: tf.clip_by_value(gamma, *_GAMMA_RANGE),
                aggregation=tf.VariableAggregation.MEAN,
            )
        return variables

    def __call__(self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any) -> tf.Tensor:
        """The quantized weights, the same in training and inference."""
        del training, kwargs
        return qil.quantize_weights(
            inputs,
            tf.convert_to_tensor(weights["center"]),
            tf.convert_to_tensor(weights["half_width"]),
            _gamma(weights),
            bits=self.bits,
            normalized=self.normalized,
            project=_valid_interval,
        )

    def codes(self, kernel: tf.Tensor, variables: Variables) -> tf.Tensor:
        """The integers of a kernel, held as floats."""
        return qil.weight_codes(kernel, *_interval(variables), _gamma(variables), bits=self.bits)

    def step(self, kernel: tf.Tensor, variables: Variables) -> tf.Tensor:
        """(center + half_width) / q, or 1 / q if normalized."""
        center, half_width = _interval(variables)
        upper_end = tf.ones_like(center) if self.normalized else center + half_width
        return upper_end * (1.0 / float(weight_levels(self.bits)))

    def initialize(self, kernel: tf.Tensor, variables: Variables) -> None:
        """Sets the interval that minimises the squared error to the kernel: center = half_width = h / 2."""
        magnitude = tf.abs(tf.convert_to_tensor(kernel))
        channel_rank = variables["center"].shape.rank
        axes = list(range(magnitude.shape.rank - channel_rank))
        largest = tf.reduce_max(magnitude, axis=axes)
        counts = interval_search.histogram(magnitude, largest)
        half = interval_search.best_upper_end(counts, largest, levels=weight_levels(self.bits)) / 2.0
        half = tf.maximum(half, SMALLEST_HALF_WIDTH)
        variables["center"].assign(half)
        variables["half_width"].assign(half)


@_host.serializable
@dataclasses.dataclass(frozen=True, kw_only=True)
class QILActivationQuantizer(ActivationQuantizer):
    """Non-negative activations on the levels of a learned interval; it replaces a ReLU.

    Forward: 2 half_width codes / q, codes = round(q clip((x - lower) / (2 half_width), 0, 1)), q = 2^bits - 1,
        lower = center - half_width >= 0: what is left after subtracting `lower`.
    Gradient: exact in the transformer, straight through the rounding (`numerics.qil.quantize_activations`).
    Shapes and units: center and half_width are scalars in the units of the activations. The first
        `FIRST_BATCHES` training batches set them, unless calibration did.
    Raises: TypeError or ValueError if bits is no integer from 2 to 8.
    Reference: Jung et al., CVPR 2019 (arXiv 1808.05779), equations (2) and (5).

    Attributes:
        bits: width, 2 to 8.
        normalized: the paper's output in [0, 1], for tensors whose readers are followed by a batch normalization.
        zero_lower: keeps the lower end at 0 and learns the upper end alone.
        limit: what that upper end never exceeds, 6 where a ReLU6 is replaced: nothing reaches a level beyond. None for
            no limit.
    """

    bits: int = 8
    normalized: bool = False
    zero_lower: bool = False
    limit: float | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_limit(self.limit, zero_lower=self.zero_lower)

    @property
    def is_signed(self) -> bool:
        """False: what is negative becomes 0."""
        return False

    def without_lower(self) -> QILActivationQuantizer:
        """The same with `zero_lower`."""
        return dataclasses.replace(self, zero_lower=True)

    def within(self, limit: float) -> QILActivationQuantizer:
        """The same with a limit, if it learns the upper end alone."""
        return dataclasses.replace(self, limit=limit) if self.zero_lower else self

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Adds center (unless zero_lower), half_width and the count of observed batches to `layer`."""
        del tensor_shape
        half, largest = _DEFAULT_UPPER_END / 2.0, self._largest_half_width
        variables = _add_interval(layer, name, (), half, with_center=not self.zero_lower, largest=largest)
        variables["observed_batches"] = add_observed_batches(layer, name)
        return variables

    def __call__(self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any) -> tf.Tensor:
        """The quantized activations; in training the first batches set the interval."""
        del kwargs
        if training:
            initialize_on_first_batches(self, inputs, weights)
        return qil.quantize_activations(
            inputs,
            None if self.zero_lower else tf.convert_to_tensor(weights["center"]),
            tf.convert_to_tensor(weights["half_width"]),
            bits=self.bits,
            normalized=self.normalized,
            project=functools.partial(_valid_interval, largest=self._largest_half_width),
        )

    def step_zero_lower(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """2 half_width / q (1 / q if normalized), 0, center - half_width."""
        center, half_width = self._interval(variables)
        width = tf.ones_like(half_width) if self.normalized else 2.0 * half_width
        return width * (1.0 / float(activation_levels(self.bits))), tf.zeros_like(width), center - half_width

    def normalizer(self, variables: Variables) -> tf.Tensor:
        """2 half_width if normalized, else 1."""
        return 2.0 * self._interval(variables)[1] if self.normalized else tf.constant(1.0)

    def fitted(self, observation: Observation) -> Fit:
        """The interval that minimises the squared error to what was seen."""
        largest = observation.maximum
        half = interval_search.best_upper_end(observation.counts, largest, levels=activation_levels(self.bits)) / 2.0
        return Fit({"center": half, "half_width": half}, half > SMALLEST_HALF_WIDTH)

    @property
    def _largest_half_width(self) -> float | None:
        return None if self.limit is None else self.limit / 2.0

    def _interval(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        return _interval(variables, self._largest_half_width)


def _add_interval(
    layer: Any,
    name: str,
    shape: tuple[int, ...],
    half: float,
    *,
    with_center: bool = True,
    largest: float | None = None,
) -> dict[str, Any]:
    """Adds the interval [0, 2 half] to a layer.

    Optimizers apply constraints variable by variable, center first since it is added first. Its constraint projects the
    pair; with the projected center, the other half of the projection is to cut the half-width to it.
    """
    variables: dict[str, Any] = {}

    def projected_center(center: Any) -> tf.Tensor:
        return _valid_interval(tf.convert_to_tensor(center), tf.convert_to_tensor(variables["half_width"]))[0]

    def cut_half_width(half_width: Any) -> tf.Tensor:
        if not with_center:
            return _interval(variables, largest)[1]
        return _cut(tf.convert_to_tensor(half_width), tf.convert_to_tensor(variables["center"]))

    constraints = {"center": projected_center, "half_width": cut_half_width}

    for key in ("center", "half_width") if with_center else ("half_width",):
        variables[key] = layer.add_weight(
            name=f"{name}_{key}",
            shape=shape,
            initializer=tf.constant_initializer(np.float32(half)),
            constraint=constraints[key],
            aggregation=tf.VariableAggregation.MEAN,
        )
    return variables


def _interval(variables: Variables, largest: float | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    """Center and half-width, projected onto half_width > 0 and lower end >= 0; a missing one is the half-width.

    Optimizers project the variables too; this serves training loops that assign to them directly.
    """
    half_width = tf.convert_to_tensor(variables["half_width"])
    center = tf.convert_to_tensor(variables["center"]) if "center" in variables else half_width
    interval: tuple[tf.Tensor, tf.Tensor] = _valid_interval(center, half_width, largest)
    return interval


@held_once
def _valid_interval(
    center: tf.Tensor, half_width: tf.Tensor, largest: float | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """The nearest valid interval; `largest` is of the half-width, where the center is the same."""
    center, half_width = qil.project_interval(_finite(center), _finite(half_width), SMALLEST_HALF_WIDTH)
    if largest is None:
        return center, half_width
    return tf.minimum(center, largest), tf.minimum(half_width, largest)


@held_once
def _cut(half_width: tf.Tensor, limit: tf.Tensor) -> tf.Tensor:
    return tf.maximum(tf.minimum(_finite(half_width), _finite(limit)), SMALLEST_HALF_WIDTH)


def _gamma(variables: Variables) -> tf.Tensor | None:
    """The exponent as a tensor; None where it is 1."""
    return tf.convert_to_tensor(variables["gamma"]) if "gamma" in variables else None


def _finite(values: Any) -> tf.Tensor:
    """What an optimizer made NaN or infinite becomes the smallest interval, so that it cannot spread."""
    tensor = tf.convert_to_tensor(values)
    return tf.where(tf.math.is_finite(tensor), tensor, SMALLEST_HALF_WIDTH)
