"""What the integer kernels of MUL, LEAKY_RELU, PRELU, GELU, ELU, HARD_SWISH and RESIZE_BILINEAR compute, bit for bit.

The third part of `arithmetic.py`, in numpy. Stored integers in, stored integers out, as int32; 0 differences against
ai-edge-litert 2.3 on x86-64, which `tests/export/test_arithmetic_elementwise.py` shows, ties included.

    multiply, leaky_relu, elu, resize_bilinear    run in XNNPACK
    prelu, gelu, hard_swish                       run in the builtin kernels, since XNNPACK refuses them for int8
    rescale                                       the fixed-point product in these, and in the builtin kernels of
                                                  TRANSPOSE_CONV and of grouped CONV_2D

Other operators need no formula of their own. TRANSPOSE_CONV, and CONV_2D and DEPTHWISE_CONV_2D with groups or
dilations, end with `arithmetic.requantize`, of the default kernels where XNNPACK takes them: not a TRANSPOSE_CONV whose
output shape is computed, as it is where the batch is open, and not one with padding "same" and a kernel smaller than
its stride. RESIZE_NEAREST_NEIGHBOR, REDUCE_MAX, MAXIMUM, MINIMUM, CONCATENATION, SPLIT and DEPTH_TO_SPACE over one grid
move integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfqil.export.arithmetic import Int8Grid, check_kernels, to_stored

# MUL: a_scale * b_scale / output_scale must be in [lowest, highest), else builtin kernels run.
MULTIPLY_SCALE_LIMITS = (2.0**-16, 2.0**8)
# LEAKY_RELU: input_scale / output_scale must be in [lowest, highest], and that times alpha too, or in the other
# interval if alpha is negative; else builtin kernels run.
LEAKY_RELU_SCALE_LIMITS = (2.0**-8, 2.0**7)
LEAKY_RELU_NEGATIVE_SCALE_LIMITS = (-(2.0**7 - 2.0**-8), -(2.0**-8))
# HARD_SWISH: input_scale / output_scale must be in [lowest, highest). The runtime refuses the file above, and computes
# garbage below, where 0 would be right, in a shift by all 16 bits.
HARD_SWISH_SCALE_LIMITS = (2.0**-9, 2.0**7)

# Fractional bits of the weights of RESIZE_BILINEAR.
_XNNPACK_RESIZE_BITS = 11
_BUILTIN_RESIZE_BITS = 10


def multiply(
    a: ArrayLike,
    a_grid: Int8Grid,
    b: ArrayLike,
    b_grid: Int8Grid,
    output: Int8Grid,
    low: int = -128,
    high: int = 127,
) -> NDArray[np.int32]:
    """MUL of two int8 tensors in XNNPACK, with broadcasting; either may be a constant.

    Forward: m = f32(s_a) * f32(s_b) / f32(s_y), y = rint(f32((a - z_a) * (b - z_b)) * m) + z_y, clipped to [low,
    high]. Ties go to even before the zero point is added.

    Args:
        a: stored values.
        a_grid: their grid.
        b: stored values of a shape that broadcasts with that of `a`.
        b_grid: their grid.
        output: grid of the output.
        low: lowest stored value that the fused activation leaves, see `fused_range`.
        high: highest stored value that it leaves.

    Raises:
        ValueError: a product of scales outside `MULTIPLY_SCALE_LIMITS`, which XNNPACK refuses.
    """
    multiplier = np.float32(a_grid.scale) * np.float32(b_grid.scale) / np.float32(output.scale)
    lowest, highest = MULTIPLY_SCALE_LIMITS
    if not lowest <= multiplier < highest:
        raise ValueError(
            f"got a_scale * b_scale / output_scale = {float(multiplier):.6g} in MUL, expected it in [{lowest}, "
            f"{highest}), outside of which XNNPACK refuses the operator: choose another output scale"
        )
    product = (np.asarray(a, np.int32) - a_grid.zero_point) * (np.asarray(b, np.int32) - b_grid.zero_point)
    levels = np.rint(product.astype(np.float32) * multiplier)
    return to_stored(levels + np.float32(output.zero_point), low, high)


def leaky_relu(
    x: ArrayLike, x_grid: Int8Grid, alpha: float, output: Int8Grid, *, kernels: str = "xnnpack"
) -> NDArray[np.int32]:
    """LEAKY_RELU, where negative values are multiplied by `alpha`.

    Forward, with r = f32(s_x) / f32(s_y) and d = x - z_x:

        xnnpack   M = rint(256 * r) if d >= 0 else rint(256 * (r * f32(alpha)));  y = ((d * M + 128) >> 8) + z_y
        builtin   y = rescale(d, r if d >= 0 else f32(s_x) * f32(alpha) / f32(s_y)) + z_y

    saturated. XNNPACK has 8 fractional bits only, and sends ties up.

    Args:
        x: stored values.
        x_grid: their grid.
        alpha: slope below 0.
        output: grid of the output.
        kernels: "xnnpack", or "builtin" where XNNPACK refuses.

    Raises:
        ValueError: other kernels, or in XNNPACK a slope outside `LEAKY_RELU_SCALE_LIMITS`, or outside
            `LEAKY_RELU_NEGATIVE_SCALE_LIMITS` if negative, such as an alpha of 0.
    """
    check_kernels(kernels)
    centered = np.asarray(x, np.int64) - x_grid.zero_point
    positive = np.float32(x_grid.scale) / np.float32(output.scale)
    if kernels == "builtin":
        negative = np.float32(x_grid.scale) * np.float32(alpha) / np.float32(output.scale)
        below = np.sign(negative).astype(np.int64) * rescale(centered, abs(negative))
        return to_stored(np.where(centered >= 0, rescale(centered, positive), below) + output.zero_point)
    slopes = positive, positive * np.float32(alpha)
    for slope, limits in zip(slopes, _limits_of_slopes(alpha), strict=True):
        if not limits[0] <= slope <= limits[1]:
            raise ValueError(
                f"got a slope of {float(slope):.6g} output steps per input step in LEAKY_RELU, expected one in "
                f"[{limits[0]}, {limits[1]}], outside of which XNNPACK refuses the operator: choose scales closer to "
                "each other, or another alpha"
            )
    above, below = (np.int64(np.rint(np.float32(256) * slope)) for slope in slopes)
    return to_stored(((centered * np.where(centered >= 0, above, below) + 128) >> 8) + output.zero_point)


def leaky_relu_kernels(x_grid: Int8Grid, alpha: float, output: Int8Grid) -> str:
    """Which kernels run a LEAKY_RELU: "xnnpack", or "builtin" where XNNPACK refuses."""
    positive = np.float32(x_grid.scale) / np.float32(output.scale)
    slopes = positive, positive * np.float32(alpha)
    taken = [low <= slope <= high for slope, (low, high) in zip(slopes, _limits_of_slopes(alpha), strict=True)]
    return "xnnpack" if all(taken) else "builtin"


def prelu(
    x: ArrayLike, x_grid: Int8Grid, alpha: ArrayLike, alpha_grid: Int8Grid, output: Int8Grid
) -> NDArray[np.int32]:
    """PRELU with an int8 alpha, which broadcasts with the input; builtin kernels, XNNPACK refuses it for int8.

    Forward, with d = x - z_x: y = rescale(d, s_x / s_y) where d >= 0, else rescale(d * (alpha - z_alpha), s_x *
    s_alpha / s_y), plus z_y, saturated; the products of scales are in double.
    """
    centered = np.asarray(x, np.int64) - x_grid.zero_point
    slopes = np.asarray(alpha, np.int64) - alpha_grid.zero_point
    above = rescale(centered, x_grid.scale / output.scale)
    below = rescale(centered * slopes, x_grid.scale * alpha_grid.scale / output.scale)
    return to_stored(np.where(centered >= 0, above, below) + output.zero_point)


def gelu(x: ArrayLike, x_grid: Int8Grid, output: Int8Grid, *, approximate: bool = False) -> NDArray[np.int32]:
    """GELU: a table of 256 entries; builtin kernels, XNNPACK refuses it for int8.

    Forward, each operation rounded to float32, with v = s_x * (x - z_x):

        exact         g = 0.5 * v * erfc(-sqrt(1/2) * v)
        approximate   g = 0.5 * v * (1 + tanh(sqrt(2/pi) * (v + 0.044715 * v * v * v)))

    y = round(g * f32(1 / s_y)) + z_y, ties away from zero, saturated.
    """
    values, half = _values(np.arange(-128, 128), x_grid), np.float32(0.5)
    # erfc and tanh in double, then rounded: the C library's float functions are within an ulp of that.
    if approximate:
        inner = np.float32(np.sqrt(2 / np.pi)) * (values + np.float32(0.044715) * values * values * values)
        results = half * values * (np.float32(1) + _in_double(np.tanh, inner))
    else:
        results = half * values * _in_double(np.vectorize(math.erfc), values * np.float32(-np.sqrt(0.5)))
    levels = (results * (np.float32(1) / np.float32(output.scale))).astype(np.float64)
    table = to_stored(np.trunc(levels + np.copysign(0.5, levels)) + output.zero_point)
    return table[np.asarray(x, np.int64) + 128]


def elu(x: ArrayLike, x_grid: Int8Grid, output: Int8Grid) -> NDArray[np.int32]:
    """ELU with alpha 1 in XNNPACK; TFLiteConverter leaves ELU in float, other writers do not.

    Forward, each operation rounded to float32: v = s_x * (x - z_x), e = v if v >= 0 else exp(v) - 1, y = rint(e *
    (1 / s_y) + z_y), saturated. The zero point is inside the rounding: ties go to the even *stored* value.
    """
    values = _values(x, x_grid)
    results = np.where(values < 0, _in_double(np.expm1, np.minimum(values, np.float32(0))), values)
    return to_stored(np.rint(results * (np.float32(1) / np.float32(output.scale)) + np.float32(output.zero_point)))


def hard_swish(x: ArrayLike, x_grid: Int8Grid, output: Int8Grid) -> NDArray[np.int32]:
    """HARD_SWISH, x * relu6(x + 3) / 6; builtin kernels, XNNPACK refuses it for int8.

    Forward, in 16 bits, with d = 128 * (x - z_x), f32(s_x / 128) / f32(3 / 32768) = R * 2^(r - 15) and f32(s_x / 128)
    / f32(s_y) = Y * 2^(e - 15), R and Y rounded to 15 bits:

        p = (d * Y + 2^14) >> 15                                      the input in steps of the output
        u = saturate(d * R * 2^(r - 15)) to 16 bits, 3.0 being 2^15   see the code for its roundings
        v = (u + 2^15) >> 1                                           relu6(x + 3) / 6 in steps of 2^-15
        y = (trunc(v * p / 2^15) * 2^e, rounded, ties away from zero) + z_y, saturated

    Raises:
        ValueError: a ratio of scales outside `HARD_SWISH_SCALE_LIMITS`.
    """
    ratio = np.float32(x_grid.scale) / np.float32(output.scale)
    lowest, highest = HARD_SWISH_SCALE_LIMITS
    if not lowest <= ratio < highest:
        raise ValueError(
            f"got input_scale / output_scale = {float(ratio):.6g} in HARD_SWISH, expected a ratio in [{lowest}, "
            f"{highest}), outside of which the runtime has no result: choose scales closer to each other"
        )
    scaled = np.float32(1 / 128) * np.float32(x_grid.scale)
    multiplier, exponent = _short_fixed_point(scaled / np.float32(output.scale))
    gate_multiplier, gate_exponent = _short_fixed_point(scaled / (np.float32(3) / np.float32(32768)))
    centered = (np.asarray(x, np.int64) - x_grid.zero_point) * 128
    # Saturation counts only in the last bit of the shift to the left.
    gate = _to_short(centered << max(gate_exponent - 1, 0))
    gate = _divide_half_up(gate * gate_multiplier, 15)
    gate = _to_short(gate << 1) if gate_exponent > 0 else _divide_half_away(gate, -gate_exponent)
    gate = (gate + 2**15) >> 1
    product = gate * _divide_half_up(centered * multiplier, 15)
    levels = np.sign(product) * (np.abs(product) >> 15)
    return to_stored(_divide_half_away(levels, -exponent) + output.zero_point)


def resize_bilinear(
    x: ArrayLike,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    half_pixel_centers: bool = True,
    kernels: str = "xnnpack",
) -> NDArray[np.int32]:
    """RESIZE_BILINEAR with one grid for input and output; the zero point takes no part.

    `tf.image.resize` and Keras layers have half_pixel_centers. Forward, along each axis of `input` and `output` pixels:

        xnnpack   ratio = f32(input) / f32(output), or (input - 1) / (output - 1) with align_corners; p = f32(i) *
                  ratio, with half_pixel_centers + (0.5 * ratio - 0.5), clipped to [0, input - 1]; first pixel
                  floor(p), second the next within the image, weight of the second rint(2^11 * (p - floor(p)));
                  y = (weighted sum + 2^21) >> 22, ties up
        builtin   the same with ratio and p as integers in units of 2^-10, and ties away from zero

    Args:
        x: stored values, (N, H, W, C).
        size: height and width of the output.
        align_corners: whether the centers of the corner pixels stay.
        half_pixel_centers: whether pixel i covers [i, i + 1) rather than being a point at i.
        kernels: "xnnpack", or "builtin", which run if the file computes `size` because height and width are open.

    Raises:
        ValueError: other kernels, or both align_corners and half_pixel_centers.
    """
    check_kernels(kernels)
    if align_corners and half_pixel_centers:
        raise ValueError("got align_corners and half_pixel_centers, expected one of them: the runtime takes no both")
    stored = np.asarray(x, np.int64)
    axis_weights = _xnnpack_weights if kernels == "xnnpack" else _builtin_weights
    bits = _XNNPACK_RESIZE_BITS if kernels == "xnnpack" else _BUILTIN_RESIZE_BITS
    for axis in (1, 2):
        first, second, weight = axis_weights(stored.shape[axis], size[axis - 1], align_corners, half_pixel_centers)
        weight = weight.reshape([-1 if index == axis else 1 for index in range(4)])
        one, other = np.take(stored, first, axis), np.take(stored, second, axis)
        stored = one * ((1 << bits) - weight) + other * weight
    divide = _divide_half_up if kernels == "xnnpack" else _divide_half_away
    return divide(stored, 2 * bits).astype(np.int32)


def rescale(values: NDArray[np.int64], multiplier: float) -> NDArray[np.int64]:
    """The fixed-point product of the builtin kernels that are not matrix products.

    Forward: multiplier = M * 2^(l - r - 31) with M in [2^30, 2^31); h = (values * 2^l * M + 2^30) >> 31, ties up;
    y = sign(h) * ((abs(h) + 2^(r-1)) >> r), ties away from zero. In TRANSPOSE_CONV and grouped CONV_2D the multiplier
    is s_x * s_w / s_y, in double.

    Args:
        values: accumulators, as int64.
        multiplier: not negative.
    """
    mantissa, exponent = _fixed_point(multiplier)
    return _divide_half_away(_divide_half_up((values << max(exponent, 0)) * mantissa, 31), max(-exponent, 0))


def _limits_of_slopes(alpha: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """The lowest and highest slope that XNNPACK takes above 0, and below it."""
    return LEAKY_RELU_SCALE_LIMITS, LEAKY_RELU_NEGATIVE_SCALE_LIMITS if alpha < 0 else LEAKY_RELU_SCALE_LIMITS


def _values(x: ArrayLike, grid: Int8Grid) -> NDArray[np.float32]:
    return (np.asarray(x, np.int64) - grid.zero_point).astype(np.float32) * np.float32(grid.scale)


def _in_double(function: Callable[..., NDArray], values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(function(values.astype(np.float64)), np.float32)


def _fixed_point(multiplier: float) -> tuple[int, int]:
    """Splits into mantissa * 2^(exponent - 31) with the mantissa in [2^30, 2^31), or 0."""
    fraction, exponent = np.frexp(np.float64(multiplier))
    mantissa = int(np.floor(fraction * 2.0**31 + 0.5))
    return (1 << 30, int(exponent) + 1) if mantissa == 1 << 31 else (mantissa, int(exponent))


def _short_fixed_point(multiplier: float) -> tuple[int, int]:
    """Splits into mantissa * 2^(exponent - 15) with the mantissa in [2^14, 2^15), saturated."""
    mantissa, exponent = _fixed_point(multiplier)
    return min((mantissa + (1 << 15)) >> 16, 2**15 - 1), exponent


def _xnnpack_weights(
    size: int, wanted: int, align_corners: bool, half_pixel_centers: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    less = 1 if align_corners and wanted > 1 else 0
    ratio = np.float32(size - less) / np.float32(wanted - less)
    position = np.arange(wanted).astype(np.float32) * ratio
    if half_pixel_centers:
        shifted = position + (np.float32(0.5) * ratio - np.float32(0.5))
        position = np.clip(shifted, np.float32(0), np.float32(size - 1))
    first = position.astype(np.int64)
    weight = np.rint((position - first.astype(np.float32)) * np.float32(1 << _XNNPACK_RESIZE_BITS))
    return first, np.minimum(first + 1, size - 1), weight.astype(np.int64)


def _builtin_weights(
    size: int, wanted: int, align_corners: bool, half_pixel_centers: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    one = 1 << _BUILTIN_RESIZE_BITS
    less = 1 if align_corners and wanted > 1 else 0
    ratio = (one * (size - less) + (wanted - less) // 2) // (wanted - less)
    position = np.arange(wanted, dtype=np.int64) * ratio + (ratio // 2 - one // 2 if half_pixel_centers else 0)
    first = np.maximum(position // one, 0)
    second = np.clip((position + one - 1) // one, 0, size - 1)
    return first, second, position - one * first


def _divide_half_away(values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Divides by 2^bits, rounded to the nearest, ties away from zero."""
    return np.sign(values) * ((np.abs(values) + ((1 << bits) >> 1)) >> bits)


def _divide_half_up(values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Divides by 2^bits, rounded to the nearest, ties up."""
    return (values + (1 << (bits - 1))) >> bits


def _to_short(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.clip(values, -(2**15), 2**15 - 1)
