"""Models with several inputs and outputs, and with a softmax at the end."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tfqil.export import runtime

layers = keras.layers


@pytest.mark.parametrize("names", [("aa", "zz"), ("zz", "aa")])
def test_inputs_and_outputs_of_a_file_are_in_the_order_of_the_model(names):
    inputs = [keras.Input((6,), name=f"in_{name}") for name in names]
    joined = layers.Concatenate()([layers.Dense(8, activation="relu")(tensor) for tensor in inputs])
    hidden = layers.Dense(8, activation="relu")(joined)
    model = keras.Model(inputs, [layers.Dense(3, name=names[0])(hidden), layers.Dense(4, name=names[1])(hidden)])
    random = np.random.default_rng(0)
    data = [random.uniform(0, 1, (64, 6)).astype(np.float32), random.uniform(0, 50, (64, 6)).astype(np.float32)]
    q_model = tfqil.quantize_model(model, tfqil.QILQuantizeConfig(4, 4))
    tfqil.calibrate(q_model, data)
    for storage in ("fastest", "smallest", "int8"):
        tflite = tfqil.convert(q_model, storage)
        assert [output.shape[-1] for output in runtime.run(tflite, data)] == [3, 4]
        assert tfqil.verify(q_model, tflite, data).accepted


def test_the_worst_classified_example_has_a_gradient_through_softmax():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, activation="softmax", name="last")])
    model.get_layer("last").set_weights([10 * np.eye(3, dtype=np.float32), np.zeros(3, np.float32)])
    q_model = tfqil.quantize_model(model, tfqil.QILQuantizeConfig(8, 8))
    x = np.eye(3, dtype=np.float32)
    tfqil.calibrate(q_model, x)
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy()(np.array([1, 2, 0]), q_model(x, training=True))
    slopes = tape.gradient(loss, q_model.trainable_variables)
    # Every example is wrong for sure: the slope in its class is 1 of 3 examples, on an input of 1.
    assert max(np.abs(slope).max() for slope in slopes if slope is not None) == pytest.approx(1 / 3, rel=0.01)


def test_a_file_of_another_model_is_refused_in_one_sentence():
    def converted(units):
        model = keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(units)])
        q_model = tfqil.calibrate(tfqil.quantize_model(model, tfqil.QILQuantizeConfig(4, 8)), np.ones((8, 6)))
        return q_model, tfqil.convert(q_model)

    (q_model, _), (_, other) = converted(5), converted(7)
    with pytest.raises(ValueError, match="pass the file that was converted from this model"):
        tfqil.verify(q_model, other, np.ones((4, 6), np.float32))
