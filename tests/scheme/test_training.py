"""Quantized models train: compiled, frozen, in mixed precision, in both output forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tests import networks
from tfqil.scheme import QuantizeActivation, QuantizedLayer

layers = keras.layers
IMAGES, LABELS = networks.digits(256, 8)


def small(policy: str | None = None) -> Any:
    """Conv, batch norm and ReLU, twice, and a classifier."""
    inputs = keras.Input((8, 8, 1))
    x = inputs
    for name in ("a", "b", "c"):
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name=name, dtype=policy)(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn", dtype=policy)(x)
        x = layers.ReLU(name=f"{name}_relu", dtype=policy)(x)
    x = layers.GlobalAveragePooling2D(dtype=policy)(x)
    return keras.Model(inputs, layers.Dense(10, name="last", dtype=policy)(x))


def compiled(q_model: Any, **arguments: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    q_model.compile(keras.optimizers.Adam(1e-2), loss, **arguments)
    return q_model


def fit(q_model: Any, epochs: int = 4) -> list[float]:
    return q_model.fit(IMAGES, LABELS, batch_size=32, epochs=epochs, verbose=0).history["loss"]


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_training_lowers_the_loss_and_moves_the_intervals(jit):
    q_model = compiled(networks.quantized(small(), 3, 3, train_gamma=True), jit_compile=jit)
    losses = fit(q_model, epochs=8)
    assert losses[-1] < 0.9 * losses[0], f"losses {losses}"
    for layer in q_model.layers:
        if isinstance(layer, QuantizeActivation):
            assert layer.quantizer.is_initialized(layer.quantizer_variables), layer.name
    gammas = [float(v) for v in q_model.trainable_variables if "gamma" in v.name and v.shape.rank == 0]
    assert gammas and all(gamma != 1.0 for gamma in gammas)
    assert all(np.all(np.isfinite(v)) for v in q_model.get_weights())


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_a_frozen_layer_keeps_its_kernel_and_its_intervals(jit):
    q_model = networks.calibrated_on(small(), IMAGES, 3, 3, train_gamma=True)
    # A kernel, a learned interval and a range that follows the data.
    frozen = [q_model.get_layer(name) for name in ("quant_b", "quantize_b_relu", "quantize_last")]
    for layer in frozen:
        layer.trainable = False
    before = [layer.get_weights() for layer in frozen]
    moving = [q_model.get_layer(name).get_weights() for name in ("quant_c", "quantize_a_relu")]
    fit(compiled(q_model, jit_compile=jit), epochs=1)
    for layer, weights in zip(frozen, before, strict=True):
        assert not layer.trainable_weights
        assert all(np.array_equal(a, b) for a, b in zip(layer.get_weights(), weights, strict=True)), (
            f"{layer.name} moved"
        )
    for name, weights in zip(("quant_c", "quantize_a_relu"), moving, strict=True):
        after = q_model.get_layer(name).get_weights()
        assert not all(np.array_equal(a, b) for a, b in zip(after, weights, strict=True)), f"{name} did not move"


def test_training_does_not_overwrite_a_calibration_of_one_batch():
    q_model = networks.calibrated_on(small(), IMAGES[:64], 3, 3)
    layer = q_model.get_layer("quantize_b_relu")
    before = layer.grid()
    q_model.compile(keras.optimizers.SGD(0.0), "mse")
    q_model.fit(IMAGES * 5, np.zeros((256, 10), np.float32), verbose=0)
    assert layer.grid() == before


def test_a_layer_that_was_frozen_before_quantization_stays_frozen():
    model = small()
    model.get_layer("b").trainable = False
    q_model = networks.calibrated_on(model, IMAGES, 3, 3)
    before = q_model.get_layer("quant_b").get_weights()
    fit(compiled(q_model), epochs=1)
    assert all(np.array_equal(a, b) for a, b in zip(q_model.get_layer("quant_b").get_weights(), before, strict=True))


def test_a_frozen_model_has_nothing_to_train():
    q_model = networks.quantized(small())
    count = len(q_model.variables)
    q_model.trainable = False
    assert q_model.trainable_variables == [] and len(q_model.non_trainable_variables) == count


def test_layers_with_a_mixed_policy_of_their_own_train_with_float32_master_weights():
    q_model = compiled(networks.quantized(small("mixed_bfloat16"), 4, 4))
    losses = fit(q_model)
    assert losses[-1] < losses[0] and all(v.dtype in (tf.float32, tf.int32) for v in q_model.variables)
    inner = q_model.get_layer("quant_b").layer
    assert inner.compute_dtype == "bfloat16"


def test_the_normalized_form_and_the_default_agree_up_to_the_scale_that_a_batch_norm_takes_out():
    keras.utils.set_random_seed(3)
    model = small()
    default = networks.calibrated_on(model, IMAGES, 3, 3)
    normalized = networks.quantized(model, 3, 3, normalized=True)
    for one, other in zip(default.layers, normalized.layers, strict=True):
        other.set_weights(one.get_weights())
        if isinstance(other, layers.BatchNormalization):
            one.epsilon = other.epsilon = 1e-12  # The default epsilon is not small beside the unscaled variance.
    for name in ("quant_b", "quant_c"):
        one, other = (q_model.get_layer(name).grid() for q_model in (default, normalized))
        np.testing.assert_array_equal(one.codes, other.codes)
        assert other.step == np.float32(1 / 3)
    outputs = [q_model(IMAGES[:64], training=True).numpy() for q_model in (default, normalized)]
    step = default.get_layer("quantize_last").grid().step
    # The batch norms divide the scale out again; what float32 leaves of it may move a value over a rounding boundary.
    off = np.abs(np.rint((outputs[0] - outputs[1]) / step))
    assert np.mean(off > 0) < 0.05 and off.max() <= 2, (
        f"{np.count_nonzero(off)} of {off.size} differ, by up to {off.max()}"
    )


def test_inference_does_not_change_a_variable():
    q_model = networks.quantized(small(), 3, 3)
    before = q_model.get_weights()
    q_model.predict(IMAGES[:32], verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(q_model.get_weights(), before, strict=True))


def test_without_calibration_the_first_training_batches_set_the_intervals():
    model = networks.randomize_norms(small(), odd=False)
    q_model = networks.quantized(model, 4, 4)
    q_model.compile(keras.optimizers.SGD(0.0), "mse")
    q_model.fit(IMAGES, np.zeros((256, 10), np.float32), batch_size=64, shuffle=False, verbose=0)
    for layer in q_model.layers:
        if isinstance(layer, QuantizeActivation):
            assert int(layer.quantizer_variables["observed_batches"]) == 4, layer.name
            assert layer.grid().maximum != pytest.approx(6.0), f"{layer.name} has the interval of a new layer"


def test_kernels_are_initialized_to_the_least_squared_error():
    q_model = networks.quantized(networks.randomize_norms(small()), 4, 4)
    for layer in q_model.layers:
        if isinstance(layer, QuantizedLayer):
            kernel, values = layer.kernel.numpy(), layer.grid().values
            # 15 levels of a normal or uniform tensor lose about 1 % of its power.
            assert np.square(kernel - values).mean() <= 0.02 * np.square(kernel).mean(), layer.name
