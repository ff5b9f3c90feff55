"""Packing what the real converter writes: a network of every kind of layer, with dense layers as 1x1
convolutions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf

from tfqil.export import runtime
from tfqil.export.inspect import inspect, read_weights
from tfqil.export.pack import STORAGES, pack

# (shape, highest code) of the kernels, in order; the last three are dense.
KERNELS = [
    ((3, 3, 4, 8), 7),
    ((1, 1, 8, 8), 1),
    ((3, 3, 8), 3),
    ((1, 1, 512, 16), 7),
    ((1, 1, 16, 12), 1),
    ((1, 1, 12, 10), 1),
]


def _kernels():
    random = np.random.default_rng(0)
    for shape, highest in KERNELS:
        codes = random.integers(-highest, highest + 1, shape)
        yield codes, random.uniform(0.01, 0.05, shape[-1]).astype(np.float32)


def _weights(codes, scales):
    return tf.quantization.fake_quant_with_min_max_vars_per_channel(
        (codes * scales).astype(np.float32), -127 * scales, 127 * scales, num_bits=8, narrow_range=True
    )


def _activation(y, scale, zero_point):
    return tf.quantization.fake_quant_with_min_max_vars(y, (-128 - zero_point) * scale, (127 - zero_point) * scale)


class _Network(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 4), tf.float32)])
    def __call__(self, x):
        spatial, pointwise, depthwise, *dense = (_weights(*kernel) for kernel in _kernels())
        x = _activation(x, 1 / 64, 0)
        x = _activation(tf.nn.relu(tf.nn.conv2d(x, spatial, 1, "SAME") + 0.1), 0.05, 112)
        x = _activation(tf.nn.relu(tf.nn.conv2d(x, pointwise, 1, "SAME") + 0.1), 0.05, 112)
        kernel = tf.reshape(depthwise, (3, 3, 8, 1))
        x = _activation(tf.nn.relu(tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")), 0.05, 112)
        x = tf.reshape(x, [-1, 512])
        for kernel in dense:
            x = tf.nn.conv2d(tf.reshape(x, [-1, 1, 1, kernel.shape[2]]), kernel, 1, "VALID")
            x = _activation(tf.reshape(x, [-1, kernel.shape[3]]) + 0.05, 0.05, 0)
        return x


@pytest.fixture(scope="module")
def converted() -> bytes:
    network = _Network()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.__call__.get_concrete_function()], network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with warnings.catch_warnings():
        # The converter misses statistics that fake quantization already gave it.
        warnings.simplefilter("ignore", UserWarning)
        return converter.convert()


@pytest.mark.parametrize(
    ("storage", "stored"),
    [
        ("int8", ["INT8"] * 6),
        ("fastest", ["INT8", "INT4", "INT8", "INT4", "INT4", "INT4"]),
        ("smallest", ["INT4", "INT2", "INT8", "INT4", "INT2", "INT2"]),
    ],
)
def test_no_output_changes_and_the_integers_are_those_that_were_written(converted, storage, stored):
    packed = pack(converted, storage)
    report = inspect(packed)
    assert report.integer_only
    assert [weight.stored for weight in report.weights] == stored
    assert "RESHAPE" not in [operator.name for operator in report.operators]
    assert [operator.name for operator in report.operators].count("FULLY_CONNECTED") == (3 if storage == "int8" else 4)
    for (codes, scales), (integers, read_scales) in zip(_kernels(), read_weights(packed).values(), strict=True):
        assert np.array_equal(integers.ravel(), codes.ravel())
        # The converter recomputes the scale from the range in float32: 1 ulp.
        assert np.all(np.abs(read_scales - scales) <= np.spacing(scales))
    for batch in (1, 7):
        x = np.random.default_rng(1).uniform(-1.5, 1.5, (batch, 8, 8, 4)).astype(np.float32)
        for kernels in ("xnnpack", "builtin"):
            if (storage, kernels) == ("smallest", "xnnpack"):
                continue  # Convolutions move from XNNPACK to the builtin kernels, which round otherwise.
            before, after = (runtime.run(tflite, [x], kernels=kernels)[0] for tflite in (converted, packed))
            assert np.count_nonzero(before != after) == 0
    if storage != "smallest":
        assert runtime.delegate_partitions(packed) == 1


def test_every_storage_is_smaller_than_what_was_converted(converted):
    sizes = {storage: len(pack(converted, storage)) for storage in STORAGES}
    assert sizes["smallest"] < sizes["fastest"] < sizes["int8"] < len(converted)
