"""What can be measured of a quantized tensor: how much its grid prunes, clips and loses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfqil import _host
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer

# What variables of quantizers are called where a person reads them.
_NAMES = {"relaxation": "lambda"}

Parameters = Mapping[str, NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measures:
    """A quantized tensor in numbers.

    Attributes:
        layer: name of the layer that quantizes it.
        title: its name for a person: of a kernel, that of the layer in the float model.
        is_kernel: whether it is a kernel, not an activation.
        parameters: what its quantizer has, by name, such as center and half_width; float32 scalars, or one per channel.
        values: the float tensor, in its shape or flat.
        codes: its integers, alike; 0 is the code of the value 0.
        step: distance of two levels in the units of `values`, a scalar or one per channel.
        lower: what is subtracted from `values` before they are put on the levels; 0 for weights.
        code_range: the lowest and the highest code that there can be.
        code_count: how many different codes there can be.
        clipped_share: share of the values beyond the levels of these.
        error: ||x - y||^2 / ||x||^2, x what the levels y stand for.
    """

    layer: str
    title: str
    is_kernel: bool
    parameters: Parameters
    values: NDArray[np.float32]
    codes: NDArray[np.int32]
    step: NDArray[np.float32]
    lower: float
    code_range: tuple[int, int]
    code_count: int
    clipped_share: float
    error: float

    @property
    def pruning_ratio(self) -> float:
        """Share of the codes that are 0."""
        return float(np.mean(self.codes == 0))

    @property
    def codes_used(self) -> int:
        """How many different codes there are."""
        return int(np.unique(self.codes).size)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the learned interval of a whole tensor, in the units of `values`; None without one."""
        half_width = self.parameters.get("half_width")
        if half_width is None or half_width.ndim:
            return None
        center = self.parameters.get("center", half_width)
        return float(center - half_width), float(center + half_width)

    @property
    def dead_channels(self) -> NDArray[np.bool_] | None:
        """Which channels have intervals of their own that are dead; None where one interval is that of all.

        A dead one makes zeros of weights that are not, or has all weights beyond its outermost level.
        """
        half_width = self.parameters.get("half_width")
        if half_width is None or not half_width.ndim:
            return None
        axes = tuple(range(self.values.ndim - half_width.ndim))
        pruned = np.all(self.codes == 0, axes) & np.any(self.values != 0, axes)
        return pruned | np.all(_outside(self.values, self.step, self.code_range), axes)

    def scalars(self) -> dict[str, float]:
        """All numbers by name: the parameters, of channels the means, and what is measured."""
        return {
            **means(self.parameters),
            "step": float(np.mean(self.step)),
            "pruning_ratio": self.pruning_ratio,
            "clipped_share": self.clipped_share,
            "quantization_error": self.error,
            "codes_used_share": self.codes_used / self.code_count,
        }


def means(parameters: Parameters) -> dict[str, float]:
    """The parameters of a quantizer as one number each."""
    return {name: float(np.mean(value)) for name, value in parameters.items()}


def parameters_of(layer: QuantizedLayer | QuantizeActivation) -> dict[str, NDArray[np.float32]]:
    """What the quantizer of a layer has, by name: center, half_width, gamma, minimum, maximum, lambda, step."""
    found = {
        _NAMES.get(name, name): np.asarray(tf.convert_to_tensor(value))
        for name, value in layer.quantizer_variables.items()
        if hasattr(value, "dtype") and value.dtype.is_floating
    }
    if isinstance(layer, QuantizeActivation):
        step = layer.grid().step * float(layer.quantizer.normalizer(layer.quantizer_variables))
        found.setdefault("step", np.asarray(step, np.float32))
    return found


