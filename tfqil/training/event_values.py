"""Scalars and histograms in the format of TensorBoard, which itself need not be installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

_BINS = 30
# Up to here every code has a bucket of its own: those of 8 bits do.
_MOST_CODE_BUCKETS = 256
_SCALAR, _TENSOR = 1, 2  # Members of TensorBoard's DataClass.


def write_scalar(tag: str, value: float, step: int) -> None:
    """Writes a number to the summary writer in use."""
    tf.summary.write(tag, tf.constant(value, tf.float32), step, _metadata("scalars", _SCALAR))


def write_histogram(tag: str, buckets: NDArray[np.float64], step: int) -> None:
    """Writes a histogram to the summary writer in use.

    Args:
        tag: its name.
        buckets: (buckets, 3): left end, right end and number of entries of each.
        step: of the training.
    """
    tf.summary.write(tag, tf.constant(buckets, tf.float64), step, _metadata("histograms", _TENSOR))


def value_buckets(values: NDArray[Any]) -> NDArray[np.float64]:
    """30 buckets of equal width from the smallest to the largest of finite values."""
    # In float64: between neighbouring numbers of float32 there is no room for so many ends.
    counts, edges = np.histogram(np.asarray(values, np.float64), bins=_BINS)
    return np.stack([edges[:-1], edges[1:], counts], axis=-1).astype(np.float64)


def code_buckets(codes: NDArray[Any]) -> NDArray[np.float64]:
    """A bucket around every code from the smallest to the largest; those of `value_buckets` if they are too many."""
    lowest, highest = int(codes.min()), int(codes.max())
    if highest - lowest >= _MOST_CODE_BUCKETS:
        return value_buckets(codes)
    middles = np.arange(lowest, highest + 1)
    counts = np.bincount(codes.ravel() - lowest, minlength=middles.size)
    return np.stack([middles - 0.5, middles + 0.5, counts], axis=-1).astype(np.float64)


def _metadata(plugin: str, data_class: int) -> Any:
    return tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": plugin}, data_class=data_class)
