"""Training in the examples: one network after the other, under a progress display."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import digits as digits_data
import rich.progress
import tf_keras as keras


class Trainer:
    """Fits networks with a cosine learning rate on one data set."""

    def __init__(self, data: digits_data.Digits, progress: rich.progress.Progress, seed: int) -> None:
        self._batches = digits_data.training_batches(data, seed=seed)
        self._progress = progress

    def fit(
        self,
        model: keras.Model,
        name: str,
        epochs: int,
        learning_rate: float,
        *,
        optimizer: Callable[..., keras.optimizers.Optimizer] = keras.optimizers.Adam,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        **arguments,
    ) -> keras.callbacks.History:
        """Trains a model; `optimizer` makes one from the learning rate, `arguments` go to `model.fit`."""
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * len(self._batches))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # With all variables there, Keras traces the step once; a metric by name would make its own in a first trace.
        model.compile(optimizer(schedule), loss, metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")])
        model.optimizer.build(model.trainable_variables)
        task = self._progress.add_task(name, total=epochs)
        advance = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: self._progress.advance(task))
        return model.fit(self._batches, epochs=epochs, verbose=0, callbacks=[*callbacks, advance], **arguments)


def progress_display() -> rich.progress.Progress:
    """One line per network: name, bar, epochs, time."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description:12}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        transient=True,
    )
