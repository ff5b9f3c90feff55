"""Whole quantized models, activations included, train on several replicas and in mixed precision."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tf_keras as keras

import tfqil
from tests import networks


@pytest.mark.slow
def test_two_replicas_set_the_same_grids_and_train_the_same_weights():
    script = pathlib.Path(__file__).with_name("two_replicas.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("equal"), done.stderr[-3000:]


@pytest.mark.parametrize(
    "config",
    [tfqil.QILQuantizeConfig(3, 3, train_gamma=True), tfqil.BCGDQuantizeConfig(1, 4), tfqil.LBWQuantizeConfig(4, 8)],
    ids=lambda config: type(config).__name__,
)
def test_a_model_of_a_mixed_policy_calibrates_trains_and_converts(config):
    images, labels = networks.digits(64, 8)
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        inputs = keras.Input((8, 8, 1))
        x = networks.norm_relu(keras.layers.Conv2D(4, 3, strides=2, name="stem")(inputs), "stem")
        x = networks.norm_relu(keras.layers.Conv2D(8, 3, name="middle")(x), "middle")
        x = keras.layers.Dense(10, name="last")(keras.layers.Flatten()(x))
        q_model = tfqil.quantize_model(keras.Model(inputs, x), config)
        tfqil.calibrate(q_model, images)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        q_model.compile(tfqil.optimizers.BlendedOptimizer("sgd", q_model), loss)
        losses = q_model.fit(images, labels, epochs=2, verbose=0).history["loss"]
        tflite = tfqil.convert(q_model)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert np.all(np.isfinite(losses))
    report = tfqil.verify(q_model, tflite, images)
    assert report.integer_only and report.differing_from_deployable == 0
