"""Trains quantized models on two replicas; run by `test_replicas` as a process of its own.

The devices must be there before TensorFlow starts. Prints "equal" if all kernels and grids of both replicas are equal,
and a model from outside of the scope is refused.
"""

import numpy as np
import pytest
import tensorflow as tf


def main() -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    import tfqil
    from tests import networks

    images, labels = networks.digits(64, 8)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for config in (tfqil.QILQuantizeConfig(3, 3, train_gamma=True, relax=True), tfqil.BCGDQuantizeConfig(1, 4)):
        with strategy.scope():
            q_model = tfqil.quantize_model(networks.tiny(), config)
            q_model.compile(tfqil.optimizers.BlendedOptimizer("sgd", q_model), "sparse_categorical_crossentropy")
        q_model.fit(images, labels, batch_size=16, verbose=0)
        for variable in q_model.trainable_variables:
            first, second = (copy.numpy() for copy in variable.values)
            assert np.array_equal(first, second), variable.name
        for layer in q_model.layers:
            counter = getattr(layer, "quantizer_variables", {}).get("observed_batches")
            assert counter is None or int(counter.numpy()) == 4, layer.name
    q_model = tfqil.quantize_model(networks.tiny(), tfqil.QILQuantizeConfig(4, 4))
    q_model.compile("sgd", "sparse_categorical_crossentropy")
    message = "which was quantized outside of the scope of the MirroredStrategy that trains it"
    with strategy.scope(), pytest.raises(ValueError, match=message):
        q_model.fit(images, labels, batch_size=16, verbose=0)
    print("equal")


if __name__ == "__main__":
    main()
