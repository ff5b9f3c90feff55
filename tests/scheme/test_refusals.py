"""What cannot be exported is refused by name when the model is quantized, before anybody trains it."""

import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras

import tfqil

layers = keras.layers
qat = tfmot.quantization.keras

REFUSED = {
    "an inline activation": (lambda: layers.Conv2D(4, 3, activation="gelu", name="odd"), "activation 'gelu'"),
    "a pooling window over the border": (lambda: layers.AveragePooling2D(3, 2, "same", name="odd"), "over the border"),
    "two strides of a pooling": (lambda: layers.AveragePooling2D(2, (2, 1), name="odd"), "two different strides"),
    "a dilated depthwise kernel": (lambda: layers.DepthwiseConv2D(3, dilation_rate=2, name="odd"), "dilation_rate"),
    "groups": (lambda: layers.Conv2D(4, 3, groups=2, name="odd"), "groups=2"),
    "a leaky ReLU": (lambda: layers.LeakyReLU(name="odd"), "LeakyReLU"),
    "a ReLU with another ceiling": (lambda: layers.ReLU(3.0, name="odd"), "ReLU"),
    "another axis of a batch norm": (lambda: layers.BatchNormalization(axis=1, name="odd"), "BatchNormalization"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_layer_that_cannot_be_exported_is_named(what):
    build, reason = REFUSED[what]
    model = keras.Sequential([keras.Input((9, 9, 4)), layers.Conv2D(4, 3), build(), layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match="Got layers that tfqil cannot quantize: 'odd'") as error:
        tfqil.quantize_model(model, tfqil.QILQuantizeConfig(4, 8))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_integer_inputs_are_refused():
    model = keras.Sequential([keras.Input((9, 9, 4), dtype="uint8", name="pixels"), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ValueError, match="'pixels' \\(input of dtype uint8\\)"):
        tfqil.quantize_model(model, tfqil.QILQuantizeConfig(4, 8))


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
