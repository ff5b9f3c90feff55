"""Calibration: every kind of data set, what it sets, and what it refuses without changing anything."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tfqil.scheme import QuantizeActivation

IMAGES, LABELS = networks.digits(256)


def fresh() -> Any:
    """The same quantized network each time, not calibrated."""
    keras.utils.set_random_seed(0)
    return networks.quantized(networks.randomize_norms(networks.dense()), 4, 4)


@pytest.fixture(scope="module")
def q_model() -> Any:
    """One network for all tests, since a calibration forgets the one before."""
    return fresh()


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """The intervals that the digits give."""
    return intervals(tfqil.calibrate(fresh(), batches()))


def intervals(q_model: Any) -> dict[str, np.ndarray]:
    """The values of all variables of activation quantizers."""
    return {
        f"{layer.name}/{key}": variable.numpy()
        for layer in q_model.layers
        if isinstance(layer, QuantizeActivation)
        for key, variable in layer.quantizer_variables.items()
    }


def other_weights(q_model: Any) -> list[np.ndarray]:
    """The weights of all layers that calibration leaves alone."""
    return [w for layer in q_model.layers if not isinstance(layer, QuantizeActivation) for w in layer.get_weights()]


def batches() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(IMAGES).batch(64)


DATA_SETS = {
    "an array": lambda: IMAGES,
    "a tensor": lambda: tf.constant(IMAGES),
    "a list of one array": lambda: [IMAGES],
    "a list of batches": lambda: [IMAGES[start : start + 64] for start in range(0, 256, 64)],
    "examples and labels": lambda: (IMAGES, LABELS),
    "tf.data of inputs": batches,
    "tf.data of inputs and labels": lambda: tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(64),
    "tf.data of inputs by name": lambda: batches().map(lambda x: {"image": x}),
    "a generator": lambda: (IMAGES[start : start + 64] for start in range(0, 256, 64)),
    "tf.data of float64": lambda: batches().map(lambda x: tf.cast(x, tf.float64)),
}


@pytest.mark.parametrize("kind", DATA_SETS)
def test_every_kind_of_data_set_gives_the_same_intervals_and_keeps_the_weights(q_model, expected, kind):
    before = other_weights(q_model)
    assert tfqil.calibrate(q_model, DATA_SETS[kind]()) is q_model
    got = intervals(q_model)
    assert {int(v) for name, v in got.items() if name.endswith("observed_batches")} == {4}
    for name, value in got.items():
        # What was there before leaves an ulp or two in the mean.
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)
    assert all(np.array_equal(a, b) for a, b in zip(other_weights(q_model), before, strict=True))


def test_several_inputs_are_given_as_a_list_of_arrays_or_by_name():
    a, b = keras.Input((3,), name="a"), keras.Input((5,), name="b")
    x = keras.layers.Concatenate()([keras.layers.Dense(4, activation="relu")(v) for v in (a, b)])
    model = keras.Model([a, b], keras.layers.Dense(2)(x))
    random = np.random.default_rng(0)
    data = [random.normal(0, 1, (100, 3)).astype(np.float32), random.normal(0, 9, (100, 5)).astype(np.float32)]
    by_name = tf.data.Dataset.from_tensor_slices({"b": data[1], "a": data[0]}).batch(64)
    kinds = (data, tuple(data), by_name, {"b": data[1], "a": data[0], "more": data[0]})
    results = [intervals(tfqil.calibrate(networks.quantized(model), d)) for d in kinds]
    assert all(result == results[0] for result in results)
    # Averages over the two batches.
    assert results[0]["quantize_b/maximum"] > 2 * results[0]["quantize_a/maximum"]


def test_a_missing_input_is_named():
    inputs = [keras.Input((3,), name=name) for name in ("a", "b")]
    q_model = networks.quantized(keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Concatenate()(inputs))))
    rows = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"for 'a', 'c', expected them for the inputs 'a', 'b' .*: 'b' is missing"):
        tfqil.calibrate(q_model, {"a": rows, "c": rows})
    with pytest.raises(ValueError, match=r"of shape \(4, 2\) for the input 'b', expected \(None, 3\)"):
        tfqil.calibrate(q_model, {"a": rows, "b": rows[:, :2]})
    with pytest.raises(ValueError, match=r"other numbers of examples per input \({'a': 4, 'b': 2}\)"):
        tfqil.calibrate(q_model, {"a": rows, "b": rows[:2]})


def test_only_so_many_batches_are_used(q_model):
    brighter = (IMAGES[start : start + 64] * (start + 1) for start in itertools.count(0, 64))
    tfqil.calibrate(q_model, brighter, batches=2)
    assert intervals(q_model)["quantize_image/maximum"] == pytest.approx((1 + 65) / 2, rel=1e-6)
    assert next(brighter).max() == 129.0


def test_calibrating_again_forgets_what_was(q_model, expected):
    """However far away that was: a running mean that starts from it would round the new value away."""
    tfqil.calibrate(q_model, IMAGES * 1e9)
    tfqil.calibrate(q_model, IMAGES)
    for name, value in intervals(q_model).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)


def test_a_range_is_the_mean_of_the_ends_of_the_batches(q_model):
    tfqil.calibrate(q_model, iter([IMAGES[:64] * 2, IMAGES[64:128] * 4]))
    ends = [float(IMAGES[:64].max()) * 2, float(IMAGES[64:128].max()) * 4]
    assert intervals(q_model)["quantize_image/maximum"] == pytest.approx(np.mean(ends), rel=1e-6)


@pytest.mark.parametrize("family", networks.FAMILIES)
def test_a_calibrated_model_of_8_bits_is_close_to_the_float_one(family):
    model = networks.randomize_norms(networks.FAMILIES[family]())
    q_model = networks.calibrated(model, 8, 8)
    got, want = (m.predict(IMAGES, verbose=0) for m in (q_model, model))
    # Some ten roundings in a row, each with an error of 0.3 steps of 255.
    assert np.abs(got - want).mean() <= 0.02 * np.ptp(want)


BAD = {
    "an empty array": (lambda: IMAGES[:0], ValueError, "Got a data set without a batch, expected at least one"),
    "an empty data set": (
        lambda: batches().take(0),
        ValueError,
        "Got a data set without a batch, expected at least one",
    ),
    "an empty batch": (lambda: iter([IMAGES[:0]]), ValueError, "Got an empty batch of calibration data"),
    "NaN": (
        lambda: np.where(IMAGES.max() == IMAGES, np.nan, IMAGES),
        ValueError,
        "Got NaN or Inf in the calibration data",
    ),
    "Inf in a later batch": (
        lambda: iter([IMAGES[:9], IMAGES[:9] / 0.0]),
        ValueError,
        "Got NaN or Inf in the calibration",
    ),
    "a wrong shape": (
        lambda: IMAGES[:, :5],
        ValueError,
        r"Got calibration data of shape \(64, 5, 12, 1\), expected \(None, 12",
    ),
    "too many inputs": (
        lambda: [[IMAGES, IMAGES]],
        ValueError,
        "Got 2 input arrays in a batch of calibration data, expected 1",
    ),
    "a number": (lambda: 7, TypeError, "Got int as the data set, expected an array, a tf.data.Dataset"),
    "none": (lambda: None, TypeError, "Got NoneType as the data set, expected an array, a tf.data.Dataset"),
}


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("kind", BAD)
def test_bad_data_are_refused_and_change_nothing(q_model, kind):
    data, error, message = BAD[kind]
    before = intervals(tfqil.calibrate(q_model, IMAGES[:64]))
    with pytest.raises(error, match=message):
        tfqil.calibrate(q_model, data())
    assert intervals(q_model) == before


def test_broken_weights_are_named_and_change_nothing():
    q_model = fresh()
    before = intervals(q_model)
    q_model.get_layer("second_bn").beta.assign(tf.fill((32,), np.nan))
    with pytest.raises(ValueError, match="Got NaN or Inf in the tensor that 'quantize_second_relu' quantizes"):
        tfqil.calibrate(q_model, IMAGES)
    assert intervals(q_model) == before


def test_a_float_model_is_refused():
    with pytest.raises(ValueError, match="Got the float model 'dense', expected one from tfqil.quantize_model"):
        tfqil.calibrate(networks.dense(), IMAGES)


def test_no_batches_are_refused(q_model):
    with pytest.raises(ValueError, match="Got batches=0, expected a whole number of at least 1"):
        tfqil.calibrate(q_model, IMAGES, batches=0)


def test_a_tensor_of_zeros_is_set_by_the_first_batches_that_have_more():
    images, labels = networks.digits(64, 8)
    q_model = tfqil.quantize_model(networks.tiny(), tfqil.QILQuantizeConfig(4, 4))
    norm = q_model.get_layer("stem_bn")
    beta = norm.beta.numpy()
    norm.beta.assign(beta - 100)  # Nothing is positive behind it.
    tfqil.calibrate(q_model, images)
    dead = [
        layer
        for layer in q_model.layers
        if isinstance(layer, QuantizeActivation) and int(layer.quantizer_variables.get("observed_batches", 1)) < 0
    ]
    assert dead and all(layer.is_initialized() for layer in dead)
    norm.beta.assign(beta)
    q_model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    q_model.fit(images, labels, batch_size=16, verbose=0)
    for layer in dead:
        assert int(layer.quantizer_variables["observed_batches"]) == 4
