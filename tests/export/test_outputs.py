"""Models with several inputs and outputs, and with a softmax at the end; what outputs are called."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

import tfqil
from tests import networks
from tfqil.export import flatbuffer, runtime
from tfqil.scheme import QuantizeActivation

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


VECTORS = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)


def four_heads() -> Any:
    """Outputs of which no layer that produces one has its name once kernels and activations are apart."""
    inputs = keras.Input((4,), name="vector")
    x = layers.Dense(6, activation="relu")(inputs)
    inner = keras.Sequential([layers.Dense(5, activation="relu"), layers.Dense(2)], name="inner")
    heads = [layers.Dense(3, activation="softmax", name="kind"), layers.Dense(1, activation="sigmoid", name="size")]
    return keras.Model(inputs, [*(head(x) for head in heads), inner(x), layers.ReLU(name="depth")(layers.Dense(1)(x))])


HEADS = ["kind", "size", "inner", "depth"]


def names_in_file(q_model: Any) -> list[str]:
    """The names of the outputs in a file's signature, in the order of the file."""
    model = flatbuffer.load(tfqil.convert(q_model, allow_float=True, check=False))
    names = {entry.tensorIndex: entry.name.decode() for entry in model.signatureDefs[0].outputs}
    return [names[index] for index in model.subgraphs[0].outputs]


def served_names(q_model: Any, folder: pathlib.Path) -> set[str]:
    """The names of the outputs of a SavedModel."""
    tfqil.export_saved_model(q_model, folder)
    return set(tf.saved_model.load(str(folder)).signatures["serving_default"].structured_outputs)


@pytest.fixture(scope="module")
def q_heads() -> Any:
    """The model with four outputs, calibrated."""
    return networks.calibrated_on(four_heads(), VECTORS, 4, 4)


def test_outputs_are_called_as_in_the_float_model(q_heads, tmp_path):
    assert four_heads().output_names == HEADS
    assert names_in_file(q_heads) == HEADS
    assert served_names(q_heads, tmp_path / "served") == set(HEADS)
    labels = {"kind": ["cat", "dog", "neither"]}
    (kind, *others) = tfqil.read_metadata(tfqil.convert(q_heads, labels=labels, check=False)).outputs
    assert (kind.name, kind.labels) == ("kind", ("cat", "dog", "neither")) and not any(one.labels for one in others)


def test_so_they_are_of_a_model_that_was_saved_and_has_other_widths(q_heads, tmp_path):
    q_heads.save(tmp_path / "model.keras")
    assert names_in_file(tfqil.with_bits(tfqil.load_model(tmp_path / "model.keras"), 3, 4)) == HEADS


def test_so_they_are_behind_edges_in_float_and_of_models_of_quantize_apply():
    inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu")(layers.Dense(6, activation="relu")(inputs))
    annotated = tfmot.quantization.keras.quantize_annotate_model(
        keras.Model(inputs, layers.Dense(1, activation="sigmoid", name="size")(x))
    )
    scheme = tfqil.LowBitScheme(tfqil.QILQuantizeConfig(4, 4), edge_bits=None)
    q_model = tfqil.calibrate(tfmot.quantization.keras.quantize_apply(annotated, scheme), VECTORS)
    assert q_model.output_names == ["size_activation"] and names_in_file(q_model) == ["size"]


def test_models_of_earlier_versions_keep_the_names_of_their_layers(q_heads, tmp_path):
    again = keras.models.clone_model(q_heads)
    again.set_weights(q_heads.get_weights())
    for layer in again.layers:
        if isinstance(layer, QuantizeActivation):
            layer.output_names = ()
    assert names_in_file(again)[:2] == ["kind_activation", "size_activation"]
    assert {"kind_activation", "size_activation", "depth"} < served_names(again, tmp_path / "served")


def test_a_part_of_a_model_has_names_of_its_own(q_heads):
    part = keras.Model(q_heads.inputs, [q_heads.outputs[1], q_heads.layers[3].output])
    assert names_in_file(part)[0] == "size" and names_in_file(part)[1] not in HEADS
