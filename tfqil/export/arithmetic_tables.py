"""What the integer kernels of AVERAGE_POOL_2D, LOGISTIC, TANH and SOFTMAX compute, in numpy, bit for bit.

The second half of `arithmetic.py`: operators that divide or look up a table instead of multiplying. Stored
integers in, stored integers out, as int32; 0 differences against ai-edge-litert 2.3 on x86-64.
"""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfqil.export.arithmetic import LOGISTIC_OUTPUT, SOFTMAX_OUTPUT, TANH_OUTPUT, Int8Grid, check_kernels


def average_pool(
    x: ArrayLike,
    pool: tuple[int, int],
    strides: tuple[int, int],
    padding: str,
    low: int = -128,
    high: int = 127,
) -> NDArray[np.int32]:
    """AVERAGE_POOL_2D with one grid for input and output; builtin kernels, XNNPACK refuses it for int8.

    Forward: the sum of the stored values under the window, divided by their number, ties away from zero,
    clipped to [low, high]. Values outside the image are not counted. The zero point takes no part, so that a
    tie goes away from stored 0.

    Args:
        x: stored values, (N, H, W, C).
        pool: height and width of the window.
        strides: vertical and horizontal stride.
        padding: "same" or "valid".
        low: lowest stored value that the fused activation leaves.
        high: highest stored value that it leaves.

    Raises:
        ValueError: another padding, or a window larger than the image with "valid".
    """
    stored = np.asarray(x, np.int64)
    rows = _windows(stored.shape[1], pool[0], strides[0], padding)
    columns = _windows(stored.shape[2], pool[1], strides[1], padding)
    # Sums over a rectangle come from four corners of the running sum, which has a leading row and column of
    # 0.
    running = np.pad(stored.cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0), (0, 0)))
    top, bottom = running[:, rows[0]], running[:, rows[1]]
    total = bottom[:, :, columns[1]] - bottom[:, :, columns[0]] - top[:, :, columns[1]] + top[:, :, columns[0]]
    count = np.multiply.outer(rows[1] - rows[0], columns[1] - columns[0])[None, :, :, None]
    magnitude = (np.abs(total) + count // 2) // count
    return np.clip(np.sign(total) * magnitude, low, high).astype(np.int32)


def logistic(x: ArrayLike, x_grid: Int8Grid, *, kernels: str = "xnnpack") -> NDArray[np.int32]:
    """LOGISTIC with output grid `LOGISTIC_OUTPUT`.

    Forward: round(256 / (1 + exp(-s_x * (x - z_x)))) - 128, saturated: a table of 256 entries. XNNPACK takes a
    precise quotient, subtracts 128 in float32, which may make it a tie, and sends ties to even; the builtin
    kernels compute in float32 and send ties up.

    Args:
        x: stored values.
        x_grid: grid of the input.
        kernels: "xnnpack" or "builtin".

    Raises:
        ValueError: other kernels.
    """
    check_kernels(kernels)
    with np.errstate(over="ignore"):  # exp of a large number is inf, and 1 / inf the right limit.
        exponential = np.exp(-_values(x, x_grid))
        if kernels == "xnnpack":
            return _table(1 / (1 + exponential), LOGISTIC_OUTPUT)
        quotient = np.float32(1) / (np.float32(1) + exponential.astype(np.float32))
    return _half_up(quotient * np.float32(256), LOGISTIC_OUTPUT)


def tanh(x: ArrayLike, x_grid: Int8Grid) -> NDArray[np.int32]:
    """TANH with output grid `TANH_OUTPUT`; XNNPACK and builtin kernels agree.

    Forward: rint(128 * tanh(s_x * (x - z_x))), saturated: a table of 256 entries.
    """
    return _table(_tanh(_values(x, x_grid)), TANH_OUTPUT)


def softmax(x: ArrayLike, x_grid: Int8Grid) -> NDArray[np.int32]:
    """SOFTMAX over the last axis with beta 1 and output grid `SOFTMAX_OUTPUT`; builtin kernels, not XNNPACK.

    Forward, each operation rounded to float32: e = exp(-s_x * (max(x) - x)), y = round(e * (1 / (sum(e) /
    256))) - 128, ties up, saturated. The sum runs from the first class to the last. The zero point of the
    input cancels.
    """
    stored = np.asarray(x, np.int64)
    below = (stored.max(axis=-1, keepdims=True) - stored).astype(np.float32)
    # exp in double, then rounded: the C library's expf, on which the table of the kernel is built, is within
    # half an ulp of that.
    exponential = np.exp((-np.float32(x_grid.scale) * below).astype(np.float64)).astype(np.float32)
    # accumulate adds in order; sum would add in pairs.
    total = np.add.accumulate(exponential, axis=-1)[..., -1:]
    inverse = np.float32(1) / (total * np.float32(SOFTMAX_OUTPUT.scale))
    return _half_up(exponential * inverse, SOFTMAX_OUTPUT)


def _values(x: ArrayLike, grid: Int8Grid) -> NDArray[np.float64]:
    # The kernels dequantize in float32, and only then apply the function.
    centered = (np.asarray(x, np.int64) - grid.zero_point).astype(np.float32)
    return (centered * np.float32(grid.scale)).astype(np.float64)


def _table(values: NDArray[np.float64], output: Int8Grid) -> NDArray[np.int32]:
    # The scale is a power of two; adding the zero point rounds to float32.
    levels = values.astype(np.float32) / np.float32(output.scale) + np.float32(output.zero_point)
    return np.clip(np.rint(levels), -128, 127).astype(np.int32)


def _tanh(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The C library's tanhf, which fills the tables of the kernels; it is up to an ulp from the nearest float."""
    library = ctypes.util.find_library("m")
    if library is None:
        return np.tanh(values)
    function = ctypes.CDLL(library).tanhf
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
    inputs, places = np.unique(values, return_inverse=True)
    return np.array([function(value) for value in inputs])[places].reshape(values.shape)


def _half_up(levels: NDArray[np.float32], output: Int8Grid) -> NDArray[np.int32]:
    # In double, where adding a half is exact.
    rounded = np.floor(levels.astype(np.float64) + 0.5) + output.zero_point
    return np.clip(rounded, -128, 127).astype(np.int32)


def _windows(size: int, window: int, stride: int, padding: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and one past the last index of each window, cut to the image."""
    if padding == "same":
        count = -(-size // stride)
        before = max((count - 1) * stride + window - size, 0) // 2
    elif padding == "valid":
        count, before = (size - window) // stride + 1, 0
        if size < window:
            raise ValueError(f"got a window of {window} over {size} pixels, expected it to fit: use padding 'same'")
    else:
        raise ValueError(f"got padding {padding!r}, expected 'same' or 'valid': pass one of the two")
    first = np.arange(count) * stride - before
    return np.maximum(first, 0), np.minimum(first + window, size)
