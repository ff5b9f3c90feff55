"""Quantized models train in half precision, the 8-bit parts included, and give the files of their float32 twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tfqil.scheme import QuantizedLayer

IMAGES, LABELS = networks.digits(128)
CONFIGS = {
    "qil": tfqil.QILQuantizeConfig(3, 3, train_gamma=True),
    "lbw": tfqil.LBWQuantizeConfig(4, 8),
    "bcgd": tfqil.BCGDQuantizeConfig(1, 4, relax=True),
}
# Of outputs, in their standard deviations: what a half type rounds moves codes of 3 bits by whole levels.
LARGEST_DISTANCE = {"mixed_bfloat16": 0.15, "mixed_float16": 0.04}
FAMILIES = {"qil": "residual", "lbw": "plain", "bcgd": "separable"}


def build(method: str, policy: str) -> Any:
    """A trained network whose layers compute with a policy, quantized."""
    family = FAMILIES[method]
    weights = networks.trained(family).get_weights()
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = networks.FAMILIES[family]()
        model.set_weights(weights)
        return tfqil.quantize_model(model, CONFIGS[method])
    finally:
        keras.mixed_precision.set_global_policy("float32")


def trained(q_model: Any, policy: str, *, jit: bool) -> list[float]:
    """The losses of four epochs; float16 with a loss scale around the optimizer."""
    optimizer: Any = tfqil.optimizers.BlendedOptimizer(keras.optimizers.Adam(3e-3), q_model)
    if policy == "mixed_float16":
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=2.0**10)
    keras.utils.set_random_seed(0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=q_model.name != "separable")
    q_model.compile(optimizer, loss, jit_compile=jit)
    optimizer.build(q_model.trainable_variables)  # Else Keras traces the step twice.
    return q_model.fit(IMAGES, LABELS, batch_size=32, epochs=4, verbose=0).history["loss"]


@pytest.mark.parametrize(
    ("method", "policy", "jit"),
    [
        ("qil", "mixed_bfloat16", False),
        ("qil", "mixed_float16", True),
        ("lbw", "mixed_float16", False),
        ("lbw", "mixed_bfloat16", True),
        ("bcgd", "mixed_float16", False),
        ("bcgd", "mixed_bfloat16", True),
    ],
)
def test_a_model_of_half_precision_trains_and_converts_as_its_float32_twin(method, policy, jit):
    q_model = build(method, policy)
    tfqil.calibrate(q_model, IMAGES)
    before = q_model.get_weights()
    losses = trained(q_model, policy, jit=jit)

    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0], losses
    computing = {layer.layer.compute_dtype for layer in q_model.layers if isinstance(layer, QuantizedLayer)}
    assert computing == {policy.removeprefix("mixed_")}
    assert {variable.dtype for variable in q_model.variables} == {tf.float32, tf.int32}
    unmoved = [
        variable.name
        for variable, old in zip(q_model.variables, before, strict=True)
        if variable.trainable and np.array_equal(variable.numpy(), old)
    ]
    assert not unmoved, unmoved

    twin = build(method, "float32")
    twin.set_weights(q_model.get_weights())
    tflite = tfqil.convert(q_model)
    assert tflite == tfqil.convert(twin)
    report = tfqil.verify(q_model, tflite, IMAGES)
    assert report.integer_only and report.differing_from_deployable == 0
    outputs, expected = (model.predict(IMAGES, verbose=0).astype(np.float32) for model in (q_model, twin))
    assert np.mean(np.abs(outputs - expected)) < LARGEST_DISTANCE[policy] * np.std(expected)
