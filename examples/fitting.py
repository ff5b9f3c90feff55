"""Training with SGD, epoch by epoch, that goes on from the last checkpoint when it was stopped."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import data as image_data
import runs
import tensorflow as tf
import tf_keras as keras


def fit(
    model: keras.Model,
    data: image_data.ImageSet,
    epochs: int,
    folder: pathlib.Path,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[dict[str, float]]:
    """Trains a compiled model from the last checkpoint in a folder, and returns what each epoch logged."""
    folder.mkdir(parents=True, exist_ok=True)
    done = tf.Variable(0, dtype=tf.int64, trainable=False)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer, done=done)
    manager = tf.train.CheckpointManager(checkpoint, str(folder / "checkpoint"), max_to_keep=1)
    if manager.latest_checkpoint:
        checkpoint.restore(manager.latest_checkpoint)
    log = folder / "history.json"
    history = json.loads(log.read_text())[: int(done)] if log.is_file() else []
    for epoch in range(int(done), epochs):
        batches = data.train(epoch)
        logs = model.fit(batches, initial_epoch=epoch, epochs=epoch + 1, callbacks=list(callbacks), verbose=0).history
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
