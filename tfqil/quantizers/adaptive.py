"""Activations with a learned resolution (BCGD)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf

from tfqil import _host
from tfqil.numerics import adaptive_activation
from tfqil.numerics.grid import activation_levels, check_bits
from tfqil.numerics.ste import COARSE_DERIVATIVES, scale_gradient
from tfqil.quantizers.base import ActivationQuantizer, Variables, add_observed_batches, check_limit
from tfqil.quantizers.observation import Fit, Observation, initialize_on_first_batches

# The least step: the runtime's multipliers stay in range.
_SMALLEST_STEP = 1e-5
# The upper end of a grid that no data has set yet: that of ReLU6.
_DEFAULT_UPPER_END = 6.0


@_host.serializable
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveActivationQuantizer(ActivationQuantizer):
    """Non-negative activations on equal levels whose distance, the resolution alpha, is learned; it replaces a ReLU.

    Forward: alpha clip(ceil(x / alpha), 0, L), L = 2^bits - 1; on the grid the ceil is a lower end of -alpha / 2.
    Gradient: coarse, in x by `ste` and in alpha by `step_gradient` (`numerics.adaptive_activation.quantize`); that of
        alpha is multiplied by `step_rate`, then clipped to [-step_limit, step_limit].
    Shapes and units: alpha is a scalar in the units of the activations. The first `FIRST_BATCHES` training batches set
        it, unless calibration did, to the best step for half-normal inputs of the same root mean square. It stays above
        1e-5; the authors' upper limit of 5 is left out, since activations here have any scale.
    Raises: TypeError or ValueError if bits is no integer from 1 to 8, or another argument is out of its range.
    Reference: Yin et al., BCGD (arXiv 1808.05240), and the authors' code.

    Attributes:
        bits: width, 1 to 8.
        ste: coarse derivative in x: "identity", "relu" or "clipped_relu".
        step_gradient: coarse derivative in alpha: "exact", "three_valued" or "two_valued".
        step_rate: factor of alpha's gradient; optimizers that divide by its size, such as Adam, cancel it.
        step_limit: largest gradient of alpha per replica. None for no limit, as loss scaling (mixed_float16) needs:
            it multiplies all gradients before they are clipped.
        zero_lower: rounds to nearest instead of up, so that nothing has to be subtracted.
        limit: what the highest level never exceeds, 6 where a ReLU6 is replaced; None for no limit.
    """

    bits: int = 4
    ste: str = "clipped_relu"
    step_gradient: str = "three_valued"
    step_rate: float = 0.01
    step_limit: float | None = 1.0
    zero_lower: bool = False
    limit: float | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits, lowest=1)
        for name, choices in (
            ("ste", COARSE_DERIVATIVES),
            ("step_gradient", adaptive_activation.STEP_GRADIENTS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"Got {name}={getattr(self, name)!r}, expected {', '.join(map(repr, choices))}: choose one."
                )
        for name, default in (("step_rate", 0.01), ("step_limit", 1.0)):
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and math.isfinite(value) and value > 0
            if not is_number and not (name == "step_limit" and value is None):
                raise ValueError(f"Got {name}={value!r}, expected a positive number: {default} is the authors'.")
        check_limit(self.limit, zero_lower=self.zero_lower)

    @property
    def is_signed(self) -> bool:
        """False: what is negative becomes 0."""
        return False

    def without_lower(self) -> AdaptiveActivationQuantizer:
        """The same with `zero_lower`."""
        return dataclasses.replace(self, zero_lower=True)

    def within(self, limit: float) -> AdaptiveActivationQuantizer:
        """The same with a limit, if it rounds to nearest (with the ceil, the last level begins below) and clips."""
        clips = self.ste == "clipped_relu"  # Other estimators let a gradient pass that the clip of a ReLU6 would not.
        return dataclasses.replace(self, limit=limit) if self.zero_lower and clips else self

    def after_rounding(self) -> AdaptiveActivationQuantizer:
        """The same with `zero_lower`: exact zeros, which are frequent there, lie on a rounding boundary of the ceil."""
        return self.without_lower()

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Adds alpha and the count of observed batches to `layer`."""
        del tensor_shape
        step = layer.add_weight(
            name=f"{name}_step",
            shape=(),
            initializer=tf.constant_initializer(_DEFAULT_UPPER_END / activation_levels(self.bits)),
            constraint=self._valid,
            aggregation=tf.VariableAggregation.MEAN,
        )
        return {"step": step, "observed_batches": add_observed_batches(layer, name)}

    def __call__(self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any) -> tf.Tensor:
        """The quantized activations; in training the first batches set the step."""
        del kwargs
        if training:
            initialize_on_first_batches(self, inputs, weights)
        step = scale_gradient(self._valid(weights["step"]), self.step_rate, limit=self.step_limit)
        return adaptive_activation.quantize(
            inputs, step, bits=self.bits, ste=self.ste, step_gradient=self.step_gradient, to_nearest=self.zero_lower
        )

    def step_zero_lower(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Alpha, 0, and -alpha / 2 for the ceil."""
        step = self._valid(variables["step"])
        return step, tf.zeros_like(step), tf.zeros_like(step) if self.zero_lower else -step / 2.0

    def take_over(self, variables: Variables, other: Any, other_variables: Variables) -> None:
        """Sets the step so that the highest level stays where it was."""
        super().take_over(variables, other, other_variables)
        if isinstance(other, AdaptiveActivationQuantizer):
            ratio = activation_levels(other.bits) / activation_levels(self.bits)
            variables["step"].assign(self._valid(other._valid(other_variables["step"]) * ratio))

    def fitted(self, observation: Observation) -> Fit:
        """The step from the root mean square of what was positive."""
        step = adaptive_activation.half_normal_step(observation.positive_root_mean_square, bits=self.bits)
        return Fit({"step": step}, step > _SMALLEST_STEP)

    def _valid(self, step: Any) -> tf.Tensor:
        """The step within its limits; the smallest one for what an optimizer made NaN or infinite."""
        tensor = tf.convert_to_tensor(step)
        tensor = tf.where(tf.math.is_finite(tensor), tf.maximum(tensor, _SMALLEST_STEP), _SMALLEST_STEP)
        return tensor if self.limit is None else tf.minimum(tensor, self.limit / activation_levels(self.bits))
