"""Models of models and of blocks are quantized as if they had been written in one piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tfqil.scheme.expand import expand
from tfqil.scheme.flatten import flatten

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(0, 1, (8, 8, 8, 4)).astype(np.float32)


class Block(layers.Layer):
    """A residual block of known layers, with the usual signature."""

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.convolution = layers.Conv2D(filters, 3, padding="same", name="convolution")
        self.first, self.second = layers.BatchNormalization(name="first"), layers.BatchNormalization(name="second")

    def call(self, inputs, training=False):
        return tf.nn.relu(
            inputs + self.second(self.first(self.convolution(inputs), training=training), training=training)
        )

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


def randomized(model: Any) -> Any:
    random = np.random.default_rng(1)
    model.set_weights([np.abs(random.normal(0.5, 0.2, w.shape)).astype(np.float32) for w in model.get_weights()])
    return model


def with_block() -> Any:
    inputs = keras.Input((8, 8, 4))
    return randomized(keras.Model(inputs, layers.Conv2D(2, 1, name="end")(Block(4, name="block")(inputs))))


def test_a_block_of_layers_is_opened_and_its_parts_are_called_after_it():
    model = with_block()
    flat, _ = flatten(model)
    assert {"block_convolution", "block_first", "block_second"} <= {layer.name for layer in flat.layers}
    np.testing.assert_allclose(flat(IMAGES), model(IMAGES), rtol=1e-5)
    named = {row.layer for row in tfqil.placements(tfqil.quantize_model(model, tfqil.QILQuantizeConfig(4, 4)))}
    assert "block_convolution" in named


@keras.utils.register_keras_serializable("tests")
class HardSigmoid(layers.Layer):
    """A function as a layer, without inner layers."""

    def call(self, x: Any) -> Any:
        """The slope of 1/6, as MobileNetV3 has it."""
        return tf.cast(layers.ReLU(6.0)(tf.convert_to_tensor(x) + 3.0) / 6.0, tf.float32)


@keras.utils.register_keras_serializable("tests")
class Gate(layers.Layer):
    """A block around another block."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gate = HardSigmoid()

    def call(self, x: Any) -> Any:
        """The hard swish."""
        return x * self.gate(x)


@keras.utils.register_keras_serializable("tests")
class TrainingOnly(layers.Layer):
    """A function that does something else in training."""

    def call(self, x: Any, training: Any = None) -> Any:
        """Twice the input in training."""
        return x * 2.0 if training else tf.nn.relu(x)


@pytest.mark.parametrize(
    "network",
    [
        HardSigmoid(),
        Gate(),
        layers.Conv2D(4, 3, activation=HardSigmoid()),
        layers.Conv2D(4, 3, activation=layers.LeakyReLU(0.25)),
        layers.Conv2D(4, 3, activation=layers.ReLU(6.0)),
    ],
)
def test_functions_as_layers_are_opened_wherever_they_stand(network):
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, name="first")(inputs)
    model = randomized(keras.Model(inputs, layers.Conv2D(2, 1)(network(x))))
    flat, _ = flatten(model)
    np.testing.assert_allclose(flat(IMAGES), model(IMAGES), rtol=1e-5)
    rows = tfqil.placements(tfqil.quantize_model(model, tfqil.QILQuantizeConfig(4, 4))).rows
    assert not [row for row in rows if row.role == "float"]


def test_an_activation_layer_of_a_layer_called_twice_follows_both_calls():
    inputs = keras.Input((8, 8, 4))
    shared = layers.Conv2D(4, 3, padding="same", activation=HardSigmoid(), name="shared")
    model = randomized(keras.Model(inputs, shared(shared(inputs))))
    expected = model(IMAGES)
    np.testing.assert_allclose(flatten(model)[0](IMAGES), expected, rtol=1e-5)
    np.testing.assert_array_equal(model(IMAGES), expected)


def test_a_function_that_knows_of_training_stays_whole():
    inputs = keras.Input((8, 8, 4))
    flat, _ = flatten(keras.Model(inputs, TrainingOnly()(inputs)))
    np.testing.assert_array_equal(flat(IMAGES, training=True), IMAGES * 2.0)


def test_its_batch_norms_follow_the_data_in_training():
    flat, _ = flatten(with_block())
    before = flat.get_layer("block_first").moving_mean.numpy()
    flat(IMAGES, training=True)
    assert np.abs(flat.get_layer("block_first").moving_mean.numpy() - before).max() > 0


def test_what_is_frozen_in_it_stays_so_with_its_own_weights():
    model = with_block()
    model.get_layer("block").second.trainable = False
    flat, _ = flatten(model)
    np.testing.assert_allclose(flat(IMAGES), model(IMAGES), rtol=1e-5)
    assert not flat.get_layer("block_second").trainable and flat.get_layer("block_first").trainable


def test_nested_models_keep_names_and_get_a_prefix_where_two_are_equal():
    inner = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(4, 3, name="conv"), layers.ReLU(name="relu")], "inner"
    )
    inputs = keras.Input((8, 8, 4))
    model = randomized(keras.Model(inputs, layers.Conv2D(2, 1, name="conv")(inner(inputs))))
    flat, _ = flatten(model)
    assert {layer.name for layer in flat.layers[1:]} == {"inner_conv", "relu", "conv"}
    np.testing.assert_array_equal(flat(IMAGES), model(IMAGES))


def test_a_backbone_in_inference_mode_stays_so():
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.BatchNormalization(name="norm")], name="inner")
    inputs = keras.Input((8, 8, 4))
    flat, _ = flatten(keras.Model(inputs, layers.Dense(2)(inner(inputs, training=False))))
    before = flat.get_layer("norm").moving_mean.numpy()
    flat(IMAGES, training=True)
    np.testing.assert_array_equal(flat.get_layer("norm").moving_mean, before)


def test_generated_names_avoid_those_of_other_layers():
    inputs = keras.Input((8, 8, 4))
    relu = layers.ReLU(name="relu")
    x = layers.Conv2D(4, 1, activation="relu", name="conv")(relu(layers.Conv2D(4, 1)(relu(inputs))))
    x = layers.Dropout(0.1, name="conv_activation")(layers.Conv2D(4, 1, name="relu_2")(x))
    model = keras.Model(inputs, layers.Conv2D(2, 1)(x))
    expanded, _ = expand(flatten(model)[0])
    np.testing.assert_allclose(expanded(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: tf.reshape(x, [tf.shape(x)[0], -1, 4]),
        lambda x: tf.transpose(x, [0, 2, 1, 3]),
        lambda x: tf.pad(x, [[0, 0], [1, 1], [2, 0], [0, 0]]),
        lambda x: tf.image.resize(x, tf.shape(x)[1:3]),
        lambda x: tf.squeeze(tf.expand_dims(x, 1), 1),
        lambda x: 1.0 - tf.nn.relu6(x) / 6.0,
    ],
    ids=["reshape", "transpose", "pad", "resize", "squeeze", "arithmetic"],
)
def test_plain_calls_are_quantized_or_left_in_float(call):
    inputs = keras.Input((8, 8, 4))
    x = call(layers.Conv2D(4, 3, padding="same", name="first")(inputs))
    model = randomized(keras.Model(inputs, layers.Dense(2, name="end")(x)))
    q_model = tfqil.calibrate(tfqil.quantize_model(model, tfqil.QILQuantizeConfig(8, 8)), IMAGES)
    wanted = model(IMAGES).numpy()
    assert np.abs(q_model(IMAGES) - wanted).max() < 0.05 * np.abs(wanted).max()
