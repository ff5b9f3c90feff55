"""Distillation: the outputs of the teacher are the labels, and nothing but the student learns."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks

layers = keras.layers


@pytest.fixture
def teacher():
    return networks.plain()


def _images(count=128):
    return networks.digits(count)[0]


def _trained(teacher, data):
    q_model = networks.calibrated(teacher, 3, 3)
    for layer in q_model.layers:
        # The statistics of these fresh norms are not those of the images; the teacher keeps to them.
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    student = tfqil.distill(q_model, teacher)
    student.compile(keras.optimizers.Adam(2e-4), "mse")
    history = student.fit(data, epochs=6, verbose=0)
    return q_model, student, history.history["loss"]


class TestTraining:
    def test_the_student_comes_closer_to_the_teacher(self, teacher):
        before = networks.calibrated(teacher, 3, 3)
        q_model, _, losses = _trained(teacher, _images())
        distances = [
            float(np.mean((model(_images(), training=False) - teacher(_images(), training=False)) ** 2))
            for model in (before, q_model)
        ]
        assert losses[-1] < losses[0]
        assert distances[1] < 0.8 * distances[0]

    def test_the_loss_is_that_of_the_teachers_outputs_whatever_the_labels(self, teacher):
        images = _images(64)
        q_model = networks.calibrated(teacher, 4, 4)
        student = tfqil.distill(q_model, teacher)
        student.compile(loss="mse")
        expected = np.mean((q_model(images, training=False) - teacher(images, training=False)) ** 2)
        assert student.evaluate(images, verbose=0) == pytest.approx(float(expected), rel=1e-5)
        assert student.evaluate(images, np.full((64, 10), 7.0), verbose=0) == pytest.approx(float(expected), rel=1e-5)

    def test_weights_of_examples_count(self, teacher):
        images = _images(32)
        student = tfqil.distill(networks.calibrated(teacher, 4, 4), teacher)
        student.compile(loss="mse")
        first = student.evaluate(images[:16], verbose=0)
        weighted = student.evaluate(images, np.zeros((32, 10)), sample_weight=np.repeat([1.0, 0.0], 16), verbose=0)
        assert weighted == pytest.approx(first / 2, rel=1e-5)

    def test_the_teacher_does_not_change_and_is_not_of_the_student(self, teacher):
        before = [weight.copy() for weight in teacher.get_weights()]
        q_model, student, _ = _trained(teacher, _images())
        for weight, old in zip(teacher.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, old)
        assert [id(weight) for weight in student.weights] == [id(weight) for weight in q_model.weights]

    def test_a_data_set_without_labels_and_xla_give_the_same(self, teacher):
        images = _images()
        losses = []
        for data, jit in ((tf.data.Dataset.from_tensor_slices(images).batch(32), False), (images, True)):
            keras.utils.set_random_seed(1)
            # Sums of 4-bit codes often cancel; which side of a ReLU they are on is then left to rounding.
            q_model = networks.calibrated(teacher, 8, 8)
            student = tfqil.distill(q_model, teacher)
            student.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=jit)
            losses.append(student.fit(data, batch_size=32, shuffle=False, verbose=0).history["loss"][0])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    def test_several_inputs_and_outputs(self):
        first, second = keras.Input(4, name="first"), keras.Input(4, name="second")
        joined = layers.ReLU()(layers.Dense(8)(layers.Concatenate()([first, second])))
        hidden = layers.ReLU()(layers.Dense(8)(joined))
        teacher = keras.Model([first, second], {"b": layers.Dense(2)(hidden), "a": layers.Dense(3)(hidden)})
        random = np.random.default_rng(0)
        inputs = [random.normal(size=(32, 4)).astype(np.float32) for _ in range(2)]
        q_model = tfqil.calibrate(tfqil.quantize_model(teacher, tfqil.QILQuantizeConfig(4, 4)), inputs)
        student = tfqil.distill(q_model, teacher)
        student.compile(loss="mse")
        found, expected = q_model(inputs, training=False), teacher(inputs, training=False)
        expected = sum(
            float(np.mean((one - other) ** 2))
            for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True)
        )
        assert student.evaluate(inputs, verbose=0)[0] == pytest.approx(expected, rel=1e-4)

    def test_what_was_taught_converts(self, teacher):
        q_model, _, _ = _trained(teacher, _images())
        tflite = tfqil.convert(q_model)
        report = tfqil.verify(q_model, tflite, _images(32))
        assert report.accepted
        assert report.differing_from_deployable == 0


class TestRefusals:
    def test_a_float_model(self, teacher):
        with pytest.raises(ValueError, match=r"Got the float model .* to be taught, expected one from tfqil.quantize"):
            tfqil.distill(teacher, teacher)

    def test_a_teacher_of_something_else(self, teacher):
        other = keras.Sequential([keras.Input(teacher.input_shape[1:]), layers.Flatten(), layers.Dense(7)])
        with pytest.raises(ValueError, match=r"with outputs of \(7\), expected those of the quantized model, \(10\)"):
            tfqil.distill(networks.quantized(teacher, 4, 4), other)

    def test_no_model(self, teacher):
        with pytest.raises(TypeError, match="Got list, expected a tf_keras"):
            tfqil.distill(networks.quantized(teacher, 4, 4), [])
