"""From training's grids to the runtime's: int8 storage, and scales that survive the converter to the last bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfqil.export.arithmetic import Int8Grid
from tfqil.numerics.grid import ActivationGrid
from tfqil.numerics.int8 import LARGEST_INT8
from tfqil.numerics.storable import storable


def int8_grid(grid: ActivationGrid) -> Int8Grid:
    """The int8 storage of an activation grid: the highest level is 127, so that saturation is the upper clamp.

    Zero point: 127 - (2^bits - 1) + zero. The scale is the step with 16 significant bits, as the converter returns it.
    """
    return Int8Grid(scale=float(storable(grid.step)), zero_point=127 - grid.highest + grid.zero)


def fake_quant_range(grid: Int8Grid) -> tuple[np.float32, np.float32]:
    """The ends of the 8-bit fake quantization that the converter turns into an int8 grid."""
    step = np.float32(grid.scale)
    return step * np.float32(-128 - grid.zero_point), step * np.float32(127 - grid.zero_point)


def weight_range(steps: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The ends of the narrow 8-bit fake quantization that the converter turns into INT8 {step, 0}."""
    high = np.asarray(steps, np.float32) * np.float32(LARGEST_INT8)
    return -high, high


def fits_int8(codes: NDArray[np.int32]) -> bool:
    """Whether the codes of a kernel lie in [-127, 127]."""
    return bool(np.abs(codes).max(initial=0) <= LARGEST_INT8)
