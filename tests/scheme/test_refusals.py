"""What has no integer arithmetic stays in float by name; what makes no sense is refused before anybody trains it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

import tfqil

layers = keras.layers
qat = tfmot.quantization.keras


class Scale(layers.Layer):
    """A custom layer with weights of its own."""

    def build(self, input_shape):
        self.factor = self.add_weight(name="factor", shape=input_shape[-1:], initializer="ones")
        super().build(input_shape)

    def call(self, inputs):
        return inputs * self.factor


def hard_sigmoid(x: Any) -> Any:
    """Not what Keras calls so."""
    return tf.sin(x)


class AtInference:
    """Calls a layer as in training, always."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __call__(self, x: Any) -> Any:
        return self._layer(x, training=True)


IN_FLOAT = {
    "an own function": (lambda: layers.Activation(hard_sigmoid, name="odd"), "test_refusals.hard_sigmoid' has no"),
    "an own function inline": (
        lambda: layers.Conv2D(4, 3, activation=hard_sigmoid, name="odd"),
        "activation 'tests.scheme.test_refusals.hard_sigmoid' has no",
    ),
    "an inline activation": (lambda: layers.Conv2D(4, 3, activation="elu", name="odd"), "activation 'elu'"),
    "a ReLU with a threshold": (lambda: layers.ReLU(threshold=1.0, name="odd"), "ReLU has no integer arithmetic"),
    "another axis of a batch norm": (lambda: layers.BatchNormalization(axis=1, name="odd"), "another axis"),
    "a Lambda": (lambda: layers.Lambda(tf.abs, name="odd"), "a Lambda layer may compute anything"),
    "a custom layer": (lambda: Scale(name="odd"), "Scale is a custom layer"),
    "a recurrent layer": (lambda: layers.ConvLSTM2D(2, 3, name="odd"), "ConvLSTM2D is recurrent"),
    "dropout at inference": (lambda: AtInference(layers.Dropout(0.5, name="odd")), "Dropout with training=True"),
    "a norm by the batch": (
        lambda: AtInference(layers.BatchNormalization(name="odd")),
        "BatchNormalization with training=True",
    ),
    "layer normalization": (lambda: layers.LayerNormalization(name="odd"), "LayerNormalization has no integer"),
}


def model_with(layer: Any) -> Any:
    inputs = keras.Input((9, 9, 4))
    x = layers.Conv2D(4, 3, name="before")(inputs)
    if isinstance(layer, layers.ConvLSTM2D):
        x = layers.Reshape((1, 7, 7, 4))(x)
    return keras.Model(inputs, layers.Conv2D(2, 3, name="behind")(layer(x)))


@pytest.mark.parametrize("what", IN_FLOAT)
def test_a_layer_without_integer_arithmetic_stays_in_float_with_a_reason(what):
    build, reason = IN_FLOAT[what]
    q_model = tfqil.quantize_model(model_with(build()), tfqil.QILQuantizeConfig(4, 8))
    rows = {row.layer: row for row in tfqil.placements(q_model)}
    (row,) = [row for name, row in rows.items() if name.startswith("odd") and row.role == "float"]
    assert reason in row.reason and row.bits is None
    assert rows["before"].bits == rows["behind"].bits == 8, "the rest is quantized"


@pytest.mark.parametrize("what", IN_FLOAT)
def test_require_integer_only_names_it_in_one_sentence(what):
    build, reason = IN_FLOAT[what]
    scheme = tfqil.LowBitScheme(tfqil.QILQuantizeConfig(4, 8), require_integer_only=True)
    with pytest.raises(ValueError, match="Got layers that have no integer arithmetic: 'odd") as error:
        tfqil.quantize_model(model_with(build()), scheme)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_all_of_them_are_named_at_once():
    inputs = keras.Input((9, 9, 4))
    x = layers.Lambda(tf.abs, name="one")(layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, layers.Conv2D(2, 3)(layers.Activation("softplus", name="two")(x)))
    scheme = tfqil.LowBitScheme(tfqil.QILQuantizeConfig(4, 8), require_integer_only=True)
    with pytest.raises(ValueError, match=r"'one' \(a Lambda .*\), 'two' \(activation 'softplus'"):
        tfqil.quantize_model(model, scheme)
    q_model = tfqil.calibrate(tfqil.quantize_model(model, scheme.config), np.ones((4, 9, 9, 4), np.float32))
    with pytest.raises(ValueError, match=r"'one' \(a Lambda .*\), 'two' .*expected none with require_integer_only"):
        tfqil.convert(q_model, require_integer_only=True)