def of_kernel(layer: QuantizedLayer) -> Measures:
    """Measures the kernel of a layer, its output channels on the last axes.

    Raises:
        ValueError: NaN or Inf in the kernel.
    """
    grid, parameters, quantizer = layer.grid(), parameters_of(layer), layer.weight_quantizer
    values, step, largest = layer.channels_last_kernel.numpy(), grid.step, quantizer.largest_code
    if getattr(quantizer, "normalized", False):  # The grid is that of the output, the interval that of the weights.
        step = (parameters["center"] + parameters["half_width"]) / np.float32(largest)
    return Measures(
        layer=layer.name,
        title=layer.layer.name,
        is_kernel=True,
        parameters=parameters,
        values=values,
        codes=grid.codes,
        step=np.asarray(step),
        lower=0.0,
        code_range=(-largest, largest),
        code_count=quantizer.code_count,
        clipped_share=float(np.mean(_outside(values, step, (-largest, largest)))),
        error=_relative_error(values, grid.codes * step),
    )


def of_tensors(model: Any, inputs: Sequence[tf.Tensor]) -> list[Measures]:
    """Measures every tensor that a functional model quantizes at inference.

    Args:
        model: a quantized model.
        inputs: a batch, one tensor per input of the model.

    Returns:
        In the order in which the layers run; the tensors that share a grid as one.

    Raises:
        ValueError: NaN or Inf in a tensor.
    """
    seen: dict[str, list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = {}

    def call(node: _host.Node, tensors: list[Any]) -> Any:
        outputs = _host.run_as_before(node, node.layer, tensors)
        if isinstance(node.layer, QuantizeActivation):
            clipped = node.layer.clipped(tf.cast(tensors[0], tf.float32), _host.keyword(node, "site", 0))
            _require_finite(node.layer, clipped)
            seen.setdefault(node.layer.name, []).append((np.ravel(clipped), np.ravel(outputs)))
        return outputs

    _host.evaluate(model, list(inputs), call)
    layers = {layer.name: layer for layer in model.layers}
    return [_of_tensor(layers[name], *map(np.concatenate, zip(*parts, strict=True))) for name, parts in seen.items()]


def _of_tensor(layer: QuantizeActivation, values: NDArray[np.float32], outputs: NDArray[np.float32]) -> Measures:
    grid, normalizer = layer.grid(), float(layer.stored_grid().normalizer)
    codes = np.rint(outputs / np.float32(grid.step)).astype(np.int32)
    step, code_range = np.asarray(grid.step * normalizer, np.float32), (-grid.zero, grid.highest - grid.zero)
    left = values - np.float32(grid.lower)
    if not layer.quantizer.is_signed:
        left = np.maximum(left, np.float32(0.0))
    return Measures(
        layer=layer.name,
        title=layer.name,
        is_kernel=False,
        parameters=parameters_of(layer),
        values=values,
        codes=codes,
        step=step,
        lower=grid.lower,
        code_range=code_range,
        code_count=grid.highest + 1,
        clipped_share=float(np.mean(_outside(left, step, code_range))),
        error=_relative_error(left, outputs * np.float32(normalizer)),
    )


def _outside(values: NDArray[np.float32], step: NDArray[np.float32], code_range: tuple[int, int]) -> NDArray[np.bool_]:
    # Where the largest value sets the step, rounding may put it an ulp or two beyond its level.
    lowest, highest = (step * np.float32(code * (1 + 1e-6)) for code in code_range)
    return (values < lowest) | (values > highest)


def _relative_error(values: NDArray[Any], quantized: NDArray[Any]) -> float:
    """||x - y||^2 / ||x||^2; 0 for zeros that stay zeros."""
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    # In units of the largest, whose square may be no float.
    scaled, error = (np.asarray(part, np.float64) / largest for part in (values, values - quantized))
    energy = float(np.sum(scaled**2))
    return float(np.sum(error**2)) / energy if energy else float(np.any(quantized))


def _require_finite(layer: QuantizeActivation, tensor: tf.Tensor) -> None:
    if not bool(tf.reduce_all(tf.math.is_finite(tensor))):
        raise ValueError(
            f"Got NaN or Inf in the tensor that {layer.name!r} quantizes, expected finite numbers: the weights before "
            "it are broken; restore a checkpoint."
        )
