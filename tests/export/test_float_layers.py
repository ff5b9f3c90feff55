"""Layers that were left in float keep their float kernels; the converter would round them to 8 bits in silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras

import tfqil
from tests import networks
from tfqil.export import runtime
from tfqil.export.inspect import read_float_weights
from tfqil.export.verify import layer_of

layers = keras.layers


def test_float_edges_have_float32_kernels(images):
    """Kernels of more than 1,024 entries, which dynamic-range quantization would round."""
    inputs = keras.Input((8, 8, 1), name="image")
    x = networks.norm_relu(layers.Conv2D(128, 3, use_bias=False, name="first")(inputs), "first")
    x = layers.Conv2D(4, 3, activation="relu", name="middle")(x)
    model = keras.Model(inputs, layers.Dense(80, name="last")(layers.Flatten()(x)))
    q_model = networks.calibrated_on(networks.randomize_norms(model), images, 4, 4, edge_bits=None)
    tflite = tfqil.convert(q_model, allow_float=True)
    stored = {weight.shape: weight.stored for weight in tfqil.inspect(tflite).weights}
    assert stored == {(128, 3, 3, 1): "FLOAT32", (4, 3, 3, 128): "INT8", (80, 64): "FLOAT32"}
    values = {layer_of(name, ["first", "last"]): values for name, values in read_float_weights(tflite).items()}
    np.testing.assert_array_equal(values["last"], q_model.get_layer("last").kernel)


def float_between_grids() -> Any:
    """A float convolution between an 8-bit edge and a 4-bit layer: its input and its output are on grids."""
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    config = tfqil.LowBitQuantizeConfig(activations=tfqil.quantizers.QILActivationQuantizer(bits=4))
    inputs = keras.Input((8, 8, 1), name="image")
    x = networks.norm_relu(layers.Conv2D(4, 3, strides=2, use_bias=False, name="stem")(inputs), "stem")
    x = annotate(layers.Conv2D(8, 3, activation="relu", name="middle"), config)(x)
    return keras.Model(inputs, layers.Dense(networks.CLASSES, name="last")(layers.Flatten()(x)))


def test_a_float_layer_between_two_grids_keeps_its_kernel(images):
    q_model = networks.calibrated_on(networks.randomize_norms(float_between_grids()), images, 4, 4)
    tflite = tfqil.convert(q_model, allow_float=True)
    (values,) = read_float_weights(tflite).values()
    np.testing.assert_array_equal(values, q_model.get_layer("middle").kernel)
    # Its sums may be in another order.
    assert tfqil.verify(q_model, tflite, images).mean_lsb <= 0.001
    assert "CAST" not in {operator.name for operator in tfqil.inspect(tflite).operators}


def test_noise_that_is_wanted_at_inference_is_in_the_file(images):
    inputs = keras.Input((8, 8, 1))
    x = layers.Dropout(0.5)(layers.Conv2D(4, 3, activation="relu")(inputs), True)
    q_model = networks.calibrated_on(keras.Model(inputs, layers.Conv2D(2, 3)(x)), images, 4, 8)
    tflite = tfqil.convert(q_model)
    (outputs,) = runtime.run(tflite, [images[[0, 0]]])
    assert np.abs(outputs[0] - outputs[1]).mean() > 0.1 * outputs.std()


def test_operators_that_the_runtime_does_not_have_are_named(images):
    inputs = keras.Input((8, 8, 1))
    x = layers.BatchNormalization(name="by_batch")(layers.Conv2D(4, 3)(inputs), training=True)
    q_model = networks.calibrated_on(keras.Model(inputs, layers.Conv2D(2, 3)(x)), images, 4, 8)
    with pytest.raises(ValueError, match=r"operators FusedBatchNormV3, which LiteRT does not have.*'by_batch' \(Batch"):
        tfqil.convert(q_model)
