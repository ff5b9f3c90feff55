"""Trains quantized models as one of several workers, or alone; run by `test_workers` as processes of their own.

    python two_workers.py RESULT [BACKUP [STEPS]]

With TF_CONFIG in the environment it is one of the workers that this names. Writes losses and variables to the file
RESULT, an archive of numpy. With a folder BACKUP a run that was stopped goes on; after STEPS steps the process kills
itself.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

EPOCHS = 3
BATCH = 32
EXAMPLES = 128


def main(result: str, backup: str | None = None, steps: str | None = None) -> None:
    """Trains models of several methods, one after the other."""
    # Before anything else of TensorFlow.
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if "TF_CONFIG" in os.environ else None
    tf.config.experimental.enable_op_determinism()
    import tf_keras as keras

    import tfqil
    from tests import networks

    class Killed(keras.callbacks.Callback):
        def __init__(self, after: int) -> None:
            super().__init__()
            self.left = after

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            del batch, logs
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1

    images, labels = networks.digits(EXAMPLES, 8)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)
    arrays: dict[str, np.ndarray] = {}
    methods = {
        "calibrated": (tfqil.QILQuantizeConfig(3, 3, train_gamma=True), True),
        "first batches": (tfqil.LBWQuantizeConfig(4, 8), False),
        "relaxed": (tfqil.BCGDQuantizeConfig(1, 4, relax=True), True),
    }
    for name, (config, calibrates) in methods.items():
        with strategy.scope() if strategy else contextlib.nullcontext():
            keras.utils.set_random_seed(0)
            model = tfqil.quantize_model(networks.tiny(), config)
            if calibrates:
                tfqil.calibrate(model, images)
            for layer in model.layers:
                # What a batch normalization computes in training is of the part of a batch that its worker has.
                layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
            optimizer = tfqil.optimizers.BlendedOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), model)
            model.compile(optimizer, "sparse_categorical_crossentropy")
            model.optimizer.build(model.trainable_variables)
        callbacks = [tfqil.callbacks.BinaryRelaxSchedule(1.0, 2.0, exact_from_epoch=2)] if name == "relaxed" else []
        if backup:
            callbacks.append(
                keras.callbacks.BackupAndRestore(str(pathlib.Path(backup) / name), delete_checkpoint=False)
            )
        if steps:
            callbacks.append(Killed(int(steps)))
        history = model.fit(data, epochs=EPOCHS, verbose=0, callbacks=callbacks).history
        arrays |= {f"{name}/{key}": np.array(values) for key, values in history.items()}
        arrays |= dict(variables(name, model))
    np.savez(result, **arrays)


def variables(name: str, model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The variables of a model by name and number."""
    for number, variable in enumerate(model.variables):
        yield f"{name}/{number} {variable.name}", variable.numpy()


if __name__ == "__main__":
    main(*sys.argv[1:])
