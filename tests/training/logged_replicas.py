"""Logs a training on two replicas and on one; run by `test_interval_log` as a process of its own.

The devices must be there before TensorFlow starts. Prints "equal" if both logs have the same tags and steps, and alike
measures of what comes before the batch normalizations.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
from typing import Any

import numpy as np
import tensorflow as tf


def main(folder: str) -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    import tf_keras as keras

    import tfqil
    from tests import networks
    from tests.training.event_files import scalars

    images, labels = networks.digits(64, 8)

    def logged(scope: Any, name: str) -> dict[str, dict[int, float]]:
        with scope:
            keras.utils.set_random_seed(1)
            q_model = tfqil.quantize_model(networks.tiny(), tfqil.QILQuantizeConfig(3, 3, relax=True))
            tfqil.calibrate(q_model, images)
            q_model.compile(keras.optimizers.SGD(1e-6), "sparse_categorical_crossentropy")
        path = pathlib.Path(folder) / name
        schedule = tfqil.callbacks.BinaryRelaxSchedule(exact_from_epoch=1)
        logger = tfqil.callbacks.IntervalLogger(path, samples=images[:16])
        q_model.fit(images, labels, batch_size=32, epochs=2, shuffle=False, verbose=0, callbacks=[schedule, logger])
        return scalars(path)

    one = logged(contextlib.nullcontext(), "one")
    two = logged(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope(), "two")
    assert set(one) == set(two) and len(one) > 40, set(one) ^ set(two)
    for tag, values in one.items():
        assert list(values) == list(two[tag]) == [0, 1], tag
        if "stem/" in tag and "lambda" not in tag:  # Behind it, what batch normalizations of replicas see differs.
            np.testing.assert_allclose(two[tag][0], values[0], rtol=0.05, atol=0.01, err_msg=tag)
    lambdas = [values for tag, values in two.items() if tag.endswith("/lambda")]
    assert lambdas and all(values == {0: 1.0, 1: np.inf} for values in lambdas), lambdas
    print("equal")


if __name__ == "__main__":
    main(sys.argv[1])
