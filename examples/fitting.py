"""Training with SGD, epoch by epoch, that goes on from the last checkpoint when it was stopped."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import devices
import runs
import tensorflow as tf
import tf_keras as keras


def fit(
    model: keras.Model,
    train: Callable[..., tf.data.Dataset],
    epochs: int,
    folder: pathlib.Path,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[dict[str, float]]:
    """Trains a compiled model from the last checkpoint in a folder, and returns what each epoch logged.

    Args:
        model: compiled, with the variables of its optimizer built.
        train: the batches of an epoch from its number, and for several devices a part of them (`devices.batches`).
        epochs: how many there are in all.
        folder: of the checkpoint and the log.
        callbacks: of `model.fit`.

    Raises:
        runs.UnusableError: the checkpoint is damaged, or of another network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    strategy = model.distribute_strategy
    done = tf.Variable(0, dtype=tf.int64, trainable=False)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer, done=done)
    latest = tf.train.latest_checkpoint(str(folder / "checkpoint"))
    if latest:
        try:
            checkpoint.restore(latest).assert_consumed()
        except (AssertionError, ValueError, IndexError, tf.errors.OpError):  # All of them are seen.
            raise runs.UnusableError(
                f"Got {latest}, which is damaged or of another network, expected the last epoch of this one: delete "
                f"{folder}, and it is trained again."
            ) from None
    log = folder / "history.json"
    history = runs.read_json(log)[: int(done)] if log.is_file() else []
    with devices.written_by_chief(strategy, folder) as written:
        manager = tf.train.CheckpointManager(checkpoint, str(written / "checkpoint"), max_to_keep=1)
        for epoch in range(int(done), epochs):
            batches, steps = devices.batches(strategy, train, epoch)
            logs = model.fit(
                batches,
                initial_epoch=epoch,
                epochs=epoch + 1,
                steps_per_epoch=steps,
                callbacks=list(callbacks),
                verbose=0,
            ).history
            history.append({name: float(values[0]) for name, values in logs.items()})
            runs.write_json(written / "history.json", history)
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
    with devices.written_by_chief(model.distribute_strategy, folder) as written:
        model.save(written / "unfinished.keras")
        (written / "unfinished.keras").replace(written / "model.keras")


def finish(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """Notes that a stage is done; from then on its checkpoint is of no use."""
    runs.write_json(folder / "record.json", record)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
