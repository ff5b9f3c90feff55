"""Interrupts trainings in every way there is and goes on; run by `test_resuming` as a process of its own.

Determinism is of a whole process. Prints "equal" if every training ends bit for bit as one that was not interrupted.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks

EPOCHS = 4
# Two steps an epoch: the first batches still set the intervals when training goes on.
STEPS = 2
IMAGES, LABELS = networks.digits(32 * STEPS, 8)
CONFIGS = {
    "qil": tfqil.QILQuantizeConfig(3, 3, train_gamma=True, relax=True),
    "bcgd": tfqil.BCGDQuantizeConfig(1, 4, relax=True),
}


class LostMachineError(Exception):
    """Takes the place of a machine that is lost."""


def fresh(method: str, seed: int = 0) -> Any:
    """A compiled model, with all that has a state: momentum, a falling rate, blending, intervals, lambda."""
    keras.utils.set_random_seed(seed)
    q_model = tfqil.quantize_model(networks.tiny(), CONFIGS[method])
    rate = keras.optimizers.schedules.CosineDecay(0.01, EPOCHS * STEPS)
    optimizer = tfqil.optimizers.BlendedOptimizer(keras.optimizers.Adam(rate), q_model, 1e-3)
    q_model.compile(tfqil.optimizers.IntervalRateOptimizer(optimizer, 0.1), "sparse_categorical_crossentropy")
    q_model.optimizer.build(q_model.trainable_variables)
    return q_model


def fit(q_model: Any, first: int = 0, last: int = EPOCHS, callbacks: tuple[Any, ...] = ()) -> Any:
    """Trains some epochs; the batches are the same in each."""
    schedule = tfqil.callbacks.BinaryRelaxSchedule(1.0, 2.0, exact_from_epoch=3)
    q_model.fit(
        IMAGES, LABELS, batch_size=32, shuffle=False, verbose=0, initial_epoch=first, epochs=last,
        callbacks=[schedule, *callbacks],
    )  # fmt: skip
    return q_model


def by_file(method: str, folder: pathlib.Path, name: str) -> Any:
    """Saved after an epoch, loaded with the optimizer, and trained on."""
    fit(fresh(method), last=1).save(folder / name)
    return fit(tfqil.load_model(folder / name), first=1)


def by_checkpoint(method: str, folder: pathlib.Path) -> Any:
    """As training loops of one's own do."""
    q_model = fit(fresh(method), last=1)
    path = tf.train.Checkpoint(model=q_model, optimizer=q_model.optimizer).save(str(folder / "checkpoint"))
    again = fresh(method, seed=5)
    tf.train.Checkpoint(model=again, optimizer=again.optimizer).restore(path).assert_consumed()
    return fit(again, first=1)


def by_backup(method: str, folder: pathlib.Path) -> Any:
    """Lost in the third epoch; the schedule begins again with the training that is resumed."""

    def lose(batch: int, logs: Any) -> None:
        del batch, logs
        if int(q_model.optimizer.iterations) == 2 * STEPS + 1:
            raise LostMachineError

    backup = keras.callbacks.BackupAndRestore(str(folder / "backup"))
    q_model = fresh(method)
    try:
        fit(q_model, callbacks=(backup, keras.callbacks.LambdaCallback(on_train_batch_begin=lose)))
    except LostMachineError:
        return fit(fresh(method, seed=5), callbacks=(keras.callbacks.BackupAndRestore(str(folder / "backup")),))
    raise AssertionError("The training was not lost.")


def main(folder: str) -> None:
    """Compares all ways with the training that is not interrupted."""
    tf.config.experimental.enable_op_determinism()
    for method in CONFIGS:
        whole = fit(fresh(method))
        own = pathlib.Path(folder) / method
        own.mkdir()
        resumed = {
            ".keras": by_file(method, own, "model.keras"),
            ".h5": by_file(method, own, "model.h5"),
            "checkpoint": by_checkpoint(method, own),
            "BackupAndRestore": by_backup(method, own),
        }
        for way, q_model in resumed.items():
            for variables in ("variables", "optimizer.variables"):
                expected, found = (_values(model, variables) for model in (whole, q_model))
                assert len(expected) == len(found) > 20, (method, way, variables)
                for (name, value), (_, other) in zip(expected, found, strict=True):
                    assert np.array_equal(value, other), f"{method}, {way}: {name} is {other}, expected {value}"
    print("equal")


def _values(q_model: Any, which: str) -> list[tuple[str, np.ndarray]]:
    variables = q_model.variables if which == "variables" else q_model.optimizer.variables
    return [(variable.name, variable.numpy()) for variable in variables]


if __name__ == "__main__":
    main(sys.argv[1])
