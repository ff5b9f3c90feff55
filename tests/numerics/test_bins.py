"""Sums by bin against NumPy, with the kernel of CPUs and with that of GPUs."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfqil.numerics import bins


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gpus", [[], ["GPU:0"]], ids=["cpu", "gpu"])
def test_sums_are_those_of_numpy(monkeypatch, gpus, dtype, jit):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: gpus)
    random = np.random.default_rng(0)
    bins_of = random.integers(0, 7, (50, 3)).astype(np.int32)  # The last bin has no entry.
    # Eighths, whose sums are exact in any order.
    weights = (random.integers(-40, 40, bins_of.shape) / 8).astype(dtype)
    run = tf.function(lambda bins_of, weights: bins.bin_sums(bins_of, weights, bins=8), jit_compile=jit)
    sums = run(tf.constant(bins_of), tf.constant(weights))
    assert sums.dtype == dtype
    np.testing.assert_array_equal(sums, np.bincount(bins_of.ravel(), weights.ravel(), minlength=8))
    counts = run(tf.constant(bins_of), tf.zeros((0,), dtype))
    np.testing.assert_array_equal(counts, np.bincount(bins_of.ravel(), minlength=8))
