"""Trains with an interval rate on two replicas and on one; run by `test_interval_rate` as a process of its own.

The devices must be there before TensorFlow starts. Prints "equal" if both take the same steps and intervals
moved.
"""

import contextlib

import numpy as np
import tensorflow as tf


def main() -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    import tf_keras as keras

    import tfqil
    from tests import networks
    from tfqil import _host

    images, labels = networks.digits(64)

    def trained(scope):
        with scope:
            keras.utils.set_random_seed(1)
            q_model = tfqil.calibrate(tfqil.quantize_model(networks.dense(), tfqil.QILQuantizeConfig(8, 8)), images)
            optimizer = tfqil.optimizers.IntervalRateOptimizer(keras.optimizers.SGD(0.05), 0.5)
            for layer in q_model.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.trainable = False  # Its statistics are those of a replica.
            q_model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        before = [variable.numpy() for variable in q_model.trainable_variables]
        q_model.fit(images, labels, batch_size=32, shuffle=False, verbose=0)
        return q_model, before

    one, before = trained(contextlib.nullcontext())
    two, _ = trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope())
    moved = 0
    for variable, other, start in zip(one.trainable_variables, two.trainable_variables, before, strict=True):
        step, other_step = variable.numpy() - start, other.numpy() - start
        # Sums of half batches round otherwise, and a value on the edge of two levels may fall to the other: 8 bits, so
        # that a level is little.
        apart = np.linalg.norm(other_step - step)
        assert apart <= 0.1 * np.linalg.norm(step), (variable.name, apart, np.linalg.norm(step))
        moved += _host.is_interval(variable) and bool(np.any(step))
    assert moved > 2, moved
    print("equal")


if __name__ == "__main__":
    main()