def test_channels_first_stays_in_float():
    model = keras.Sequential([
        keras.Input((3, 9, 9)), layers.MaxPooling2D(data_format="channels_first", name="first"), layers.Flatten(),
        layers.Dense(2),
    ])  # fmt: skip
    q_model = tfqil.quantize_model(model, tfqil.QILQuantizeConfig(4, 8))
    assert "data_format='channels_first'" in tfqil.placements(q_model)["first"].reason


def test_integer_inputs_go_to_float_layers_unchanged():
    model = keras.Sequential([
        keras.Input((5,), dtype="int32", name="words"), layers.Embedding(20, 8, name="table"), layers.Flatten(),
        layers.Dense(6, activation="relu"), layers.Dense(2),
    ])  # fmt: skip
    q_model = tfqil.quantize_model(model, tfqil.QILQuantizeConfig(4, 8))
    words = np.random.default_rng(0).integers(0, 20, (16, 5)).astype(np.int32)
    tfqil.calibrate(q_model, words)
    assert np.abs(q_model(words) - model(words)).max() < 0.1 * np.abs(model(words)).max()
    assert tfqil.placements(q_model)["table"].role == "float"


def test_a_layer_that_makes_floats_of_integers_is_named():
    inputs = keras.Input((9, 9, 3), dtype="uint8")
    x = layers.Rescaling(1 / 255.0, name="pixels")(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 3)(layers.Conv2D(4, 3, activation="relu")(x)))
    scheme = tfqil.LowBitScheme(tfqil.QILQuantizeConfig(4, 8))
    with pytest.raises(ValueError, match=r"'pixels' \(Rescaling of integers: give the model a float input\)"):
        tfqil.quantize_model(model, tfqil.LowBitScheme(scheme.config, require_integer_only=True))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 9, 9, 3)).astype(np.uint8)
    q_model = tfqil.calibrate(tfqil.quantize_model(model, scheme), pixels)
    assert tfqil.placements(q_model)["pixels"].role == "float"
    assert tfqil.placements(q_model)["quantize_pixels"].bits == 8
    report = tfqil.verify(q_model, tfqil.convert(q_model), {model.input_names[0]: pixels})
    assert not report.integer_only and not report.differing_from_deployable


def test_a_rule_that_matches_nothing_is_reported():
    scheme = tfqil.LowBitScheme(
        tfqil.QILQuantizeConfig(4, 8),
        rules={"bef*": tfqil.QILQuantizeConfig(2, 2), "nobody": tfqil.QILQuantizeConfig()},
    )
    q_model = tfqil.quantize_model(model_with(layers.ReLU()), scheme)
    report = tfqil.placements(q_model)
    assert report["before"].bits == 2 and report.unmatched_rules == ("nobody",)
    assert "'nobody'" in str(report) and "before" in str(report)


def test_a_rule_is_a_config():
    with pytest.raises(TypeError, match=r"Got 4 in rules\['a'\], expected a LowBitQuantizeConfig"):
        tfqil.LowBitScheme(tfqil.QILQuantizeConfig(), rules={"a": 4})


def test_a_partly_annotated_model_is_refused():
    annotated = keras.Sequential([
        keras.Input((8,)),
        layers.Dense(4, name="bare"),
        qat.quantize_annotate_layer(layers.Dense(2, name="chosen")),
    ])  # fmt: skip
    with pytest.raises(ValueError, match="not annotated \\(bare\\), expected all: call quantize_annotate_model"):
        qat.quantize_apply(annotated, tfqil.LowBitScheme(tfqil.QILQuantizeConfig(4, 8)))


def test_a_config_for_a_layer_without_a_kernel_is_refused():
    relu = qat.quantize_annotate_layer(layers.ReLU(name="relu"), tfqil.QILQuantizeConfig(2, 2))
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4), relu, layers.Dense(2)])
    with pytest.raises(ValueError, match="Got a config for layer 'relu', which has no kernel"):
        tfqil.quantize_model(model, tfqil.QILQuantizeConfig(4, 8))
