"""Every other method exports through what QIL exports through: its integers run as trained, in the fewest bits."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

import tfqil
from tests import networks
from tests.export import parity
from tfqil.export.inspect import read_weights
from tfqil.export.verify import layer_of
from tfqil.optimizers import BlendedOptimizer
from tfqil.quantizers import MaxAbsWeightQuantizer
from tfqil.scheme import QuantizedLayer

BCGD, LBW, QIL = tfqil.BCGDQuantizeConfig, tfqil.LBWQuantizeConfig, tfqil.QILQuantizeConfig

# Method -> network, config, storages. Spread over networks and storages: test_parity has all their combinations.
METHODS = {
    "binary 1/4": ("plain", BCGD(1, 4), ("smallest", "int8")),
    "binary 1/4 per channel": ("separable", BCGD(1, 4, per_channel=True), ("fastest",)),
    "binary 1/1": ("dense", BCGD(1, 1), ("fastest", "smallest")),
    "ternary 2/2": ("dense", BCGD(2, 2), ("smallest",)),
    "relaxed ternary 2/2 per channel": ("dense", BCGD(2, 2, per_channel=True, relax=True), ("fastest",)),
    "uniform 4/4": ("residual", BCGD(4, 4), ("fastest",)),
    "uniform 4/4 per channel": ("dense", BCGD(4, 4, per_channel=True), ("smallest",)),
    "LBW 2/4": ("plain", LBW(2, 4), ("fastest", "smallest")),
    "LBW 3/4": ("dense", LBW(3, 4), ("fastest", "smallest")),
    "LBW 4/8": ("plain", LBW(4, 8), ("smallest", "int8")),
    "LBW 4/4 by the paper's scheme": ("dense", LBW(4, 4, mu=0.75, per_channel=True), ("fastest",)),
    "LBW 5/8 within int8": ("dense", LBW(5, 8, int8_exact=True), ("fastest",)),
    "relaxed LBW 6/8 within int8": ("dense", LBW(6, 8, int8_exact=True, relax=True), ("smallest",)),
}


@functools.cache
def exported(method: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """A trained network in another method, calibrated; examples; its outputs for them."""
    family, config, _ = METHODS[method]
    q_model = tfqil.calibrate(tfqil.quantize_model(networks.trained(family), config), networks.digits(256)[0])
    images = networks.digits()[0]
    return q_model, images, q_model.predict(images, verbose=0)


@functools.cache
def file_of(method: str, storage: str) -> bytes:
    """The file of such a network."""
    return tfqil.convert(exported(method)[0], storage)


def inner_layers(q_model: Any) -> list[str]:
    """The layers whose kernels the method quantizes; the edges have 8 bits."""
    layers = [layer for layer in q_model.layers if isinstance(layer, QuantizedLayer)]
    return [layer.layer.name for layer in layers if not isinstance(layer.weight_quantizer, MaxAbsWeightQuantizer)]


def weights_of(method: str, storage: str) -> dict[str, Any]:
    """Layer -> what `inspect` says of its kernel, without the edges."""
    q_model, *_ = exported(method)
    weights = tfqil.inspect(file_of(method, storage)).weights
    by_layer = {layer_of(weight.name, tfqil.freeze(q_model)): weight for weight in weights}
    return {name: by_layer[name] for name in inner_layers(q_model)}


# --- what was trained is what runs ---


@pytest.mark.parametrize(
    ("method", "storage"), [(method, storage) for method, (*_, storages) in METHODS.items() for storage in storages]
)
def test_the_file_computes_what_was_trained(method, storage, monkeypatch):
    q_model, images, outputs = exported(method)
    # A network that says the same of every image would prove little.
    assert len(np.unique(outputs)) > 20 and len(np.unique(outputs.argmax(-1))) > 1
    tflite = file_of(method, storage)
    monkeypatch.setattr(tfqil, "convert", lambda *_: tflite)  # Once is enough for this and the tests below.
    parity.require_exact_export(q_model, storage, images, outputs)


# --- how it is stored ---


@pytest.mark.parametrize(
    ("method", "storage"),
    [
        ("binary 1/4", "int8"),
        ("binary 1/4", "smallest"),
        ("binary 1/1", "fastest"),
        ("binary 1/4 per channel", "fastest"),
    ],
)
def test_binary_weights_are_signs_in_the_file(method, storage):
    q_model, *_ = exported(method)
    frozen = tfqil.freeze(q_model)
    stored = {layer_of(name, frozen): codes for name, (codes, _) in read_weights(file_of(method, storage)).items()}
    signs = parity.folded_signs(q_model)
    for name in inner_layers(q_model):
        sign = signs.get(name, np.ones(1))
        codes = stored[name].reshape(-1, sign.size)
        # A batch normalization that multiplies by 0 leaves nothing of a channel.
        assert set(np.unique(codes[:, sign != 0])) == {-1, 1} and not np.any(codes[:, sign == 0])


@pytest.mark.parametrize(
    ("method", "storage", "spatial", "dense"),
    [
        ("binary 1/4", "int8", "INT8", "INT8"),
        ("binary 1/1", "fastest", None, "INT4"),
        ("binary 1/4", "smallest", "INT8", "INT2"),
        ("ternary 2/2", "smallest", None, "INT2"),
        ("LBW 2/4", "fastest", "INT8", "INT4"),
        ("LBW 2/4", "smallest", "INT8", "INT2"),
        ("LBW 3/4", "fastest", None, "INT4"),
        ("LBW 3/4", "smallest", None, "INT4"),
        # 8 is no INT4, whose range is -8 .. 7.
        ("LBW 4/8", "smallest", "INT8", "INT8"),
        ("relaxed LBW 6/8 within int8", "smallest", None, "INT8"),
    ],
)
def test_weights_take_the_bits_that_they_need(method, storage, spatial, dense):
    stored = {name: weight.stored for name, weight in weights_of(method, storage).items()}
    # A convolution as small as this one is not worth the operators that INT2 takes.
    assert stored.pop("second" if spatial else "", None) == spatial
    assert set(stored.values()) == {dense}, stored


@pytest.mark.parametrize(
    ("method", "storage", "largest"),
    [
        ("LBW 2/4", "fastest", 1),
        ("LBW 3/4", "fastest", 2),
        ("LBW 4/8", "int8", 8),
        ("LBW 5/8 within int8", "fastest", 64),
        ("relaxed LBW 6/8 within int8", "smallest", 64),
    ],
)
def test_powers_of_two_are_kept_and_named_as_such(method, storage, largest):
    q_model, *_ = exported(method)
    frozen, inner = tfqil.freeze(q_model), inner_layers(q_model)
    for name in inner:
        assert np.abs(frozen[name].codes).max() == largest and np.all(np.frexp(frozen[name].step)[0] == 0.5), name
    weights = tfqil.inspect(file_of(method, storage)).weights
    # The edges have 8 bits, and not powers of two only.
    assert {layer_of(weight.name, frozen) for weight in weights if weight.powers_of_two} == set(inner)


@pytest.mark.parametrize(
    ("config", "channels"),
    [
        (BCGD(4, 4, per_channel=True), slice(3, 4)),
        # One step per tensor gives channels without codes that of the others; a kernel without any has step 1 here.
        (BCGD(2, 2), slice(1, None)),
        (LBW(4, 4, mu=0.75), slice(None)),
    ],
    ids=["channel with a step of its own", "channels", "kernel"],
)
def test_channels_and_kernels_of_zeros_export(config, channels):
    q_model = tfqil.quantize_model(networks.trained("dense"), config)
    kernel = q_model.get_layer("quant_second").kernel
    kernel[:, channels].assign(tf.zeros_like(kernel[:, channels]))
    images = networks.digits()[0]
    outputs = tfqil.calibrate(q_model, networks.digits(256)[0]).predict(images, verbose=0)
    parity.require_exact_export(q_model, "fastest", images, outputs)


# --- several methods in one model ---


@pytest.fixture(scope="module")
def mixed() -> Any:
    """Relaxed QIL in one layer, LBW in the next, relaxed binary weights in the third, after four epochs in XLA."""
    keras.utils.set_random_seed(1)
    configs = {"one": QIL(3, 4, relax=True), "two": LBW(4, 4), "three": BCGD(1, 4, relax=True)}
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    inputs = keras.Input((12, 12, 1), name="image")
    x = networks.norm_relu(keras.layers.Dense(32, name="first")(keras.layers.Flatten()(inputs)), "first")
    for name, config in configs.items():
        x = annotate(keras.layers.Dense(32, activation="relu", name=name), config)(x)
    model = keras.Model(inputs, keras.layers.Dense(networks.CLASSES, name="last")(x), name="mixed")
    q_model = tfqil.quantize_model(model, QIL(8, 8))
    q_model.compile(
        BlendedOptimizer(keras.optimizers.Adam(3e-3), q_model, 1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=True,
    )
    schedule = tfqil.callbacks.BinaryRelaxSchedule(exact_from_epoch=1)
    history = q_model.fit(*networks.digits(), batch_size=50, epochs=4, verbose=0, callbacks=[schedule]).history
    return q_model, history


def test_mixed_methods_train_together(mixed):
    q_model, history = mixed
    assert history["lambda"] == [1.0, math.inf, math.inf, math.inf]
    assert history["loss"] == sorted(history["loss"], reverse=True)
    placed = {row.layer: (row.quantizer, row.bits) for row in tfqil.placements(q_model) if row.role == "kernel"}
    assert [placed[name] for name in ("one", "two", "three")] == [
        ("BinaryRelax(QILWeightQuantizer)", 3),
        ("LBWWeightQuantizer", 4),
        ("BinaryRelax(BinaryWeightQuantizer)", 1),
    ]


@pytest.mark.parametrize("storage", ["fastest", "smallest"])
def test_mixed_methods_reload_and_export(mixed, storage, tmp_path):
    q_model, _ = mixed
    q_model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    images = networks.digits()[0]
    outputs = q_model.predict(images, verbose=0)
    np.testing.assert_array_equal(again.predict(images, verbose=0), outputs)
    assert isinstance(again.optimizer, BlendedOptimizer)
    parity.require_exact_export(again, storage, images, outputs)
