"""Trains one network on one device and on two; run by `test_blended_optimizer` as a process of its own.

The devices must be there before TensorFlow starts. Writes all variables to the file that is named, as an archive of
numpy: those of one device, with and without blending, and those of each of two replicas.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import tensorflow as tf


def trained_on(strategy: Any, rho: float) -> Any:
    """A network with projected, learned and relaxed weights after three epochs, batches shared among replicas."""
    import tf_keras as keras

    from tests.training import two_layers
    from tfqil import callbacks, optimizers, quantizers

    with strategy.scope():
        model = two_layers.network(
            quantizers.BinaryWeightQuantizer(per_channel=True),
            quantizers.QILWeightQuantizer(bits=3),
            quantizers.BinaryRelax(quantizers.TernaryWeightQuantizer()),
        )
        optimizer = optimizers.BlendedOptimizer(keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3), model, rho)
        return two_layers.trained(
            model, optimizer, epochs=3, callbacks=[callbacks.BinaryRelaxSchedule(exact_from_epoch=1)]
        )


def copies(variable: Any, replicas: int) -> list[np.ndarray]:
    """What each replica holds of a variable."""
    values = getattr(variable, "values", (variable,) * replicas)
    return [value.numpy() for value in values]


def main(path: str) -> None:
    """Trains twice and writes the weights."""
    cpus = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
    alone = trained_on(tf.distribute.get_strategy(), 0.01)
    unblended = trained_on(tf.distribute.get_strategy(), 0.0)
    mirrored = trained_on(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), 0.01)
    arrays = {}
    for number, variables in enumerate(zip(alone.variables, unblended.variables, mirrored.variables, strict=True)):
        arrays[f"alone_{number}"], arrays[f"unblended_{number}"] = (variable.numpy() for variable in variables[:2])
        arrays[f"first_{number}"], arrays[f"second_{number}"] = copies(variables[2], 2)
    np.savez(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
