"""Measures of quantized tensors against the definitions, for every kind of quantizer; and what counts as dead."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tests.training.two_layers import network, quantized_layers
from tfqil import quantizers
from tfqil.scheme import QuantizeActivation
from tfqil.scheme.inputs import input_tensors
from tfqil.training.event_values import value_buckets
from tfqil.training.interval_measures import of_kernel, of_tensors, parameters_of

IMAGES, _ = networks.digits(32, 8)
WEIGHTS = {
    "qil": (quantizers.QILWeightQuantizer(bits=3), {"center", "half_width"}),
    "channels": (quantizers.QILWeightQuantizer(bits=3, per_channel=True), {"center", "half_width"}),
    "gamma": (quantizers.QILWeightQuantizer(bits=4, train_gamma=True), {"center", "half_width", "gamma"}),
    "relaxed": (quantizers.BinaryRelax(quantizers.QILWeightQuantizer(bits=3)), {"center", "half_width", "lambda"}),
    "lbw": (quantizers.LBWWeightQuantizer(bits=4), set()),
    "ternary": (quantizers.TernaryWeightQuantizer(per_channel=True), set()),
    "binary": (quantizers.BinaryWeightQuantizer(), set()),
}


@pytest.mark.parametrize("method", WEIGHTS)
def test_the_measures_of_a_kernel_are_what_their_definitions_say(method):
    quantizer, names = WEIGHTS[method]
    layer = quantized_layers(network(quantizer))[0]
    measures, grid, kernel = of_kernel(layer), layer.grid(), layer.kernel.numpy()
    assert set(measures.parameters) == names and measures.title == "hidden_0" and measures.layer == "quant_hidden_0"
    np.testing.assert_array_equal(measures.values, kernel)
    np.testing.assert_array_equal(np.float32(measures.codes * measures.step), grid.values)
    assert measures.pruning_ratio == np.mean(grid.codes == 0)
    assert measures.codes_used == len(set(grid.codes.ravel().tolist()))
    assert measures.clipped_share == np.mean(np.abs(kernel) > 1.000001 * quantizer.largest_code * grid.step)
    assert measures.error == pytest.approx(np.sum((kernel - grid.values) ** 2) / np.sum(kernel**2), rel=1e-5)


def test_a_normalized_kernel_is_measured_in_the_units_of_its_weights():
    scaled, normalized = (
        of_kernel(quantized_layers(network(quantizers.QILWeightQuantizer(bits=3, normalized=flag)))[0])
        for flag in (False, True)
    )
    assert normalized.error == pytest.approx(scaled.error, rel=1e-5) and normalized.interval == scaled.interval
    np.testing.assert_allclose(normalized.step, scaled.step, rtol=1e-6)
    assert normalized.clipped_share == scaled.clipped_share


def test_a_kernel_of_zeros_has_no_error():
    layer = quantized_layers(network(quantizers.TernaryWeightQuantizer()))[0]
    layer.kernel.assign(tf.zeros_like(layer.kernel))
    measures = of_kernel(layer)
    assert measures.error == 0.0 and measures.pruning_ratio == 1.0 and measures.codes_used == 1


def test_a_kernel_of_huge_weights_has_a_finite_error():
    layer = quantized_layers(network(quantizers.TernaryWeightQuantizer()))[0]
    plain = of_kernel(layer)
    layer.kernel.assign(2.0**80 * layer.kernel)
    assert of_kernel(layer).error == pytest.approx(plain.error, rel=1e-5)


def test_an_interval_is_that_of_the_variables():
    layer = quantized_layers(network(quantizers.QILWeightQuantizer(bits=3)))[0]
    layer.quantizer_variables["center"].assign(0.3)
    layer.quantizer_variables["half_width"].assign(0.1)
    assert of_kernel(layer).interval == pytest.approx((0.2, 0.4))
    channels = quantized_layers(network(quantizers.QILWeightQuantizer(per_channel=True)))[0]
    assert of_kernel(channels).interval is None


# --- activations ---


@pytest.mark.parametrize(
    "config",
    [
        tfqil.QILQuantizeConfig(3, 3),
        tfqil.QILQuantizeConfig(4, 4, normalized=True),
        tfqil.BCGDQuantizeConfig(1, 4),
    ],
    ids=["qil", "normalized", "bcgd"],
)
def test_the_measures_of_all_tensors_are_what_their_definitions_say(config):
    q_model = tfqil.calibrate(tfqil.quantize_model(networks.residual(8), config), IMAGES)
    layers = [layer for layer in q_model.layers if isinstance(layer, QuantizeActivation)]
    measured = {measures.layer: measures for measures in of_tensors(q_model, input_tensors(q_model, IMAGES, "images"))}
    assert set(measured) == {layer.name for layer in layers}
    outputs = keras.Model(q_model.inputs, [layer.get_output_at(0) for layer in layers])(IMAGES)
    for layer, output in zip(layers, outputs, strict=True):
        measures, grid, after = measured[layer.name], layer.grid(), np.ravel(output)
        assert not measures.is_kernel and measures.lower == grid.lower
        np.testing.assert_array_equal(np.float32(measures.codes * np.float32(grid.step)), after, err_msg=layer.name)
        assert measures.code_count == 2**layer.quantizer.bits >= measures.codes_used
        assert measures.scalars()["step"] == pytest.approx(float(np.mean(measures.step)))
        assert -grid.zero <= measures.codes.min() and measures.codes.max() <= grid.highest - grid.zero
        # Half a step to the level; and a tenth, since inference rounds biases, which coarse binary products show most.
        left = np.maximum(measures.values - grid.lower, 0) if not layer.quantizer.is_signed else measures.values
        levels = measures.codes * measures.step
        inside = (left >= levels.min()) & (left <= (grid.highest - grid.zero) * measures.step)
        assert np.abs(left - levels)[inside].max() <= 0.6 * measures.step, layer.name
        assert measures.clipped_share <= np.mean(~inside), layer.name
        assert measures.error == pytest.approx(np.sum((left - levels) ** 2) / np.sum(left**2), rel=1e-3), layer.name


def test_tensors_that_share_a_grid_are_one():
    inputs = keras.Input((8, 8, 1))
    stem = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    other = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(stem)
    joined = keras.layers.Concatenate()([stem, other])
    outputs = keras.layers.Conv2D(2, 1)(keras.layers.Conv2D(4, 1, activation="relu")(joined))
    q_model = networks.calibrated_on(keras.Model(inputs, outputs), IMAGES, 3, 2)
    (shared,) = [layer for layer in q_model.layers if isinstance(layer, QuantizeActivation) and layer.sites == 2]
    measured = [m for m in of_tensors(q_model, input_tensors(q_model, IMAGES, "images")) if m.layer == shared.name]
    assert len(measured) == 1 and measured[0].values.size == 2 * len(IMAGES) * 8 * 8 * 4


def test_parameters_are_floats_and_a_tensor_has_a_step():
    q_model = tfqil.calibrate(networks.quantized(networks.tiny()), IMAGES)
    for layer in q_model.layers:
        if isinstance(layer, QuantizeActivation):
            parameters = parameters_of(layer)
            assert "observed_batches" not in parameters and parameters["step"] == np.float32(layer.grid().step)


def test_a_broken_network_is_refused_by_the_name_of_the_tensor():
    q_model = tfqil.calibrate(networks.quantized(networks.tiny()), IMAGES)
    q_model.get_layer("stem_bn").beta.assign([np.nan] * 4)
    with pytest.raises(
        ValueError, match=r"^Got NaN or Inf in the tensor that 'quantize_stem_relu' quantizes, expected"
    ):
        of_tensors(q_model, input_tensors(q_model, IMAGES, "images"))


def test_a_histogram_of_neighbouring_numbers_is_no_error():
    values = np.array([1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    buckets = value_buckets(values)
    assert buckets[:, 2].sum() == 2 and np.all(np.diff(buckets[:, 0]) > 0)
