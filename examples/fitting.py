"""Training with SGD, epoch by epoch, that goes on from the last checkpoint when it was stopped."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import runs
import tensorflow as tf
import tf_keras as keras


def fit(
    model: keras.Model,
    train: Callable[[int], tf.data.Dataset],
    epochs: int,
    folder: pathlib.Path,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[dict[str, float]]:
    """Trains a compiled model from the last checkpoint in a folder, and returns what each epoch logged.

    Args:
        model: compiled, with the variables of its optimizer built.
        train: the batches of an epoch from its number.
        epochs: how many there are in all.
        folder: of the checkpoint and the log.
        callbacks: of `model.fit`.

    Raises:
        runs.UnusableError: the checkpoint is damaged, or of another network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = tf.Variable(0, dtype=tf.int64, trainable=False)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer, done=done)
    manager = tf.train.CheckpointManager(checkpoint, str(folder / "checkpoint"), max_to_keep=1)
    if manager.latest_checkpoint:
        try:
            checkpoint.restore(manager.latest_checkpoint).assert_consumed()
        except (AssertionError, ValueError, IndexError, tf.errors.OpError):  # All of them are seen.
            raise runs.UnusableError(
                f"Got {manager.latest_checkpoint}, which is damaged or of another network, expected the last epoch of "
                f"this one: delete {folder}, and it is trained again."
            ) from None
    log = folder / "history.json"
    history = runs.read_json(log)[: int(done)] if log.is_file() else []
    for epoch in range(int(done), epochs):
        logs = model.fit(
            train(epoch), initial_epoch=epoch, epochs=epoch + 1, callbacks=list(callbacks), verbose=0
        ).history
        history.append({name: float(values[0]) for name, values in logs.items()})
        runs.write_json(log, history)
        done.assign(epoch + 1)
        manager.save()
    return history


def rates(rate: float, drops: Sequence[float], steps: int) -> Any:
    """The learning rate over the steps of a stage: a tenth after each share of them, or a cosine to zero."""
    schedules = keras.optimizers.schedules
    if not drops:
        return schedules.CosineDecay(rate, steps)
    boundaries = [round(share * steps) for share in drops]
    return schedules.PiecewiseConstantDecay(boundaries, [rate * 0.1**power for power in range(len(drops) + 1)])


def save(model: keras.Model, folder: pathlib.Path) -> None:
    """Writes `model.keras` as a whole or not at all."""
    model.save(folder / "unfinished.keras")
    (folder / "unfinished.keras").replace(folder / "model.keras")


def finish(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """Notes that a stage is done; from then on its checkpoint is of no use."""
    runs.write_json(folder / "record.json", record)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
