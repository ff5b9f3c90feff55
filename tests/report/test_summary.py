"""The summary names every layer of the float model with its bits, grid and cost, or the reason why it has none."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks

layers = keras.layers


@pytest.fixture(scope="module")
def q_model():
    return networks.calibrated(networks.residual(), 3, 2)


def test_every_layer_of_the_float_model_is_named(q_model):
    named = {row.placement.layer for row in tfqil.summary(q_model)}
    missing = {layer.name for layer in networks.residual().layers} - named
    assert not missing, f"no row for {missing}"
    assert all(row.placement.reason for row in tfqil.summary(q_model))


def test_a_kernel_has_its_codes_bytes_zeros_and_multiplications(q_model):
    row, grid = tfqil.summary(q_model)["one_a"], tfqil.freeze(q_model)["one_a"]
    assert row.placement.bits == 3 and row.weights == grid.codes.size == 9 * 8 * 8
    assert row.bytes == row.weights // 2, "3 bits are stored as 4"
    assert row.sparsity == np.mean(grid.codes == 0)
    assert row.macs == 12 * 12 * row.weights
    assert row.grid == f"{float(grid.step):.3g} x {grid.codes.min()} .. {grid.codes.max()}"


def test_strided_and_dense_layers_are_counted_at_their_outputs(q_model):
    report = tfqil.summary(q_model)
    assert report["two_a"].macs == 6 * 6 * 9 * 8 * 12 and report["last"].macs == 12 * 10
    assert report.macs == sum(row.macs or 0 for row in report) and report.bytes == sum(row.bytes or 0 for row in report)


def test_a_tensor_has_its_levels(q_model):
    grid = q_model.get_layer("quantize_one_a_relu").grid()
    levels = tfqil.summary(q_model)["quantize_one_a_relu"].grid
    assert levels.startswith(f"{grid.step:.3g} x 0 .. 3")
    assert tfqil.summary(networks.quantized(networks.tiny()))["quantize_stem_relu"].grid == "not set"


def test_the_table_has_totals_and_reasons(q_model):
    lines = str(tfqil.summary(q_model)).splitlines()
    assert lines[0].split() == ["layer", "role", "bits", "grid", "weights", "bytes", "zeros", "MACs", "reason"]
    assert lines[-1].startswith("total") and f"{tfqil.summary(q_model).macs:,}" in lines[-1]
    assert len(lines) == len(tfqil.summary(q_model)) + 2


def test_a_layer_in_float_is_named_with_its_reason():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4), layers.Lambda(tf.abs, name="own"), layers.Dense(2)])
    q_model = tfqil.quantize_model(model, tfqil.QILQuantizeConfig(4, 8))
    row = tfqil.summary(q_model)["own"]
    assert row.placement.role == "float" and "Lambda" in row.placement.reason and row.grid is None


def test_plain_values_go_into_json(q_model):
    first = tfqil.summary(q_model).to_dict()[0]
    assert {"layer", "bits", "reason", "bytes", "macs"} <= set(first)


def test_a_float_model_is_refused():
    with pytest.raises(ValueError, match="Got the float model 'tiny', expected a quantized one"):
        tfqil.summary(networks.tiny())
    with pytest.raises(KeyError, match="Got the layer name 'nobody', expected one of"):
        tfqil.summary(networks.quantized(networks.tiny()))["nobody"]
