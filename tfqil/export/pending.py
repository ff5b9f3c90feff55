"""The values on their way through a lowering: tensors on a grid, floats, and operators that wait for their grid.

The output grid of an operator is not known before the quantizer behind it is reached; until then the operator is
pending, and takes in the batch normalizations and ReLUs that it meets, since the runtime applies them to the
accumulator, before anything is rounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfqil import _host
from tfqil.export import layers as integer
from tfqil.export.arithmetic import REQUANTIZATION_SCALE_LIMIT, Int8Grid
from tfqil.export.float_layers import FloatLinear
from tfqil.export.grids import fits_int8, surviving_weight_steps

keras_layers = _host.keras.layers

# Bias codes stay below this, so that bias and accumulator together fit int32.
_LARGEST_BIAS_CODE = 2**29
# A channel without weights has a free step; its bias gets this many codes, exact in float32.
_CODES_OF_A_CONSTANT = 2**20
# The converter writes another step for smaller ones. Such a channel counts as one without weights.
_SMALLEST_STEP = 4e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """A tensor on an int8 grid."""

    tensor: Any
    grid: Int8Grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Float:
    """A tensor that is on no grid."""

    tensor: Any
    is_input: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What the quantizer behind an operator asks for: output grid, clipping, and the offset to subtract before."""

    grid: Int8Grid
    activation: str
    lower: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pending:
    """An operator whose output grid is not known yet."""

    name: str

    def emit(self, target: Target) -> Any:
        """Adds the operator to the graph and returns its output tensor."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Pending):
    """A layer with a kernel: y = factor * (x * w) + bias per channel, with w = step * codes."""

    source: Quantized
    operator: str
    codes: NDArray[np.int32]
    steps: NDArray[np.float64]
    factors: NDArray[np.float64]
    bias: NDArray[np.float64]
    options: Mapping[str, Any]

    def folded(self, norm: Any) -> Linear:
        """The same with a batch normalization in its factors and its bias."""
        scale, shift = scale_and_shift(norm)
        return dataclasses.replace(self, factors=self.factors * scale, bias=self.bias * scale + shift)

    def emit(self, target: Target) -> Any:
        """The integer layer; a float layer and a QUANTIZE if the codes fit no integer type that the runtime takes."""
        bias = self.bias - target.lower
        return self._in_integers(target, bias) if fits_int8(self.codes) else self._in_float(target, bias)

    def _in_integers(self, target: Target, bias: NDArray[np.float64]) -> Any:
        """Factors go into steps, their signs into codes; steps whose bias would overflow int32 grow until it fits."""
        input_step = np.float64(self.source.grid.scale)
        scaled = self.steps * np.abs(self.factors)
        has_weights = (scaled > _SMALLEST_STEP) & np.any(self.codes.reshape(-1, scaled.size), axis=0)
        smallest = np.abs(bias) / (_LARGEST_BIAS_CODE * input_step)
        constant = np.maximum(np.abs(bias), target.grid.scale) / (_CODES_OF_A_CONSTANT * input_step)
        constant = np.maximum(constant, 2 * _SMALLEST_STEP)
        steps = surviving_weight_steps(np.where(has_weights, np.maximum(scaled, smallest), constant))
        signs = np.where(self.factors < 0, -1, 1) * has_weights
        codes = (self.codes.reshape(-1, steps.size) * signs).reshape(self.codes.shape).astype(np.int32)
        if np.any(input_step * steps / target.grid.scale >= REQUANTIZATION_SCALE_LIMIT):
            raise ValueError(
                f"Got a step of {target.grid.scale:.3g} for the output of {self.name!r}, expected more than 1/256 of "
                "its accumulator's step: its interval has collapsed; calibrate again or lower its learning rate."
            )
        layer = integer.IntegerLinear(
            name=self.name,
            grid=target.grid,
            activation=target.activation,
            operator=self.operator,
            codes=codes,
            steps=steps,
            bias_codes=np.rint(bias / (input_step * steps)).astype(np.int64),
            input_grid=self.source.grid,
            **self.options,
        )
        return layer(self.source.tensor)

    def _in_float(self, target: Target, bias: NDArray[np.float64]) -> Any:
        """The kernel as trained; the bias on the grid of the accumulator, where the trained model has it too."""
        unit = np.float64(self.source.grid.scale) * self.steps * np.abs(self.factors)
        codes = np.rint(np.divide(bias, unit, out=np.zeros_like(bias), where=unit > 0))
        kernel = (self.codes.reshape(-1, self.steps.size) * self.steps).reshape(self.codes.shape)
        options = {name: value for name, value in self.options.items() if name != "kernels"}
        layer = FloatLinear(
            name=self.name,
            operator=self.operator,
            kernel=kernel.astype(np.float32),
            factors=self.factors.astype(np.float32),
            bias=np.where(unit > 0, codes * unit, bias).astype(np.float32),
            **options,
        )
        quantize = integer.IntegerQuantize(
            name=f"{self.name}_quantize", grid=target.grid, activation=target.activation, behind_float=True
        )
        return quantize(layer(self.source.tensor))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sum(Pending):
    """The sum of two tensors."""

    sources: tuple[Quantized, ...]

    def emit(self, target: Target) -> Any:
        """An ADD; there is no bias to take an offset."""
        _require_no_lower(self.name, target)
        grids = [source.grid for source in self.sources]
        layer = integer.IntegerAdd(name=self.name, grid=target.grid, activation=target.activation, input_grids=grids)
        return layer([source.tensor for source in self.sources])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean(Pending):
    """The average over all positions."""

    source: Quantized
    keepdims: bool

    def emit(self, target: Target) -> Any:
        """A MEAN; it has no fused activation, and what it averages is clipped already."""
        _require_no_lower(self.name, target)
        layer = integer.IntegerMean(
            name=self.name, grid=target.grid, input_grid=self.source.grid, keepdims=self.keepdims
        )
        return layer(self.source.tensor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lookup(Pending):
    """A function with a prescribed output grid."""

    source: Quantized
    function: str

    def emit(self, target: Target) -> Any:
        """A SOFTMAX, LOGISTIC or TANH."""
        layer = integer.IntegerLookup(
            name=self.name, grid=target.grid, input_grid=self.source.grid, function=self.function
        )
        return layer(self.source.tensor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift(Pending):
    """A tensor on one grid that goes to another one, perhaps through a ReLU."""

    source: Quantized

    def emit(self, target: Target) -> Any:
        """A SUB; nothing if the grids are the same."""
        if self.source.grid == target.grid and not target.lower and target.activation != "relu6":
            return self.source.tensor
        layer = integer.IntegerShift(
            name=self.name,
            grid=target.grid,
            activation=target.activation,
            input_grid=self.source.grid,
            offset=target.lower,
        )
        return layer(self.source.tensor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Join(Pending):
    """A concatenation; every branch is written on the grid of the whole."""

    branches: tuple[Pending, ...]
    axis: int

    def emit(self, target: Target) -> Any:
        """The branches, then a CONCATENATION."""
        tensors = [branch.emit(target) for branch in self.branches]
        return keras_layers.Concatenate(axis=self.axis, name=self.name)(tensors)


Value = Quantized | Float | Pending


def scale_and_shift(norm: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gamma / sigma and beta - mean * gamma / sigma, float64 (channels,)."""
    mean, variance = (np.asarray(v, np.float64) for v in (norm.moving_mean, norm.moving_variance))
    gamma = np.asarray(norm.gamma, np.float64) if norm.scale else np.ones_like(mean)
    beta = np.asarray(norm.beta, np.float64) if norm.center else np.zeros_like(mean)
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return scale, beta - mean * scale


def _require_no_lower(name: str, target: Target) -> None:
    if target.lower:
        raise ValueError(
            f"Got a lower end of {target.lower:.3g} behind {name!r}, expected 0, since this operator has no bias to "
            "subtract it in: use a quantizer with zero_lower=True there."
        )
