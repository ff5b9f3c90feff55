"""From training's grids to the runtime's: int8 storage, and scales that survive the converter to the last bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfqil.export.arithmetic import Int8Grid
from tfqil.numerics.grid import ActivationGrid
from tfqil.numerics.int8 import LARGEST_INT8

# The converter divides the range of a fake quantization, which is held in float32, by the number of steps. For some
# steps the quotient is a neighbouring float32; a step this many ulp away always comes through.
_NEIGHBOURS = (0, 1, -1, 2, -2, 3, -3, 4, -4)


def int8_grid(grid: ActivationGrid) -> Int8Grid:
    """The int8 storage of an activation grid: the highest level is 127, so that saturation is the upper clamp.

    Zero point: 127 - (2^bits - 1) + zero. The scale is the step, at most 4 ulp off, as the converter returns it.
    """
    return Int8Grid(scale=_surviving_activation_step(grid), zero_point=127 - grid.highest + grid.zero)


def fake_quant_range(grid: Int8Grid) -> tuple[np.float32, np.float32]:
    """The ends of the 8-bit fake quantization that the converter turns into an int8 grid."""
    step = np.float32(grid.scale)
    return step * np.float32(-128 - grid.zero_point), step * np.float32(127 - grid.zero_point)


def weight_range(steps: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The ends of the narrow 8-bit fake quantization that the converter turns into INT8 {step, 0}."""
    high = np.asarray(steps, np.float32) * np.float32(LARGEST_INT8)
    return -high, high


def surviving_weight_steps(steps: ArrayLike) -> NDArray[np.float32]:
    """The nearest steps that the converter returns unchanged, at most 4 ulp off; any shape."""
    steps = np.asarray(steps, np.float32)
    result = steps.copy()
    pending = np.ones(steps.shape, bool)
    for distance in _NEIGHBOURS:
        candidate = _neighbour(steps, distance)
        low, high = weight_range(candidate)
        returned = ((high.astype(np.float64) - low) / (2 * LARGEST_INT8)).astype(np.float32)
        found = pending & (returned == candidate)
        result = np.where(found, candidate, result)
        pending &= ~found
    return np.asarray(result, np.float32)


def fits_int8(codes: NDArray[np.int32]) -> bool:
    """Whether the codes of a kernel lie in [-127, 127]."""
    return bool(np.abs(codes).max(initial=0) <= LARGEST_INT8)


def _surviving_activation_step(grid: ActivationGrid) -> float:
    zero_point = 127 - grid.highest + grid.zero
    for distance in _NEIGHBOURS:
        candidate = Int8Grid(scale=float(_neighbour(np.float32(grid.step), distance)), zero_point=zero_point)
        low, high = (float(end) for end in fake_quant_range(candidate))
        if np.float32((high - low) / 255) == np.float32(candidate.scale):
            return candidate.scale
    return grid.step


def _neighbour(values: ArrayLike, distance: int) -> NDArray[np.float32]:
    """The positive float32 that is `distance` ulp away."""
    bits = np.asarray(values, np.float32).view(np.int32) + np.int32(distance)
    return bits.view(np.float32)
