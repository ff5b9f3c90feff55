"""Ordinary models at 8 bits stay close to the float model, and their files compute what they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tfqil.export import runtime

layers = keras.layers

# Of the standard deviation of the float model's outputs.
LARGEST_DISTANCE = 0.06
IMAGE, VECTOR, SERIES = (8, 8, 3), (10,), (12, 4)


def relu(x: Any) -> Any:
    """A function of a user's with the name of one of Keras's."""
    return tf.minimum(x, 0.3) * -2.0


def own_function_twice(x: Any) -> Any:
    """One layer, called twice."""
    activation = layers.Activation(relu)
    return activation(layers.Conv2D(4, 3)(activation(layers.Conv2D(4, 3)(x))))


def added_twice(x: Any) -> Any:
    """Sums with the names that Keras gives them."""
    a, b, c = (layers.Conv2D(4, 3)(x) for _ in range(3))
    return layers.Add(name="sum")([layers.Add(name="add")([a, b, c]), a, layers.ReLU(name="add_1")(b)])


def states(x: Any) -> Any:
    """A layer with three outputs beside layers with the names that their quantizers would get."""
    sequence, hidden, cell = layers.LSTM(4, return_sequences=True, return_state=True, name="lstm")(x)
    others = [layers.LSTM(3, name=name)(sequence) for name in ("lstm_1", "lstm_2")]
    return layers.Concatenate()([hidden, layers.Dense(3)(cell), *others])


def beside_its_input(x: Any) -> Any:
    """A ReLU whose input is joined to it, so that both are on one grid with negative values."""
    x = layers.Conv2D(4, 3)(x)
    return layers.Concatenate()([x, layers.ReLU()(x)])


def half_clipped(x: Any) -> Any:
    """A ReLU on one half of the channels."""
    first, second = tf.split(layers.Conv2D(4, 3)(x), 2, axis=-1)
    return tf.concat([second, tf.nn.relu(first)], -1)


def attended(x: Any) -> Any:
    """A layer whose positional arguments are tensors."""
    x = layers.Dense(4, activation="relu")(x)
    return layers.MultiHeadAttention(2, 3)(x, x)


MODELS = {
    "a ReLU beside its input": (IMAGE, beside_its_input),
    "a ReLU of half the channels": (IMAGE, half_clipped),
    "attention": (SERIES, attended),
    "sums whose parts would have taken names": (IMAGE, added_twice),
    "separable beside the name of its part": (
        IMAGE,
        lambda x: layers.Conv2D(4, 1, name="b_depthwise")(layers.SeparableConv2D(4, 3, name="b")(x)),
    ),
    "norm of a vector": (VECTOR, lambda x: layers.Dense(8, activation="relu")(layers.BatchNormalization()(x))),
    "normalized vector": (VECTOR, lambda x: layers.Normalization(mean=[0.1] * 10, variance=[2.0] * 10)(x)),
    "divided vector": (VECTOR, lambda x: layers.Dense(4, activation="relu")(x) / 10.0),
    "norm of a series": (SERIES, lambda x: layers.BatchNormalization()(layers.Conv1D(6, 3, activation="relu")(x))),
    "several states": (SERIES, states),
    "silu with beta": (IMAGE, lambda x: tf.nn.silu(layers.Conv2D(4, 3)(x), beta=5.0)),
    "resized with its ratio": (
        IMAGE,
        lambda x: tf.image.resize(layers.Conv2D(4, 3, padding="same")(x), (16, 32), preserve_aspect_ratio=True),
    ),
    "own function": (IMAGE, lambda x: layers.Activation(relu)(layers.Conv2D(4, 3)(x))),
    "own function twice": (IMAGE, own_function_twice),
}


def _distance(model: Any, other: Any, examples: np.ndarray) -> float:
    expected = model.predict(examples, verbose=0)
    return float(np.abs(other.predict(examples, verbose=0) - expected).mean() / expected.std())


@pytest.mark.parametrize("name", MODELS)
def test_eight_bits_are_close_to_float_and_convert(name):
    keras.utils.set_random_seed(0)
    shape, network = MODELS[name]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layers.Dense(3)(network(inputs)))
    examples = np.random.default_rng(0).normal(0, 1, (32, *shape)).astype(np.float32)
    q_model = networks.calibrated_on(model, examples, 8, 8)
    assert model.output_shape == q_model.output_shape
    assert _distance(model, q_model, examples) < LARGEST_DISTANCE
    tfqil.convert(q_model, "int8")  # Compares the file with the model.


def test_a_mask_reaches_the_recurrent_layer_in_training_calibration_and_file():
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SERIES)
    x = layers.LSTM(5)(layers.Dense(6, activation="relu")(layers.Masking()(inputs)))
    model = keras.Model(inputs, layers.Dense(3)(x))
    examples = np.random.default_rng(0).normal(0, 1, (16, *SERIES)).astype(np.float32)
    examples[:, 7:] = 0.0
    q_model = networks.calibrated_on(model, examples, 8, 8)
    assert _distance(model, q_model, examples) < LARGEST_DISTANCE
    tflite = tfqil.convert(q_model, "int8")
    got = np.concatenate([runtime.run(tflite, [examples[number : number + 1]])[0] for number in range(16)])
    expected = q_model.predict(examples, verbose=0)
    assert np.abs(got - expected).mean() < 0.01 * expected.std()


def test_what_computes_with_a_mask_stays_in_float_with_a_reason():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,), dtype="int32")
    x = layers.Dense(8, activation="relu")(layers.Embedding(20, 6, mask_zero=True)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D(name="mean")(x)))
    examples = np.random.default_rng(0).integers(1, 20, (32, 12))
    examples[:, 5:] = 0
    q_model = networks.calibrated_on(model, examples, 8, 8)
    assert tfqil.placements(q_model)["mean"].reason == "stays in float: GlobalAveragePooling1D with a mask"
    assert _distance(model, q_model, examples) < LARGEST_DISTANCE
    tflite = tfqil.convert(q_model, "int8")
    got = runtime.run(tflite, [examples.astype(np.int32)])[0]
    expected = q_model.predict(examples, verbose=0)
    assert np.abs(got - expected).mean() < 0.01 * expected.std()


def test_a_convolution_drops_a_mask_as_it_does_in_float():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,), dtype="int32")
    x = layers.Embedding(20, 6, mask_zero=True)(inputs)
    shorter, as_long = layers.Conv1D(8, 3, activation="relu")(x), layers.Conv1D(8, 3, padding="same")(x)
    means = [layers.GlobalAveragePooling1D(name=name)(y) for name, y in (("first", shorter), ("second", as_long))]
    model = keras.Model(inputs, layers.Dense(3)(layers.Concatenate()([*means, layers.LSTM(4)(shorter)])))
    examples = np.random.default_rng(0).integers(1, 20, (32, 12))
    examples[:, 5:] = 0
    q_model = networks.calibrated_on(model, examples, 8, 8)
    assert all("stays in float" not in tfqil.placements(q_model)[name].reason for name in ("first", "second"))
    assert _distance(model, q_model, examples) < LARGEST_DISTANCE
    tflite = tfqil.convert(q_model, "int8")
    got = runtime.run(tflite, [examples[:1].astype(np.int32)])[0]
    expected = q_model.predict(examples, verbose=0)
    assert np.abs(got - expected[:1]).mean() < 0.01 * expected.std()


def test_what_follows_an_embedding_is_quantized():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(20, 6, name="table")(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(8, activation="relu")(x)))
    examples = np.random.default_rng(0).integers(0, 20, (32, 12)).astype(np.int32)
    q_model = networks.calibrated_on(model, examples, 8, 8)
    in_float = [row.layer for row in tfqil.placements(q_model) if "stays in float" in row.reason]
    assert in_float == ["table"]
    assert _distance(model, q_model, examples) < LARGEST_DISTANCE
    tfqil.convert(q_model, "int8")  # Lets no more than the table compute in float.


@pytest.mark.parametrize("largest", [1e-3, 1e-5, 1e-7, 1e-12])
def test_small_slopes_are_in_the_file_as_in_the_model(largest):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(IMAGE)
    prelu = layers.PReLU(shared_axes=[1, 2])
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(prelu(layers.Conv2D(4, 3)(inputs)))))
    prelu.alpha.assign(np.random.default_rng(0).uniform(-largest, largest, prelu.alpha.shape))
    examples = np.random.default_rng(1).uniform(0, 1, (16, *IMAGE)).astype(np.float32)
    q_model = networks.calibrated_on(model, examples, 4, 8)
    report = tfqil.verify(q_model, tfqil.convert(q_model, "int8"), examples)
    assert report.accepted, report
