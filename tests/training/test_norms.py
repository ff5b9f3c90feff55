"""Statistics of batch normalizations anew: what they become, that nothing else changes, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tfqil.scheme import QuantizeActivation

IMAGES, LABELS = networks.digits(96)


def quantized() -> Any:
    """A trained network whose normalizations have forgotten their statistics, but for a frozen one."""
    q_model = networks.calibrated(networks.trained("residual"))
    q_model.get_layer("one_a_bn").trainable = False
    for norm in norms(q_model):
        if norm.trainable:
            norm.moving_mean.assign(tf.zeros_like(norm.moving_mean))
            norm.moving_variance.assign(tf.ones_like(norm.moving_variance))
    return q_model


def norms(q_model: Any) -> list[Any]:
    return [layer for layer in q_model.layers if isinstance(layer, keras.layers.BatchNormalization)]


def statistics(q_model: Any) -> list[np.ndarray]:
    return [variable.numpy() for norm in norms(q_model) for variable in (norm.moving_mean, norm.moving_variance)]


def test_statistics_are_the_mean_of_those_of_the_batches_and_nothing_else_changes():
    q_model = quantized()
    before = {variable.name: variable.numpy() for variable in q_model.variables}
    momenta = [norm.momentum for norm in norms(q_model)]
    data = [(IMAGES[start : start + 32], LABELS[start : start + 32]) for start in (0, 32, 64)]

    # The statistics of each batch, by the layers before the normalizations; ranges do not move.
    probe = keras.Model(q_model.input, [norm.get_input_at(-1) for norm in norms(q_model)])
    quantizing = [layer for layer in q_model.layers if isinstance(layer, QuantizeActivation)]
    for layer in quantizing:
        layer.trainable = False
    seen = [[tensor.numpy() for tensor in probe(images, training=True)] for images, _ in data[:2]]
    for layer in quantizing:
        layer.trainable = True
    for variable in q_model.variables:
        variable.assign(before[variable.name])

    assert tfqil.reestimate_norms(q_model, data, batches=2) is q_model
    for number, norm in enumerate(norms(q_model)):
        if norm.trainable:
            axes = (0, 1, 2)
            mean = np.mean([tensors[number].mean(axes) for tensors in seen], axis=0)
            variance = np.mean([tensors[number].var(axes, ddof=1) for tensors in seen], axis=0)
            np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-3, atol=1e-5)
    changed = {name for name, value in before.items() if not np.array_equal(value, variable_of(q_model, name))}
    assert changed == {
        variable.name
        for norm in norms(q_model)
        if norm.trainable
        for variable in (norm.moving_mean, norm.moving_variance)
    }
    assert [norm.momentum for norm in norms(q_model)] == momenta
    assert all(layer.trainable for layer in quantizing)


def variable_of(q_model: Any, name: str) -> np.ndarray:
    (found,) = (variable.numpy() for variable in q_model.variables if variable.name == name)
    return found


def test_a_network_that_has_lost_its_statistics_finds_them_again():
    q_model = quantized()
    images, labels = networks.digits(2000)

    def accuracy():
        return np.mean(q_model.predict(images, verbose=0).argmax(-1) == labels)

    lost = accuracy()
    tfqil.reestimate_norms(q_model, tf.data.Dataset.from_tensor_slices((images, labels)).batch(50))
    assert accuracy() > lost + 0.2


def test_statistics_are_those_of_what_inference_computes_with():
    """Relaxed weights and ranges that follow the data are those of training only."""
    images, _ = networks.digits(64, 8)
    config = tfqil.BCGDQuantizeConfig(1, 4, relax=True)
    exact, relaxed = (tfqil.quantize_model(networks.randomize_norms(networks.tiny()), config) for _ in range(2))
    relaxed.set_weights(exact.get_weights())
    for q_model in (exact, relaxed):
        tfqil.calibrate(q_model, images)
    set_lambda(relaxed, 0.5)
    for q_model in (exact, relaxed):
        tfqil.reestimate_norms(q_model, [images[:40], images[40:]])
    for one, other in zip(statistics(relaxed), statistics(exact), strict=True):
        np.testing.assert_array_equal(one, other)
    assert 0.5 in [float(variable) for variable in relaxed.variables if "relaxation" in variable.name]
    # The statistics of both batches, of other sizes, are those of what inference feeds to the first normalization.
    norm = norms(exact)[0]
    before = keras.Model(exact.input, norm.get_input_at(-1))
    seen = [before(images[part], training=False).numpy() for part in (slice(40), slice(40, 64))]
    expected = sum(len(part) * part.mean((0, 1, 2)) for part in seen) / 64
    np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-4, atol=1e-6)


def set_lambda(q_model: Any, strength: float) -> None:
    for variable in q_model.variables:
        if "relaxation" in variable.name:
            variable.assign(strength)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "Got a data set without a batch"),
        ([IMAGES[:8], IMAGES[:8, :5]], r"Got data of shape \(8, 5, 12, 1\), expected \(None, 12, 12, 1\)"),
        ([np.full_like(IMAGES[:8], np.nan)], "Got NaN or Inf in the data"),
    ],
    ids=["nothing", "shape", "nan"],
)
def test_bad_data_leave_everything_as_it_was(data, message):
    q_model = quantized()
    before = q_model.get_weights()
    with pytest.raises(ValueError, match=message):
        tfqil.reestimate_norms(q_model, data)
    assert all(np.array_equal(one, other) for one, other in zip(q_model.get_weights(), before, strict=True))


def test_broken_weights_are_named_and_their_statistics_are_not_taken():
    q_model = quantized()
    gamma = q_model.get_layer("stem_bn").gamma
    gamma.assign(tf.fill(gamma.shape, np.nan))
    before = q_model.get_weights()
    with pytest.raises(ValueError, match="Got NaN or Inf in an activation"):
        tfqil.reestimate_norms(q_model, [IMAGES])
    for one, other in zip(q_model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("batches", [0, True, 1.5])
def test_a_count_of_batches_that_is_none_is_refused(batches):
    with pytest.raises(ValueError, match=f"Got batches={batches}, expected a whole number of at least 1"):
        tfqil.reestimate_norms(quantized(), [IMAGES], batches=batches)
