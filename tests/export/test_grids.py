"""Scales that survive the converter: the formula against itself, and against the converter."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tfqil.export import grids
from tfqil.export.arithmetic import Int8Grid
from tfqil.export.inspect import inspect, read_weights
from tfqil.numerics.grid import ActivationGrid
from tfqil.numerics.storable import storable

quick = hypothesis.settings(max_examples=300, deadline=None)
steps = st.floats(2.0**-40, 2.0**20, width=32)
# 16 significant bits of 24: the nearest such number is at most half of 2^8 float32 neighbours away.
LARGEST_ULPS = 2**7


def converted(function, shape: tuple[int, ...]) -> bytes:
    concrete = tf.function(function).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()


@quick
@hypothesis.given(steps, st.integers(2, 8), st.floats(0, 1))
def test_an_int8_grid_holds_every_level_and_its_scale_is_nearly_the_step(step, bits, share):
    zero = round(share * (2**bits - 1))
    grid = ActivationGrid(step=step, bits=bits, zero=zero)
    stored = grids.int8_grid(grid)
    assert stored.zero_point == 127 - grid.highest + zero
    assert stored.zero_point - zero >= -128 and stored.zero_point + grid.highest - zero == 127
    ulps = abs(int(np.float32(stored.scale).view(np.int32)) - int(np.float32(step).view(np.int32)))
    assert ulps <= LARGEST_ULPS, f"{ulps} ulp"


@quick
@hypothesis.given(steps, st.integers(2, 8), st.floats(0, 1))
def test_the_range_of_an_int8_grid_divides_back_to_its_scale(step, bits, share):
    stored = grids.int8_grid(ActivationGrid(step=step, bits=bits, zero=round(share * (2**bits - 1))))
    low, high = (float(end) for end in grids.fake_quant_range(stored))
    assert np.float32((high - low) / 255) == np.float32(stored.scale)


@quick
@hypothesis.given(st.lists(steps, min_size=1, max_size=8))
def test_storable_steps_are_near_and_stay_when_taken_again(values):
    given = np.float32(values)
    kept = storable(given).numpy()
    ulps = np.abs(kept.view(np.int32).astype(np.int64) - given.view(np.int32))
    assert kept.dtype == np.float32 and kept.shape == given.shape and ulps.max() <= LARGEST_ULPS
    np.testing.assert_array_equal(storable(kept).numpy(), kept)
    low, high = grids.weight_range(kept)
    np.testing.assert_array_equal(((high.astype(np.float64) - low) / 254).astype(np.float32), kept)


@pytest.mark.parametrize("seed", range(3))
def test_the_converter_returns_every_activation_scale_to_the_last_bit(seed):
    random = np.random.default_rng(seed)
    chosen = []
    for _ in range(12):
        bits = int(random.integers(2, 9))
        step = float(np.float32(2 ** random.uniform(-14, 6)))
        chosen.append(grids.int8_grid(ActivationGrid(step=step, bits=bits, zero=int(random.integers(0, 2**bits)))))

    def chain(x):
        outputs = []
        for index, grid in enumerate(chosen):
            low, high = grids.fake_quant_range(grid)
            outputs.append(tf.quantization.fake_quant_with_min_max_vars(x[:, index], low, high, num_bits=8))
        return outputs

    found = {(a.scale, a.zero_point) for a in inspect(converted(chain, (4, 12))).activations if a.scale is not None}
    wanted = {(grid.scale, grid.zero_point) for grid in chosen}
    assert wanted <= found, f"{len(wanted - found)} of {len(wanted)} grids changed: {sorted(wanted - found)}"


@pytest.mark.parametrize("seed", range(3))
def test_the_converter_returns_every_weight_step_to_the_last_bit(seed):
    random = np.random.default_rng(seed)
    kept = storable((2.0 ** random.uniform(-20, 4, 64)).astype(np.float32)).numpy()
    codes = random.integers(-7, 8, (3, 3, 2, 64)).astype(np.float32)
    codes[0, 0] = 7

    def convolve(x):
        low, high = grids.weight_range(kept)
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(codes * kept, low, high, 8, narrow_range=True)
        x = tf.quantization.fake_quant_with_min_max_vars(x, -1.0, 127 / 128)
        return tf.quantization.fake_quant_with_min_max_vars(tf.nn.conv2d(x, kernel, 1, "SAME"), -64.0, 63.5)

    ((integers, scales),) = read_weights(converted(convolve, (1, 4, 4, 2))).values()
    np.testing.assert_array_equal(scales, kept)
    np.testing.assert_array_equal(integers, codes)


def test_a_trained_model_keeps_its_scales_to_the_last_bit(small_model, small_file):
    scales = {(a.scale, a.zero_point) for a in inspect(small_file).activations if a.scale is not None}
    for layer in small_model.layers:
        if hasattr(layer, "quantizer"):
            stored = grids.int8_grid(layer.grid())
            assert (Int8Grid(scale=stored.scale, zero_point=0).scale, stored.zero_point) in scales, layer.name
