"""Sums of entries by the bin that they belong to."""

from __future__ import annotations

import tensorflow as tf


def bin_sums(bins_of: tf.Tensor, weights: tf.Tensor, *, bins: int) -> tf.Tensor:
    """The sum of the entries of each bin.

    Forward: sum of weights[i] over the i with bins_of[i] = k, for k = 0 .. bins - 1; entries count 1 if there are no
        weights.
    Gradient: none.
    Shapes: bins_of any, int32, from 0 to bins - 1; weights the same, float, or (0,); the result (bins,), of the type of
        the weights.
    """
    bins_of, weights = tf.reshape(bins_of, [-1]), tf.reshape(weights, [-1])
    if weights.dtype == tf.float32 or not tf.config.list_logical_devices("GPU"):
        return tf.raw_ops.DenseBincount(input=bins_of, size=bins, weights=weights)
    # That kernel, which takes all threads of a CPU and this one takes one, has no float64 on a GPU.
    if weights.shape.num_elements() == 0:
        weights = tf.ones_like(bins_of, weights.dtype)
    return tf.math.unsorted_segment_sum(weights, bins_of, bins)
