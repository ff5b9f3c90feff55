"""Training loops that users write themselves give what `fit` gives: tapes, accumulation, averages, frozen backbones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks

IMAGES, LABELS = networks.digits(128, 8)
BATCH = 32
LOSS = keras.losses.SparseCategoricalCrossentropy()
CONFIGS = {
    "qil": tfqil.QILQuantizeConfig(3, 3, train_gamma=True),
    "lbw": tfqil.LBWQuantizeConfig(4, 8),
    "bcgd": tfqil.BCGDQuantizeConfig(1, 4),
}


def fresh(method: str = "qil", **arguments: Any) -> Any:
    """The same compiled model each time, its intervals not set."""
    keras.utils.set_random_seed(0)
    q_model = tfqil.quantize_model(networks.tiny(), CONFIGS[method])
    inner = keras.optimizers.SGD(0.05, momentum=0.9)
    optimizer = tfqil.optimizers.BlendedOptimizer(inner, q_model)
    q_model.compile(tfqil.optimizers.IntervalRateOptimizer(optimizer, 0.1), LOSS, **arguments)
    q_model.optimizer.build(q_model.trainable_variables)
    return q_model


def batches() -> list[tuple[tf.Tensor, tf.Tensor]]:
    starts = range(0, len(IMAGES), BATCH)
    return [(tf.constant(IMAGES[s : s + BATCH]), tf.constant(LABELS[s : s + BATCH])) for s in starts]


def fitted(method: str = "qil", **arguments: Any) -> Any:
    q_model = fresh(method, **arguments)
    q_model.fit(IMAGES, LABELS, batch_size=BATCH, shuffle=False, verbose=0)
    return q_model


def gradients(q_model: Any, images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        loss = LOSS(labels, q_model(images, training=True))
    return tape.gradient(loss, q_model.trainable_variables)


def require_close(one: Any, other: Any, rtol: float = 1e-4) -> None:
    for variable, expected in zip(one.variables, other.variables, strict=True):
        # A value may round to the next level where sums are taken in another order.
        scale = np.abs(expected).max()
        np.testing.assert_allclose(variable, expected, rtol=rtol, atol=rtol * float(scale), err_msg=variable.name)


@pytest.mark.parametrize("method", CONFIGS)
def test_a_tape_trains_as_fit_does(method):
    q_model = fresh(method)

    @tf.function
    def step(images, labels):
        found = gradients(q_model, images, labels)
        q_model.optimizer.apply_gradients(zip(found, q_model.trainable_variables, strict=True))

    for images, labels in batches():
        step(images, labels)
    require_close(q_model, fitted(method))
    assert step.experimental_get_tracing_count() == 1


def test_train_on_batch_trains_as_fit_does():
    q_model = fresh()
    for images, labels in batches():
        q_model.train_on_batch(images, labels)
    require_close(q_model, fitted())


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_several_steps_per_execution_train_as_single_ones(jit):
    require_close(fitted(steps_per_execution=4, jit_compile=jit), fitted(jit_compile=jit))


def test_accumulated_gradients_are_those_of_the_whole_batch():
    """With frozen normalizations and set intervals, since both follow from what is seen at a time."""
    q_models = [tfqil.calibrate(fresh("qil"), IMAGES) for _ in range(2)]
    for q_model in q_models:
        for layer in q_model.layers:
            quantizer = getattr(layer, "quantizer", None)
            if isinstance(layer, keras.layers.BatchNormalization) or isinstance(
                quantizer, tfqil.quantizers.RangeActivationQuantizer
            ):
                layer.trainable = False
    whole, halved = q_models
    at_once = gradients(whole, tf.constant(IMAGES), tf.constant(LABELS))
    totals = [tf.zeros_like(variable) for variable in halved.trainable_variables]
    for images, labels in batches():
        found = gradients(halved, images, labels)
        totals = [total + part / len(batches()) for total, part in zip(totals, found, strict=True)]
    for variable, total, expected in zip(whole.trainable_variables, totals, at_once, strict=True):
        np.testing.assert_allclose(total, expected, rtol=1e-3, atol=1e-6, err_msg=variable.name)


def averaged(rate: float | None, **arguments: Any) -> tuple[Any, list[list[np.ndarray]]]:
    """A model that was trained with averages of its weights; its trainable variables at first and after each step."""
    keras.utils.set_random_seed(0)
    q_model = tfqil.calibrate(tfqil.quantize_model(networks.tiny(), CONFIGS["qil"]), IMAGES)
    optimizer: Any = keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5, **arguments)
    if rate is not None:
        optimizer = tfqil.optimizers.IntervalRateOptimizer(optimizer, rate)
    q_model.compile(optimizer, LOSS)
    seen = []

    def see(*_: Any) -> None:
        seen.append([variable.numpy() for variable in q_model.trainable_variables])

    see()
    recorder = keras.callbacks.LambdaCallback(on_train_batch_end=see)
    q_model.fit(IMAGES, LABELS, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[recorder])
    return q_model, seen


@pytest.mark.parametrize("rate", [None, 1.0, 0.1])
def test_averages_of_weights_are_those_of_what_the_weights_were(rate):
    q_model, seen = averaged(rate)
    for number, variable in enumerate(q_model.trainable_variables):
        average = seen[0][number]
        for values in seen[1:]:
            average = 0.5 * average + 0.5 * values[number]
        # Keras takes the average before constraints, which keep the center at least as large as the half-width.
        rtol = 5e-3 if variable.name.rpartition("_")[2] in ("center:0", "width:0") else 1e-6
        np.testing.assert_allclose(variable, average, rtol=rtol, atol=1e-6, err_msg=variable.name)
    assert tfqil.inspect(tfqil.convert(q_model)).integer_only


def test_averages_that_are_written_during_training_are_refused_where_intervals_have_a_rate():
    inner = keras.optimizers.SGD(0.05, use_ema=True, ema_overwrite_frequency=10)
    with pytest.raises(ValueError, match="Got an optimizer with ema_overwrite_frequency, which sets weights"):
        tfqil.optimizers.IntervalRateOptimizer(inner, 0.1)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_a_frozen_backbone_keeps_all_it_has_while_a_new_head_learns(jit):
    keras.utils.set_random_seed(0)
    float_model = networks.tiny()
    backbone = keras.Model(float_model.input, float_model.get_layer("average").output)
    head = keras.layers.Dense(5, name="head")(backbone.output)
    q_model = tfqil.calibrate(tfqil.quantize_model(keras.Model(backbone.input, head), CONFIGS["qil"]), IMAGES)
    trained = {"quant_head", "quantize_head"}
    for layer in q_model.layers:
        layer.trainable = layer.name in trained
    before = {layer.name: layer.get_weights() for layer in q_model.layers}
    q_model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit)
    q_model.fit(IMAGES, LABELS % 5, batch_size=BATCH, verbose=0)
    moved = {
        layer.name
        for layer in q_model.layers
        if not all(np.array_equal(a, b) for a, b in zip(layer.get_weights(), before[layer.name], strict=True))
    }
    assert moved == trained
    tflite = tfqil.convert(q_model)
    assert tfqil.verify(q_model, tflite, IMAGES).accepted
