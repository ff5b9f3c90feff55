"""Trains quantized models on two replicas; run by `test_replicas` as a process of its own.

The devices must be there before TensorFlow starts. Prints "equal" if all kernels and grids of both replicas are equal,
and a model from outside of the scope and one compiled with XLA are refused.
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
    with strategy.scope():
        q_model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    message = "Got jit_compile=True in a MirroredStrategy of 2 CPUs, expected a step without XLA"
    for step in (q_model.fit, q_model.evaluate):
        with pytest.raises(ValueError, match=message):
            step(images, labels, batch_size=16, verbose=0)
    require_silent_replicas_do_not_count(strategy)
    q_model = tfqil.quantize_model(networks.tiny(), tfqil.QILQuantizeConfig(4, 4))
    q_model.compile("sgd", "sparse_categorical_crossentropy")
    message = "which was quantized outside of the scope of the MirroredStrategy that trains it"
    with strategy.scope(), pytest.raises(ValueError, match=message):
        q_model.fit(images, labels, batch_size=16, verbose=0)
    print("equal")


def require_silent_replicas_do_not_count(strategy: tf.distribute.Strategy) -> None:
    """Raises unless an interval is that of the replica whose part of the first batches has more than zeros."""
    from tests.quantizers.holder import Holder
    from tfqil import quantizers

    data = np.random.default_rng(0).uniform(0, 0.1, (16, 4)).astype(np.float32)
    for silent in (0, 1):
        alone = Holder(quantizers.QILActivationQuantizer(bits=4))
        with strategy.scope():
            shared = Holder(quantizers.QILActivationQuantizer(bits=4))

        def part(context: tf.distribute.ReplicaContext) -> tf.Tensor:
            return tf.constant(0 * data if context.replica_id_in_sync_group == silent else data)  # noqa: B023

        inputs = strategy.experimental_distribute_values_from_function(part)
        for _ in range(2):
            strategy.run(tf.function(lambda x: shared(x, training=True)), (inputs,))  # noqa: B023
            alone(tf.constant(data), training=True)
        for name, value in alone.values().items():
            for copy in shared.variables_of_quantizer[name].values:
                np.testing.assert_allclose(copy.numpy(), value, rtol=1e-6, err_msg=f"replica {silent} silent: {name}")


if __name__ == "__main__":
    main()
