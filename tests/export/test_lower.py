"""The deployable model: what it computes, and that the public converter alone turns it into the file."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tfqil.export import runtime
from tfqil.scheme import QuantizeActivation

layers = keras.layers


def plainly_converted(model: Any) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()


def exported(build: Any, shape: tuple[int, ...] = (8, 8, 3), bits: tuple[int, int] = (4, 4)) -> tuple[Any, np.ndarray]:
    """A calibrated model with a body, and data for it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    data = np.random.default_rng(0).normal(0, 1, (200, *shape)).astype(np.float32)
    model = networks.randomize_norms(keras.Model(inputs, build(inputs)))
    return networks.calibrated_on(model, data, *bits), data


def require_three_agree(q_model: Any, data: np.ndarray) -> None:
    """Raises unless no output of the file differs from the deployable model, and few from the trained one."""
    tflite = tfqil.convert(q_model, "int8")
    plain = tfqil.deployable(q_model)
    for got, want in zip(runtime.run(tflite, [data]), tf.nest.flatten(plain(data)), strict=True):
        different = np.count_nonzero(got != want.numpy())
        assert not different, f"{different} of {got.size} outputs differ"
    report = tfqil.verify(q_model, tflite, data)
    # A float32 sum next to a rounding boundary may fall to its other side; deep in the network that spreads.
    assert report.max_lsb <= 2 and report.differing_from_model <= 0.01, (
        f"{report.differing_from_model:.1%} of the outputs differ from the trained model, by up to {report.max_lsb} LSB"
    )


def conv(filters: int = 4, **arguments: Any) -> Any:
    return layers.Conv2D(filters, 3, padding="same", **arguments)


def test_calling_and_predicting_give_the_same(small_model, images):
    plain = tfqil.deployable(small_model)
    np.testing.assert_array_equal(plain(images), plain.predict(images, verbose=0))
    assert plain.input_names == small_model.input_names and plain.output_shape == small_model.output_shape


def test_the_public_converter_alone_gives_an_integer_file_that_equals_it(small_model, images):
    plain = tfqil.deployable(small_model)
    tflite = plainly_converted(plain)
    assert tfqil.inspect(tflite).integer_only
    (got,) = runtime.run(tflite, [images])
    different = np.count_nonzero(got != plain(images).numpy())
    assert not different, f"{different} of {got.size} outputs differ"


def test_it_holds_neither_batch_norms_nor_layers_of_the_scheme(small_model):
    kinds = {type(layer).__name__ for layer in tfqil.deployable(small_model).layers}
    assert not kinds & {"BatchNormalization", "QuantizedLayer", "QuantizeActivation", "ReLU"}


def test_it_is_as_close_to_the_trained_model_as_one_step_of_the_output(small_model, images):
    step = small_model.layers[-1].grid().step
    steps = np.abs(np.rint((tfqil.deployable(small_model)(images) - small_model(images)) / step))
    assert steps.max() <= 1, (
        f"{np.count_nonzero(steps > 1)} of {steps.size} differ by more than 1 LSB, at most {steps.max()}"
    )


def start(x: Any) -> Any:
    """A convolution and a ReLU in front of the layers in question, which are then no edge."""
    return conv(activation="relu")(x)


def chain(*parts: Any) -> Any:
    """Start, some layers, and a convolution at the end."""
    return lambda x: functools.reduce(lambda y, part: part(y), [*parts, conv()], start(x))


def head(*parts: Any) -> Any:
    """Start, some layers, and a dense layer at the end."""
    return lambda x: functools.reduce(lambda y, part: part(y), [*parts, layers.Dense(5)], start(x))


