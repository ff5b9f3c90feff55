"""The values on their way through a lowering: tensors on a grid, floats, and operators that wait for their grid.

The output grid of an operator is not known before the quantizer behind it is reached; until then the operator is
pending, and takes in the batch normalizations and ReLUs that it meets, since the runtime applies them to the
accumulator, before anything is rounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfqil import _host
from tfqil.export import layers as integer
from tfqil.export.arithmetic import Int8Grid
from tfqil.export.float_layers import FloatLinear
from tfqil.export.grids import fits_int8
from tfqil.export.phases import Phases
from tfqil.export.tied_layers import tied_operator
from tfqil.scheme import accumulator
from tfqil.scheme.accumulator import stored_parameters

keras_layers = _host.keras.layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """A tensor on an int8 grid; its values are those of the grid divided by the normalizer."""

    tensor: Any
    grid: Int8Grid
    normalizer: float = 1.0


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
    """A layer with a kernel: y = factor * (x * w) + bias per channel, with w = step * codes.

    A transposed convolution is a convolution with `phases`.
    """

    source: Quantized
    operator: str
    codes: NDArray[np.int32]
    steps: NDArray[np.float64]
    factors: NDArray[np.float64]
    bias: NDArray[np.float64]
    options: Mapping[str, Any]
    phases: Phases | None = None

    def folded(self, norm: Any) -> Linear:
        """The same with a batch normalization, or a Rescaling, in its factors and its bias."""
        scale, shift = scale_and_shift(norm, self.factors.size)
        return dataclasses.replace(self, factors=self.factors * scale, bias=self.bias * scale + shift)

    def emit(self, target: Target) -> Any:
        """The integer layer; a float layer and a QUANTIZE if the codes fit no integer type that the runtime takes."""
        bias = self.bias - target.lower
        return self._in_integers(target, bias) if fits_int8(self.codes) else self._in_float(target, bias)

    def _in_integers(self, target: Target, bias: NDArray[np.float64]) -> Any:
        """Factors go into steps, their signs into codes; steps whose bias would overflow int32 grow until it fits."""
        input_step = np.float64(self.source.grid.scale)
        has_codes = np.any(self.codes.reshape(-1, self.steps.size), axis=0)
        steps, bias_codes, has_weights = (
            values.numpy()
            for values in stored_parameters(
                self.steps, self.factors, bias, has_codes, input_step, np.float64(target.grid.scale)
            )
        )
        signs = np.where(self.factors < 0, -1, 1) * has_weights
        codes = (self.codes.reshape(-1, steps.size) * signs).reshape(self.codes.shape).astype(np.int32)
        layer = integer.IntegerLinear(
            name=self.name,
            grid=target.grid,
            activation=target.activation,
            operator=self.operator,
            codes=self._kernel(codes),
            steps=self._per_channel(steps),
            bias_codes=self._per_channel(bias_codes.astype(np.int64)),
            input_grid=self.source.grid,
            **self.options,
        )
        return self._applied(layer)

    def _in_float(self, target: Target, bias: NDArray[np.float64]) -> Any:
        """The kernel as trained; the bias on the grid of the accumulator, where the trained model has it too."""
        unit = np.float64(self.source.grid.scale) * self.steps * np.abs(self.factors)
        codes = np.rint(np.divide(bias, unit, out=np.zeros_like(bias), where=unit > 0))
        kernel = (self.codes.reshape(-1, self.steps.size) * self.steps).reshape(self.codes.shape)
        options = {name: value for name, value in self.options.items() if name != "kernels"}
        layer = FloatLinear(
            name=self.name,
            operator=self.operator,
            kernel=self._kernel(kernel.astype(np.float32)),
            factors=self._per_channel(self.factors.astype(np.float32)),
            bias=self._per_channel(np.where(unit > 0, codes * unit, bias).astype(np.float32)),
            **options,
        )
        quantize = integer.IntegerQuantize(
            name=f"{self.name}_quantize", grid=target.grid, activation=target.activation, behind_float=True
        )
        return self._applied(lambda tensor: quantize(layer(tensor)))

    def _kernel(self, kernel: NDArray[Any]) -> NDArray[Any]:
        return kernel if self.phases is None else self.phases.kernel(kernel)

    def _per_channel(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self.phases is None else self.phases.per_channel(values)

    def _applied(self, layer: Callable[[Any], Any]) -> Any:
        """The output of a layer whose kernel and channels are those of `_kernel` and `_per_channel`."""
        if self.phases is None:
            return layer(self.source.tensor)
        return self.phases.laid_out(layer(self.phases.padded(self.source.tensor)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sum(Pending):
    """The sum of two tensors, or their difference."""

    sources: tuple[Quantized, ...]
    subtracts: bool = False

    def emit(self, target: Target) -> Any:
        """An ADD or SUB; there is no bias to take an offset."""
        _require_no_lower(self.name, target)
        layer = integer.IntegerAdd(
            name=self.name,
            grid=target.grid,
            activation=target.activation,
            input_grids=[source.grid for source in self.sources],
            subtracts=self.subtracts,
        )
        return layer([source.tensor for source in self.sources])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product(Pending):
    """The product of two tensors."""

    sources: tuple[Quantized, ...]

    def emit(self, target: Target) -> Any:
        """A MUL; there is no bias to take an offset."""
        _require_no_lower(self.name, target)
        layer = integer.IntegerMultiply(
            name=self.name,
            grid=target.grid,
            activation=target.activation,
            input_grids=[source.grid for source in self.sources],
        )
        return layer([source.tensor for source in self.sources])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tied(Pending):
    """What computes new values on the grid of its inputs."""

    sources: tuple[Quantized, ...]
    layer: Any

    def emit(self, target: Target) -> Any:
        """The operator of the layer; its inputs and its output are on one grid."""
        if any(source.grid != target.grid for source in self.sources) or target.lower:
            raise ValueError(
                f"Got another grid behind {self.name!r} than before it, expected the same: quantize the model with "
                "LowBitScheme, which ties them."
            )
        return tied_operator(self.name, self.layer, target.grid)([source.tensor for source in self.sources])


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
class Gelu(Pending):
    """A GELU, whose output grid is free."""

    source: Quantized
    approximate: bool

    def emit(self, target: Target) -> Any:
        """A GELU; it has no bias to take an offset, and no fused activation."""
        _require_no_lower(self.name, target)
        layer = integer.IntegerGelu(
            name=self.name, grid=target.grid, input_grid=self.source.grid, approximate=self.approximate
        )
        return layer(self.source.tensor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift(Pending):
    """A tensor on one grid that goes to another one, perhaps through a ReLU."""

    source: Quantized

    def emit(self, target: Target) -> Any:
        """A SUB; nothing if the grids are the same, and no value of theirs is cut off."""
        clips = target.activation == "relu6" or (target.activation == "relu" and target.grid.zero_point > -128)
        if self.source.grid == target.grid and not target.lower and not clips:
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


def scale_and_shift(norm: Any, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a batch normalization or a Rescaling multiplies each channel by, and adds to it; float64 (channels,)."""
    scale, shift = (np.broadcast_to(values.numpy(), channels) for values in accumulator.scale_and_shift(norm))
    return scale, shift


def _require_no_lower(name: str, target: Target) -> None:
    if target.lower:
        raise ValueError(
            f"Got a lower end of {target.lower:.3g} behind {name!r}, expected 0, since this operator has no bias to "
            "subtract it in: use a quantizer with zero_lower=True there."
        )
