"""What the integer kernels of LiteRT compute, in numpy, bit for bit.

Every function takes and returns stored integers, the values of an int8 tensor as int32, so that sums of them
do not wrap. The formulas were found in, or derived from, the sources of LiteRT and XNNPACK and hold with 0
differences against ai-edge-litert 2.3 on x86-64; `tests/export/test_arithmetic.py` shows it, ties included.

    quantize, requantize_int8      QUANTIZE
    requantize                     CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED, after the accumulation
    add, subtract, mean            ADD, SUB, MEAN

AVERAGE_POOL_2D, LOGISTIC, TANH and SOFTMAX are in `arithmetic_tables.py`. The `*_LIMIT` constants bound the
scales that XNNPACK accepts; where it refuses an operator the builtin kernels run it, and they round
differently. MAX_POOL_2D, RESHAPE, PAD and CONCATENATION over one grid move integers and need no formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# XNNPACK fails the whole file, without falling back, if input_scale * weight_scale / output_scale of any
# channel of a convolution or dense layer reaches this.
REQUANTIZATION_SCALE_LIMIT = 256.0
# ADD and SUB: each input_scale / output_scale must be in [lowest, highest), else builtin kernels run.
ADD_SCALE_LIMITS = (2.0**-10, 2.0**8)
# QUANTIZE from int8 to int8: input_scale / output_scale must be in [lowest, highest], else builtin kernels
# run.
REQUANTIZE_INT8_SCALE_LIMITS = (2.0**-8, 2.0**7)

_RANGES = {
    "none": (None, None),
    "relu": (0.0, None),
    "relu6": (0.0, 6.0),
    "relu_n1_to_1": (-1.0, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Int8Grid:
    """The values scale * (stored - zero_point) for stored in [-128, 127].

    The scale is rounded to float32, as the file stores it.

    Raises:
        ValueError: a scale that is not positive and finite in float32, or a zero point outside int8.
    """

    # Distance of neighbouring values, in units of the tensor.
    scale: float
    # The stored integer that means 0.
    zero_point: int

    def __post_init__(self) -> None:
        scale = float(np.float32(self.scale))
        if not (0 < scale < np.inf):
            raise ValueError(f"got scale {self.scale}, expected a positive float32: pass the step of the grid")
        if not -128 <= self.zero_point <= 127:
            raise ValueError(f"got zero point {self.zero_point}, expected one in [-128, 127]: shift the grid")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", int(self.zero_point))


# The output grids that the kernels of these operators demand.
LOGISTIC_OUTPUT = Int8Grid(scale=1 / 256, zero_point=-128)
TANH_OUTPUT = Int8Grid(scale=1 / 128, zero_point=0)
SOFTMAX_OUTPUT = Int8Grid(scale=1 / 256, zero_point=-128)


def fused_range(output: Int8Grid, activation: str, *, kernels: str = "xnnpack") -> tuple[int, int]:
    """Lowest and highest stored value that a fused activation leaves.

    Forward, each operation rounded to float32, within [-128, 127]:

        xnnpack   rint(bound / scale + zero_point), ties to the even *stored* value
        builtin   round(bound / scale) + zero_point, ties away from zero

    Args:
        output: grid of the output.
        activation: "none", "relu", "relu6" or "relu_n1_to_1".
        kernels: "xnnpack" or "builtin".

    Raises:
        ValueError: another activation or other kernels.
    """
    if activation not in _RANGES:
        raise ValueError(f"got activation {activation!r}, expected one of {tuple(_RANGES)}: fuse one of these")
    check_kernels(kernels)

    def stored(bound: float | None, limit: int) -> int:
        if bound is None:
            return limit
        level, zero_point = np.float32(bound) / np.float32(output.scale), np.float32(output.zero_point)
        if kernels == "xnnpack":
            return int(np.clip(np.rint(level + zero_point), -128, 127))
        return int(np.clip(np.trunc(level + np.copysign(np.float32(0.5), level)) + zero_point, -128, 127))

    lowest, highest = _RANGES[activation]
    return stored(lowest, -128), stored(highest, 127)


def quantize(x: ArrayLike, grid: Int8Grid) -> NDArray[np.int32]:
    """QUANTIZE from float32 to int8, in XNNPACK.

    Forward: clip(rint(x * float32(1 / scale)) + zero_point, -128, 127), ties to even. It is a product with
    the rounded reciprocal, not a quotient. NaN is undefined.
    """
    inverse = np.float32(1) / np.float32(grid.scale)
    with np.errstate(over="ignore"):  # A product beyond float32 saturates like any other large value.
        scaled = np.asarray(x, np.float32) * inverse
    return to_stored(np.rint(scaled).astype(np.float64) + grid.zero_point)


def requantize_int8(x: ArrayLike, x_grid: Int8Grid, output: Int8Grid) -> NDArray[np.int32]:
    """QUANTIZE from int8 to int8, in XNNPACK: the ratio of the scales has 8 fractional bits only.

    Forward: M = rint(256 * float32(x_scale / scale)), y = ((x - x_zero_point) * M + 128) >> 8, plus
    zero_point, saturated; ties go up. Rounding the ratio to 1/256 costs up to half a step, so that 5 % of the
    values of a generic pair of grids differ by one step from rounding the exact value.

    Raises:
        ValueError: a ratio of scales outside `REQUANTIZE_INT8_SCALE_LIMITS`, which XNNPACK refuses.
    """
    ratio = np.float32(x_grid.scale) / np.float32(output.scale)
    lowest, highest = REQUANTIZE_INT8_SCALE_LIMITS
    if not lowest <= ratio <= highest:
        raise _ratio_error("QUANTIZE", ratio, f"[{lowest}, {highest}]")
    multiplier = np.int64(np.rint(np.float32(256) * ratio))
    centered = np.asarray(x, np.int64) - x_grid.zero_point
    return to_stored(((centered * multiplier + 128) >> 8) + output.zero_point)


def requantize(
    accumulator: ArrayLike,
    *,
    input_scale: float,
    weight_scales: ArrayLike,
    output: Int8Grid,
    low: int = -128,
    high: int = 127,
    kernels: str = "xnnpack",
) -> NDArray[np.int32]:
    """The last step of CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED.

    Forward, with acc = sum (x - x_zero_point) * w + bias exact:

        xnnpack   m = f32(s_x) * f32(s_w) / f32(s_y);  y = rint(clip(f32(acc) * m, low - z, high - z)) + z
        builtin   s_x * s_w / s_y = M * 2^(l - r - 31) in double, M in [2^30, 2^31);
                  h = (acc * 2^l * M + 2^30) >> 31;  y = clip(((h + 2^(r-1)) >> r) + z, low, high)

    XNNPACK sends ties to even, the builtin kernels send them up. The builtin formula also holds where XNNPACK
    refuses the operator, as it does for INT4 weights of convolutions.

    Args:
        accumulator: int32 accumulators with the bias in them, (..., channels), int64 or exact in float64.
        input_scale: scale of the input.
        weight_scales: one scale, or one per channel, on the last axis.
        output: grid of the output.
        low: lowest stored value that the fused activation leaves, see `fused_range`.
        high: highest stored value that it leaves.
        kernels: "xnnpack" or "builtin".

    Raises:
        ValueError: other kernels, or a scale of `REQUANTIZATION_SCALE_LIMIT` and above in XNNPACK.
    """
    check_kernels(kernels)
    scales = np.asarray(weight_scales, np.float32)
    if kernels == "xnnpack":
        multiplier = np.float32(input_scale) * scales / np.float32(output.scale)
        if np.any(multiplier >= REQUANTIZATION_SCALE_LIMIT):
            raise ValueError(
                f"got input_scale * weight_scale / output_scale = {float(multiplier.max()):.6g}, expected "
                f"less than {REQUANTIZATION_SCALE_LIMIT:g}, beyond which XNNPACK refuses the file: use a "
                "larger output scale"
            )
        real = np.asarray(accumulator).astype(np.float32) * multiplier
        clipped = np.clip(real, np.float32(low - output.zero_point), np.float32(high - output.zero_point))
        return np.rint(clipped).astype(np.int32) + np.int32(output.zero_point)
    exact = np.asarray(accumulator).astype(np.int64)
    real_multiplier = np.float64(np.float32(input_scale)) * scales.astype(np.float64) / np.float64(output.scale)
    mantissa, left, right = _fixed_point(real_multiplier)
    halves = _shift_half_up((exact << left) * mantissa, np.int64(31))
    return to_stored(_shift_half_up(halves, right) + output.zero_point, low, high)


def add(
    a: ArrayLike,
    a_grid: Int8Grid,
    b: ArrayLike,
    b_grid: Int8Grid,
    output: Int8Grid,
    low: int = -128,
    high: int = 127,
) -> NDArray[np.int32]:
    """ADD of two int8 tensors in XNNPACK, with broadcasting; either may be a constant.

    Forward: r_a = f32(s_a / s_y), r_b likewise, n = 20 - floor(log2(max(r_a, r_b))), M_a = rint(r_a * 2^n),
    M_b = rint(r_b * 2^n), y = (M_a * (a - z_a) + M_b * (b - z_b) + 2^(n-1)) >> n, plus z_y, clipped to
    [low, high]. Ties go up.

    Raises:
        ValueError: a ratio of scales outside `ADD_SCALE_LIMITS`, which XNNPACK refuses.
    """
    return _add("ADD", 1, a, a_grid, b, b_grid, output, low, high)


def subtract(
    a: ArrayLike,
    a_grid: Int8Grid,
    b: ArrayLike,
    b_grid: Int8Grid,
    output: Int8Grid,
    low: int = -128,
    high: int = 127,
) -> NDArray[np.int32]:
    """SUB of two int8 tensors in XNNPACK: `add` with -M_b in the place of M_b. Ties go up.

    Raises:
        ValueError: a ratio of scales outside `ADD_SCALE_LIMITS`, which XNNPACK refuses.
    """
    return _add("SUB", -1, a, a_grid, b, b_grid, output, low, high)


def mean(x: ArrayLike, x_grid: Int8Grid, output: Int8Grid, axes: Sequence[int] = (1, 2)) -> NDArray[np.int32]:
    """MEAN over `axes`, which are dropped, in XNNPACK.

    Forward, each operation rounded to float32: m = (s_x / s_y) * (1 / N), y = rint(sum(x) * m + (z_y - N *
    z_x * m)), saturated, N the number of values averaged. The zero point is inside the rounding: ties go to
    the even *stored* value. XNNPACK takes every pair of scales.
    """
    stored = np.asarray(x, np.int64)
    count = np.float32(np.prod([stored.shape[axis] for axis in axes]))
    multiplier = np.float32(x_grid.scale) / np.float32(output.scale) * (np.float32(1) / count)
    offset = np.float32(output.zero_point) - np.float32(x_grid.zero_point) * count * multiplier
    total = stored.sum(axis=tuple(axes)).astype(np.float32)
    return to_stored(np.rint(total * multiplier + offset))


def _add(
    operator: str, sign: int, a: ArrayLike, a_grid: Int8Grid, b: ArrayLike, b_grid: Int8Grid,
    output: Int8Grid, low: int, high: int,
) -> NDArray[np.int32]:  # fmt: skip
    ratios = [np.float32(grid.scale) / np.float32(output.scale) for grid in (a_grid, b_grid)]
    lowest, highest = ADD_SCALE_LIMITS
    for ratio in ratios:
        if not lowest <= ratio < highest:
            raise _ratio_error(operator, ratio, f"[{lowest}, {highest})")
    shift = np.int64(20 - (int(np.frexp(max(ratios))[1]) - 1))
    a_multiplier, b_multiplier = (np.int64(np.rint(np.ldexp(ratio, int(shift)))) for ratio in ratios)
    a_centered = np.asarray(a, np.int64) - a_grid.zero_point
    b_centered = np.asarray(b, np.int64) - b_grid.zero_point
    total = a_multiplier * a_centered + sign * b_multiplier * b_centered
    return to_stored(_shift_half_up(total, shift) + output.zero_point, low, high)


def _fixed_point(multiplier: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Splits the multiplier into mantissa * 2^(left - right - 31), with the mantissa in [2^30, 2^31)."""
    fraction, exponent = np.frexp(np.asarray(multiplier, np.float64))
    mantissa = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    overflow = mantissa == 1 << 31
    mantissa = np.where(overflow, 1 << 30, mantissa)
    shift = exponent.astype(np.int64) + overflow
    return mantissa, np.maximum(shift, 0), np.maximum(-shift, 0)


def _shift_half_up(values: NDArray[np.int64], shift: NDArray[np.int64] | np.int64) -> NDArray[np.int64]:
    return (values + ((np.int64(1) << shift) >> 1)) >> shift


def to_stored(values: NDArray, low: int = -128, high: int = 127) -> NDArray[np.int32]:
    """The stored integers of levels, clipped to [low, high]."""
    return np.clip(values, low, high).astype(np.int32)


def check_kernels(kernels: str) -> None:
    """Refuses kernels whose formulas are not known here.

    Raises:
        ValueError: neither "xnnpack" nor "builtin".
    """
    if kernels not in ("xnnpack", "builtin"):
        raise ValueError(f"got kernels={kernels!r}, expected 'xnnpack' or 'builtin': no other formula is known here")


def _ratio_error(operator: str, ratio: float, limits: str) -> ValueError:
    return ValueError(
        f"got input_scale / output_scale = {float(ratio):.6g} in {operator}, expected a ratio in {limits}, "
        "outside of which XNNPACK refuses the operator: choose scales closer to each other"
    )