BODIES = {
    "average pool": chain(layers.AveragePooling2D(2)),
    "max pool": chain(layers.MaxPooling2D(2)),
    "global average": head(layers.GlobalAveragePooling2D()),
    "global average that keeps dimensions": chain(layers.GlobalAveragePooling2D(keepdims=True)),
    "padding": chain(layers.ZeroPadding2D(1), layers.Conv2D(4, 3, strides=2, activation="relu")),
    "dilation": chain(conv(activation="relu", dilation_rate=2)),
    "depth multiplier": chain(layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")),
    "separable": chain(layers.SeparableConv2D(4, 3, activation="relu")),
    "batch norm on its own": chain(layers.MaxPooling2D(2), layers.BatchNormalization(), layers.ReLU()),
    "batch norm without scale and shift": chain(
        conv(), layers.BatchNormalization(scale=False, center=False), layers.ReLU()
    ),
    "relu6": chain(conv(activation="relu6")),
    "relu6 behind batch norm": chain(conv(), layers.BatchNormalization(), layers.ReLU(6.0)),
    "sigmoid": chain(conv(activation="sigmoid")),
    "tanh": chain(conv(activation="tanh")),
    "softmax": head(layers.Flatten(), layers.Dense(5, activation="softmax")),
    "hidden dense with relu": head(layers.Flatten(), layers.Dense(6, activation="relu")),
    "hidden dense with relu6": head(layers.Flatten(), layers.Dense(6, activation="relu6")),
    "hidden dense without relu": head(layers.Flatten(), layers.Dense(6)),
    "dense with batch norm": head(layers.Flatten(), layers.Dense(8), layers.BatchNormalization(), layers.ReLU()),
    "dense over positions": head(layers.Dense(6, activation="relu")),
}


# At 4/8 bits, test_operators has them and more.
@pytest.mark.parametrize("kind", BODIES)
def test_the_file_equals_it_for_every_kind_of_layer(kind):
    require_three_agree(*exported(BODIES[kind], bits=(2, 2)))


def branches(x: Any) -> Any:
    x = conv(activation="relu")(x)
    joined = layers.Concatenate()([conv(activation="relu")(x), conv(activation="relu")(x)])
    return conv()(conv(activation="relu")(joined))


def sum_of_three(x: Any) -> Any:
    x = conv(activation="relu")(x)
    return conv()(layers.ReLU()(layers.Add()([x, conv()(x), conv(activation="relu")(x)])))


def two_outputs(x: Any) -> Any:
    x = conv(activation="relu")(x)
    return [
        conv(name="one")(x),
        layers.Dense(3, name="two")(layers.GlobalAveragePooling2D()(conv(activation="relu")(x))),
    ]


@pytest.mark.parametrize("body", [branches, sum_of_three, two_outputs], ids=lambda body: body.__name__)
@pytest.mark.parametrize("bits", [(2, 2), (4, 8)], ids=str)
def test_the_file_equals_it_where_tensors_meet_or_part(body, bits):
    require_three_agree(*exported(body, bits=bits))


def test_a_lower_end_above_0_goes_into_the_bias_and_a_shared_one_into_a_subtraction():
    q_model, data = exported(sum_of_three)
    moved = []
    for layer in q_model.layers:
        if isinstance(layer, QuantizeActivation) and {"center", "half_width"} <= set(layer.quantizer_variables):
            layer.quantizer_variables["center"].assign_add(0.05)
            moved.append(layer.name)
    assert any(name.startswith("quantize_input_of") for name in moved) and all(
        q_model.get_layer(n).grid().lower > 0 for n in moved
    )
    require_three_agree(q_model, data)


def test_several_inputs_of_different_ranges_are_told_apart():
    a, b = keras.Input((4,), name="small"), keras.Input((4,), name="large")
    x = layers.Concatenate()([layers.Dense(5, activation="relu")(a), layers.Dense(5, activation="relu")(b)])
    model = keras.Model([a, b], layers.Dense(3)(x))
    random = np.random.default_rng(0)
    data = [random.normal(0, s, (100, 4)).astype(np.float32) for s in (1, 20)]
    q_model = networks.calibrated_on(model, data, 4, 4)
    report = tfqil.verify(q_model, tfqil.convert(q_model), data)
    assert report.accepted and report.differing_from_deployable == 0 and report.max_lsb <= 1


def test_lowering_changes_nothing(small_model, images):
    before, outputs = small_model.get_weights(), small_model(images).numpy()
    tfqil.deployable(small_model)
    assert all(np.array_equal(a, b) for a, b in zip(small_model.get_weights(), before, strict=True))
    np.testing.assert_array_equal(small_model(images), outputs)


def test_a_float_model_is_refused():
    with pytest.raises(ValueError, match="Got the float model 'dense', expected a quantized one"):
        tfqil.deployable(networks.dense())


def test_an_uncalibrated_model_is_refused():
    with pytest.raises(ValueError, match="Got a model whose activation grids were never set"):
        tfqil.deployable(networks.quantized(networks.tiny()))


def test_a_collapsed_interval_saturates_in_the_file_as_in_the_model():
    # Its multiplier is beyond what XNNPACK takes; from 255.5 on all of them saturate every sum but 0.
    q_model, images = exported(lambda x: conv()(conv(activation="relu", name="b")(conv(activation="relu")(x))))
    q_model.get_layer("quantize_b_activation").quantizer_variables["maximum"].assign(1e-7)
    report = tfqil.verify(q_model, tfqil.convert(q_model, "int8"), images)
    assert report.accepted and report.differing_from_model == 0
