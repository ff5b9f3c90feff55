"""Operator by operator: files are integer-only and compute what the deployable model does, with 0 differences."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tests.export.operator_networks import (
    ANY_IMAGE,
    IMAGE,
    KERNELS,
    OPERATORS,
    SERIES,
    between,
    conv,
    prelu,
    series,
)
from tfqil.export import flatbuffer
from tfqil.export.pack import STORAGES
from tfqil.export.phases import Phases
from tfqil.scheme import expand as expanding
from tfqil.scheme.flatten import flatten

layers = keras.layers

_ANY_SIZE = 6


def _float_network(shape: Any, network: Any) -> tuple[Any, np.ndarray]:
    """A float network with odd weights, and examples."""
    inputs = keras.Input(shape)
    model = networks.randomize_norms(keras.Model(inputs, network(inputs)), odd=False)
    sizes = [size or _ANY_SIZE for size in shape]
    return model, np.random.default_rng(0).normal(0, 1, (32, *sizes)).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _calibrated(name: str, weight_bits: int, activation_bits: int) -> tuple[Any, np.ndarray]:
    """The quantized network of an operator and examples; kept for the other storages."""
    shape, network = {**KERNELS, **OPERATORS}[name]
    return _quantized(shape, network, weight_bits, activation_bits)


def _quantized(shape: Any, network: Any, *bits: int) -> tuple[Any, np.ndarray]:
    model, examples = _float_network(shape, network)
    return networks.calibrated_on(model, examples, *bits), examples


def _require_exact(q_model: Any, examples: np.ndarray, storage: str) -> bytes:
    tflite = tfqil.convert(q_model, storage, check=False)
    report = tfqil.verify(q_model, tflite, examples)
    assert report.accepted, report
    return tflite


# `smallest` rewrites the most; the others are tried on every fourth layer, and on whole networks in test_parity.
KERNELS_AND_STORAGES = [
    (name, storage)
    for number, name in enumerate(KERNELS)
    for storage in (STORAGES if number % 4 == 0 else ("smallest",))
]


@pytest.mark.parametrize(("name", "storage"), KERNELS_AND_STORAGES)
def test_a_layer_with_a_kernel_computes_what_the_deployable_model_does(name, storage):
    _require_exact(*_calibrated(name, 4, 8), storage)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_computes_what_the_deployable_model_does(name):
    _require_exact(*_calibrated(name, 4, 8), "smallest")


@pytest.mark.parametrize("name", [*KERNELS, *OPERATORS])
def test_what_is_taken_apart_computes_what_the_float_model_does(name, monkeypatch):
    monkeypatch.setattr(expanding, "LEAKY_SLOPE_UNIT", 2.0**-30)  # Rounded slopes compute something else.
    model, examples = _float_network(*{**KERNELS, **OPERATORS}[name])
    expanded, _ = expanding.expand(flatten(model)[0])
    for got, expected in zip(tf.nest.flatten(expanded(examples)), tf.nest.flatten(model(examples)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


def test_low_bit_convolutions_of_images_of_any_size_are_predicted():
    def network(x: Any) -> Any:
        y = layers.Conv2D(32, 5, activation="relu")(layers.Conv2D(32, 5, activation="relu")(x))
        return layers.Conv2D(4, 1)(layers.Conv2D(8, 3, kernel_initializer="ones", activation="relu")(y))

    inputs = keras.Input(ANY_IMAGE)
    examples = np.random.default_rng(0).normal(0, 1, (16, 20, 24, 3)).astype(np.float32)
    q_model = networks.calibrated_on(keras.Model(inputs, network(inputs)), examples, 4, 8)
    tflite = tfqil.convert(q_model, "smallest")
    report = tfqil.inspect(tflite)
    builtin = [weight for weight in report.weights if weight.stored == "INT4" and weight.kernels == "builtin"]
    assert builtin and "FULLY_CONNECTED" not in {operator.name for operator in report.operators}
    for size in (11, 20, 33):
        again = np.random.default_rng(size).normal(0, 1, (4, size, size, 3)).astype(np.float32)
        assert tfqil.verify(q_model, tflite, again).accepted


def test_inputs_may_have_names_that_are_no_scopes():
    inputs = [keras.Input((8, 8, 3), name=name) for name in ("right view", "left", "_depth", "right_view")]
    features = layers.Concatenate()([conv(tensor, filters) for filters, tensor in enumerate(inputs, start=1)])
    outputs = {"mask": conv(features), "class": layers.Dense(3)(layers.GlobalAveragePooling2D()(features))}
    model = keras.Model(inputs, outputs)
    examples = [np.random.default_rng(seed).normal(0, 1, (8, 8, 8, 3)).astype(np.float32) for seed in range(4)]
    tflite = _require_exact(networks.calibrated_on(model, examples, 4, 8), examples, "smallest")
    (signature,) = flatbuffer.load(tflite).signatureDefs
    assert {entry.name.decode() for entry in signature.inputs} == {"right_view_2", "left", "depth", "right_view"}


@pytest.mark.parametrize("name", ["transposed and joined", "PReLU per channel", "GELU", "bilinear", "slices"])
def test_so_it_does_at_two_bits(name):
    _require_exact(*_calibrated(name, 2, 2), "fastest")


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("window", [(1, 1), (2, 3), (3, 3), (4, 2), (5, 7)])
def test_phases_are_a_transposed_convolution(window, stride, padding):
    random = np.random.default_rng(0)
    kernel = random.integers(-9, 9, (*window, 3, 2)).astype(np.float32)
    phases = Phases(name="up", window=window, stride=stride, padding=padding)
    for size in ((5, 6), (1, 1)):
        x = random.integers(-9, 9, (2, *size, 3)).astype(np.float32)
        sizes = [
            n * stride if padding == "same" else (n - 1) * stride + max(k, stride)
            for n, k in zip(size, window, strict=True)
        ]
        filters = kernel.transpose(0, 1, 3, 2)
        expected = tf.nn.conv2d_transpose(x, filters, (2, *sizes, 2), stride, padding.upper()).numpy()
        convolved = tf.nn.conv2d(phases.padded(tf.constant(x)), phases.kernel(kernel), 1, "VALID")
        np.testing.assert_array_equal(phases.laid_out(convolved), expected)


@pytest.mark.parametrize(
    ("shape", "layer", "reason"),
    [
        (IMAGE, layers.Conv2DTranspose(4, 3, strides=(1, 2)), "two different strides"),
        (IMAGE, layers.Conv2DTranspose(4, 3, strides=2, output_padding=1), "output_padding"),
        (IMAGE, layers.Conv2DTranspose(4, 3, dilation_rate=2), "dilation_rate"),
        (SERIES, layers.AveragePooling1D(3, 1, padding="same"), "beyond the border"),
    ],
)
def test_what_the_runtime_does_not_compute_in_integers_stays_in_float_with_a_reason(shape, layer, reason):
    first = layers.Conv2D(4, 3) if shape is IMAGE else layers.Conv1D(4, 3)
    q_model, examples = _quantized(shape, lambda x: layer(first(x)), 4, 8)
    (row,) = [row for row in tfqil.placements(q_model).rows if row.role == "float"]
    assert reason in row.reason
    tflite = tfqil.convert(q_model, allow_float=True, check=False)
    assert not tfqil.inspect(tflite).integer_only
    assert not tfqil.verify(q_model, tflite, examples).different_weights


def test_a_float_layer_between_grids_is_not_computed_on_integers():
    # The converter would move a DEQUANTIZE behind an average pool, whose integers are rounded.
    q_model, examples = _quantized(SERIES, series(layers.AveragePooling1D(3, 1, padding="same")), 4, 8)
    tflite = tfqil.convert(q_model, "int8", allow_float=True, check=False)
    assert tfqil.verify(q_model, tflite, examples).differing_from_deployable == 0


def test_the_slopes_of_a_prelu_are_frozen_saved_and_in_the_file(tmp_path):
    q_model, examples = _quantized(IMAGE, between(lambda y: prelu(y, 1, 2)), 4, 8)
    (name,) = [layer.layer.name for layer in q_model.layers if isinstance(getattr(layer, "layer", None), layers.PReLU)]
    grid = tfqil.freeze(q_model)[name]
    assert np.abs(grid.codes).max() == 127
    path = tmp_path / "model.keras"
    q_model.save(path)
    np.testing.assert_array_equal(
        keras.models.load_model(path).predict(examples, verbose=0), q_model.predict(examples, verbose=0)
    )
    tflite = tfqil.convert(q_model, "int8")
    (slopes,) = [weight for weight in tfqil.inspect(tflite).weights if weight.operator == "PRELU"]
    assert (slopes.stored, slopes.shape, slopes.kernels) == ("INT8", (1, 1, 8), "builtin")


def test_the_slopes_of_a_prelu_learn():
    q_model, examples = _quantized(IMAGE, between(lambda y: prelu(y, 1, 2)), 4, 8)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(q_model(examples, training=True) ** 2)
    (slopes,) = [variable for variable in q_model.trainable_variables if "alpha" in variable.name]
    assert np.abs(tape.gradient(loss, slopes)).max() > 0


def test_levels_of_a_relu_pass_through_what_moves_values():
    def network(x: Any) -> Any:
        y = tf.nn.depth_to_space(layers.ZeroPadding2D(1)(conv(x, activation="relu")), 2)
        return conv(tf.concat(tf.split(layers.UpSampling2D(2)(y), 2, axis=-1), axis=1))

    q_model, _ = _quantized(ANY_IMAGE, network, 4, 4)
    report = tfqil.inspect(tfqil.convert(q_model, "int8", check=False))
    moving = [activation for activation in report.activations if activation.levels is not None]
    assert len(moving) >= 6  # The convolution, PAD, DEPTH_TO_SPACE, RESIZE_NEAREST_NEIGHBOR and both parts of SPLIT.
