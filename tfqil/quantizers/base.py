"""What every quantizer can say: its output, and the grid that the output lies on."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tfqil import _host
from tfqil.numerics import ste
from tfqil.numerics.grid import ActivationGrid, WeightGrid, weight_levels
from tfqil.quantizers.observation import Fit, Observation, averaged

Variables = Mapping[str, Any]

# The least step of a projection, a power of two: products of two of them are still normal float32 numbers.
SMALLEST_STEP = 2.0**-60
# The largest one: its product with a code of 8 bits is a float32.
_LARGEST_STEP = 2.0**120


class _DataclassQuantizer(tfmot.quantization.keras.quantizers.Quantizer):  # type: ignore[misc]
    """Configuration of a quantizer that is a frozen keyword-only dataclass."""

    @property
    def label(self) -> str:
        """What reports call the quantizer."""
        return type(self).__name__

    def with_bits(self, bits: int) -> Any:
        """A quantizer of the same kind and settings at another width.

        Raises:
            TypeError or ValueError: the kind has no such width.
        """
        return dataclasses.replace(self, bits=bits)  # type: ignore[type-var]

    def get_config(self) -> dict[str, Any]:
        """The fields, as Keras stores them."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """The inverse of `get_config`."""
        return cls(**config)


class WeightQuantizer(_DataclassQuantizer, abc.ABC):
    """A quantizer of weights onto w = step * codes.

    Variables, if any, live in the dictionary that `build` returns, and are float32.
    """

    @property
    def largest_code(self) -> int:
        """The largest magnitude of a code."""
        return max(1, weight_levels(self.bits))  # type: ignore[attr-defined]

    @property
    def code_count(self) -> int:
        """How many different codes there can be: all up to the largest, of both signs, and 0."""
        return 2 * self.largest_code + 1

    @abc.abstractmethod
    def codes(self, kernel: tf.Tensor, variables: Variables) -> tf.Tensor:
        """The integers of a kernel, held as floats, in its shape."""

    @abc.abstractmethod
    def step(self, kernel: tf.Tensor, variables: Variables) -> tf.Tensor:
        """The step, positive, a scalar or in the shape of the kernel's output channels."""

    def initialize(self, kernel: tf.Tensor, variables: Variables) -> None:
        """Fits the variables to a float kernel; quantizers without any need nothing."""
        del kernel, variables

    def take_over(self, variables: Variables, other: Any, other_variables: Variables) -> None:
        """Sets the variables to those that a quantizer of the same kind, perhaps of another width, has learned."""
        del other
        _take_over(variables, other_variables)

    def codes_and_step(self, kernel: tf.Tensor, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        """Both, for quantizers that find them together."""
        return self.codes(kernel, variables), self.step(kernel, variables)

    def grid(self, kernel: Any, variables: Variables) -> WeightGrid:
        """The integers and the step that the network computes with when `training` is False."""
        codes, step = self.codes_and_step(tf.convert_to_tensor(kernel), variables)
        return WeightGrid(codes=np.rint(codes).astype(np.int32), step=np.asarray(step))


class ProjectedWeightQuantizer(WeightQuantizer):
    """A quantizer whose codes and step follow from the kernel alone; it has no variables of its own.

    Gradient: identity, so the gradient at the quantized weights goes to the float ones unchanged (BinaryConnect).
    A subclass writes `project`; everything else follows from it.
    """

    per_channel: bool

    @abc.abstractmethod
    def project(self, kernel: tf.Tensor, channel_rank: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The codes of a kernel, held as floats, and its scale, >= 0, over the last `channel_rank` axes."""

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Adds no variable; remembers how many axes number the output channels."""
        del name
        inner = getattr(layer, "layer", layer)
        return {"channel_rank": len(_host.channel_shape(inner, tensor_shape)) if self.per_channel else 0}

    def __call__(self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any) -> tf.Tensor:
        """The quantized weights, the same in training and inference."""
        del training, kwargs
        codes, scale = self.project(tf.convert_to_tensor(inputs), weights["channel_rank"])
        # The scale, not each code, becomes 0 where `codes_and_step` has codes of 0.
        step, is_normal = self._step_of(scale)
        return ste.replace_forward(inputs, codes * (step * tf.cast(is_normal, codes.dtype)))

    def codes(self, kernel: tf.Tensor, variables: Variables) -> tf.Tensor:
        """The integers of a kernel, held as floats."""
        return self.codes_and_step(kernel, variables)[0]

    def step(self, kernel: tf.Tensor, variables: Variables) -> tf.Tensor:
        """The scale of the projection; `SMALLEST_STEP` where the kernel is nothing."""
        return self.codes_and_step(kernel, variables)[1]

    @final  # Training computes the same from `project` in fewer passes.
    def codes_and_step(self, kernel: tf.Tensor, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        """The projection in the range of steps that a runtime computes with; codes are 0 below it."""
        codes, scale = self.project(tf.convert_to_tensor(kernel), variables["channel_rank"])
        step, is_normal = self._step_of(scale)
        return codes * tf.cast(is_normal, codes.dtype), step

    def _step_of(self, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.clip_by_value(scale, SMALLEST_STEP, _LARGEST_STEP), scale >= SMALLEST_STEP


class ActivationQuantizer(_DataclassQuantizer, abc.ABC):
    """A quantizer of activations onto x = step * (code - zero), after subtracting `lower`."""

    @abc.abstractmethod
    def step_zero_lower(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The parameters of the grid as float32 scalars."""

    @abc.abstractmethod
    def fitted(self, observation: Observation) -> Fit:
        """The variables that suit one batch best; calibration, or training on its first batches, sets their means."""

    def initialize(self, observation: Observation, variables: Variables) -> None:
        """Fits the variables to one more batch that calibration saw."""
        if "observed_batches" in variables:
            for name, value in averaged(self.fitted(observation), variables).items():
                variables[name].assign(value)

    @property
    @abc.abstractmethod
    def is_signed(self) -> bool:
        """Whether the grid has negative levels."""

    def take_over(self, variables: Variables, other: Any, other_variables: Variables) -> None:
        """Sets the variables to those that a quantizer of the same kind, perhaps of another width, has learned."""
        del other
        _take_over(variables, other_variables)

    def is_initialized(self, variables: Variables) -> bool:
        """Whether data have set the variables, or had nothing to set them by."""
        batches = variables.get("observed_batches")
        return batches is None or int(tf.convert_to_tensor(batches)) != 0

    @property
    def limit(self) -> float | None:
        """What the upper end of the grid never exceeds, if the quantizer sees to that itself."""
        return None

    def within(self, limit: float) -> ActivationQuantizer:
        """The same quantizer with a `limit`, where the kind knows one; others are handed a clipped tensor."""
        del limit
        return self

    def without_lower(self) -> ActivationQuantizer:
        """The same quantizer with a lower end that stays 0, for tensors where an exporter cannot subtract it."""
        return self

    def normalizer(self, variables: Variables) -> tf.Tensor:
        """What the tensor is divided by, a float32 scalar: 1, unless the output is normalized."""
        del variables
        return tf.constant(1.0)

    def learn(self, inputs: tf.Tensor, variables: Variables) -> None:
        """Lets a training batch move the variables that no gradient reaches."""
        raise NotImplementedError(f"{self.label} cannot be shared by several tensors.")

    def united(self, variables: Sequence[Variables]) -> Variables:
        """The variables of one grid for tensors that are observed with variables of their own."""
        raise NotImplementedError(f"{self.label} cannot be shared by several tensors.")

    def after_rounding(self) -> ActivationQuantizer:
        """The same quantizer for a tensor that is rounded already, on another grid."""
        return self

    def grid(self, variables: Variables) -> ActivationGrid:
        """The levels that the network computes with when `training` is False."""
        step, zero, lower = (float(value) for value in self.step_zero_lower(variables))
        return ActivationGrid(step=step, bits=self.bits, zero=round(zero), lower=lower)  # type: ignore[attr-defined]


def check_limit(limit: float | None, *, zero_lower: bool = True) -> None:
    """Raises one sentence unless a limit is None, or a positive number for a grid that begins at 0.

    Raises:
        ValueError: it is not.
    """
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not math.isfinite(limit) or limit <= 0:
        raise ValueError(f"Got limit={limit!r}, expected a positive number or None: 6.0 is that of a ReLU6.")
    if not zero_lower:
        raise ValueError(f"Got limit={limit!r} without zero_lower, expected both or none: pass zero_lower=True.")


def _take_over(variables: Variables, others: Variables) -> None:
    for name, variable in variables.items():
        if isinstance(variable, tf.Variable) and name in others:
            variable.assign(others[name])


def add_observed_batches(layer: Any, name: str) -> Any:
    """The counter of batches that have set an interval, -1 if there were others only; saved with the model."""
    return layer.add_weight(
        name=f"{name}_observed_batches",
        shape=(),
        dtype=tf.int32,
        initializer="zeros",
        trainable=False,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
