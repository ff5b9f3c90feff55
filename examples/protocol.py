"""The stages of the QIL protocol: a float network, then fewer bits step by step, each stage from the one before.

Every stage has a folder with a checkpoint after each epoch, the finished model, its file and a record. A training that
is killed goes on from the last checkpoint; since the batches of an epoch follow from its number (`data.py`), and each
stage starts from the model that the stage before has written, it ends as one that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import data as image_data
import devices
import fitting
import numpy as np
import recipes
import results
import runs
import tensorflow as tf
import tf_keras as keras

import tfqil
from tfqil.export import runtime

# The config of each method from the bits of weights and activations.
_CONFIGS: dict[str, Callable[[int, int], tfqil.LowBitQuantizeConfig]] = {
    "qil": tfqil.QILQuantizeConfig,
    "lbw": lambda weight_bits, activation_bits: tfqil.LBWQuantizeConfig(
        weight_bits, activation_bits, int8_exact=weight_bits > _LBW_BITS_IN_INT8
    ),
    "bcgd": tfqil.BCGDQuantizeConfig,
    "binary_relax": functools.partial(tfqil.BCGDQuantizeConfig, relax=True),
}
METHODS = tuple(_CONFIGS)
FLOAT = 32
# From more bits on, the powers of two of LBW are more than INT8 holds.
_LBW_BITS_IN_INT8 = 4
# Share of the epochs of phase II of BinaryRelax, as its authors have it.
_EXACT_SHARE = 0.25
# Images that the interpreter takes at a time, and that files are verified with.
_FILE_BATCH = 250


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How the float network, and then each stage with fewer bits, is trained: SGD with momentum.

    Attributes:
        batch: examples per step, over all devices.
        float_epochs: of the float network.
        epochs: of each other stage.
        float_rate: learning rate at the start of the float network.
        rate: the same of the other stages.
        float_drops: shares of the epochs after which the rate becomes a tenth; empty for a cosine to zero.
        drops: the same of the other stages.
        interval_rate: learning rate of what quantizers learn, as a share of that of the weights.
        weight_decay: factor of the L2 penalty, as papers give it, of everything but what quantizers learn.
        momentum: of SGD.
    """

    batch: int
    float_epochs: int
    epochs: int
    float_rate: float
    rate: float
    float_drops: tuple[float, ...] = ()
    drops: tuple[float, ...] = ()
    interval_rate: float = 0.01
    weight_decay: float = 1e-4
    momentum: float = 0.9

    def sgd(self, rate: float, drops: Sequence[float], steps: int) -> keras.optimizers.SGD:
        """The optimizer of a stage of some steps.

        In papers the penalty is part of the gradient, and momentum lets a constant gradient count 1 / (1 - momentum)
        times. The decay of Keras does not go through momentum, so that it takes the factor here.
        """
        decay = self.weight_decay / (1 - self.momentum)
        return keras.optimizers.SGD(fitting.rates(rate, drops, steps), momentum=self.momentum, weight_decay=decay)


# ImageNet: of QIL and its re-implementation; CIFAR-10: of the re-implementation. The others: found by trying.
SETTINGS = {
    "imagenet2012": Settings(
        batch=1024, float_epochs=120, epochs=90, float_rate=0.4, rate=0.04,
        float_drops=(30 / 120, 60 / 120, 85 / 120, 95 / 120, 105 / 120), drops=(20 / 90, 40 / 90, 60 / 90, 80 / 90),
    ),
    "cifar10": Settings(
        batch=128, float_epochs=200, epochs=150, float_rate=0.1, rate=0.01,
        float_drops=(100 / 200, 150 / 200, 180 / 200), drops=(60 / 150, 90 / 150, 120 / 150),
    ),
    "glyphs": Settings(batch=128, float_epochs=30, epochs=3, float_rate=0.05, rate=0.05, weight_decay=5e-5),
    "digits": Settings(batch=64, float_epochs=60, epochs=15, float_rate=0.05, rate=0.02, weight_decay=1e-5),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Widths:
    """The widths of a stage; 32 is float."""

    weights: int
    activations: int

    @property
    def name(self) -> str:
        """For folders and tables."""
        return "float" if self.is_float else f"{self.weights}_{self.activations}"

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.weights == FLOAT


def parse_schedule(texts: Sequence[str]) -> list[Widths]:
    """The stages of a schedule such as 32,5,4,3,2 or 32,4/8,2/8 (weights/activations).

    Raises:
        ValueError: no widths, a first stage that is not float, or one that goes up.
    """
    stages = []
    for text in texts:
        parts = text.split("/")
        if len(parts) > 2 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"Got the stage {text!r}, expected bits such as 4, or 4/8 for weights/activations.")
        stages.append(Widths(weights=int(parts[0]), activations=int(parts[-1])))
    if not stages or stages[0] != Widths(weights=FLOAT, activations=FLOAT):
        raise ValueError(f"Got the schedule {','.join(texts)}, expected one that begins with 32, the float network.")
    for before, after in itertools.pairwise(stages):
        if after.weights > before.weights or after.activations > before.activations or after == before:
            raise ValueError(
                f"Got the schedule {','.join(texts)}, which goes from {before.weights}/{before.activations} to "
                f"{after.weights}/{after.activations} bits, expected fewer bits in every stage."
            )
    return stages


def config_for(method: str, widths: Widths) -> tfqil.LowBitQuantizeConfig:
    """The config of one of `METHODS` at some widths.

    Raises:
        ValueError: widths that the method does not have.
    """
    return _CONFIGS[method](widths.weights, widths.activations)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that the result of a training follows from, and where it goes.

    Attributes:
        folder: one folder per stage is written there.
        data: the data set.
        network: makes the float network.
        method: one of `METHODS`.
        settings: how each stage is trained.
        scheme: makes the scheme of the first quantized stage from its config.
        rho: share of the blending of `bcgd`.
        intervals: what `with_bits` does with them between the stages.
        jit: compile the training step with XLA.
        strategy: spreads the training over devices, and perhaps over processes, of which each makes the same calls.
        storage: how the files store weights.
        float_folder: the stage of a float network that another run has trained; None for that of this run.
        prepare: what is done to a quantized model before it is trained, such as freezing some of it.
    """

    folder: pathlib.Path
    data: image_data.ImageSet
    network: Callable[[], keras.Model]
    method: str
    settings: Settings
    scheme: Callable[[tfqil.LowBitQuantizeConfig], tfqil.LowBitScheme] = tfqil.LowBitScheme
    rho: float = 1e-5
    intervals: str = "fit"
    jit: bool = False
    strategy: tf.distribute.Strategy = dataclasses.field(default_factory=tf.distribute.get_strategy)
    storage: str = "fastest"
    float_folder: pathlib.Path | None = None
    prepare: Callable[[keras.Model], Any] = lambda model: None

    def stage(self, widths: Widths, before: Widths | None) -> dict[str, Any]:
        """Trains a stage to its end, or returns its record if it is there.

        Raises:
            runs.UnusableError: what an earlier run left is damaged, or of another network or number of classes.
        """
        folder = self.folder / widths.name
        record = folder / "record.json"
        if record.is_file():
            return dict(runs.read_json(record))
        started = time.perf_counter()
        with self.strategy.scope():
            model = self._start(widths, before)
            epochs = self.settings.float_epochs if widths.is_float else self.settings.epochs
            self._compile(model, widths, epochs)
        callbacks = [] if widths.is_float else self._callbacks(epochs)
        history = fitting.fit(model, self.data.train, epochs, folder, callbacks)
        fitting.save(model, folder)
        if devices.is_chief(self.strategy):
            if self.strategy.num_replicas_in_sync > 1:
                # To read a variable of several processes takes them all.
                model = tfqil.load_model(folder / "model.keras", compile=False)
            if self.method == "lbw" and not widths.is_float:
                # A step that moves to the next power of two late in training leaves statistics of another network.
                fitting.save(tfqil.reestimate_norms(model, self.data.train(epochs)), folder)
            self._finish(model, widths, history, folder, time.perf_counter() - started)
        devices.wait(self.strategy)
        return dict(runs.read_json(record))

    def _start(self, widths: Widths, before: Widths | None) -> keras.Model:
        """The model of a stage before its first step."""
        if before is None:
            return self.network()
        folder = (self.float_folder if before.is_float else None) or self.folder / before.name
        previous = tfqil.load_model(folder / "model.keras", compile=False)
        if previous.output_shape[-1] != self.data.classes:
            raise runs.UnusableError(
                f"Got {folder / 'model.keras'} of {previous.output_shape[-1]} classes for {self.data.name} of "
                f"{self.data.classes}, expected the same number: choose another --directory."
            )
        if before.is_float:
            model = tfqil.quantize_model(previous, self.scheme(config_for(self.method, widths)))
        else:
            model = tfqil.with_bits(previous, widths.weights, widths.activations, intervals=self.intervals)
        model = tfqil.calibrate(model, self.data.train(0))
        self.prepare(model)
        return model

    def _compile(self, model: keras.Model, widths: Widths, epochs: int) -> None:
        settings = self.settings
        rate, drops = (
            (settings.float_rate, settings.float_drops) if widths.is_float else (settings.rate, settings.drops)
        )
        steps = epochs * (self.data.train_examples // settings.batch)
        optimizer = settings.sgd(rate, drops, steps)
        if not widths.is_float:
            # Decay would draw intervals to nothing; their loss is that of the task.
            optimizer.exclude_from_weight_decay(var_names=[r"_(center|half_width|gamma|step):0$"])
            if self.method == "bcgd":
                optimizer = tfqil.optimizers.BlendedOptimizer(optimizer, model, self.rho)
            optimizer = tfqil.optimizers.IntervalRateOptimizer(optimizer, settings.interval_rate)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # With all variables there, Keras traces the step once; a metric by name would make its own in a first trace.
        accuracy = keras.metrics.SparseCategoricalAccuracy("accuracy")
        model.compile(optimizer, loss, metrics=[accuracy], jit_compile=self.jit)
        model.optimizer.build(model.trainable_variables)

    def _in_float32(self, model: keras.Model) -> keras.Model:
        """The float network with the type of the computation that a file has; mixed precision is for training."""
        policy = keras.mixed_precision.global_policy()
        keras.mixed_precision.set_global_policy("float32")
        try:
            twin = self.network()
        finally:
            keras.mixed_precision.set_global_policy(policy)
        twin.set_weights(model.get_weights())
        return twin

    def _callbacks(self, epochs: int) -> list[keras.callbacks.Callback]:
        return [recipes.relaxation_schedule(epochs, _EXACT_SHARE)] if self.method == "binary_relax" else []

    def _finish(
        self, model: keras.Model, widths: Widths, history: list[dict[str, float]], folder: pathlib.Path, seconds: float
    ) -> None:
        """Tests, converts and verifies a trained model, and writes its file and its record."""
        record: dict[str, Any] = {
            "stage": widths.name,
            "method": None if widths.is_float else self.method,
            "epochs": len(history),
            "seconds": seconds,
            "training_accuracy": history[-1]["accuracy"],
            "keras_accuracy": self.data.test_accuracy(model.predict_on_batch),
        }
        if widths.is_float:
            tflite = results.float_file(self._in_float32(model))
        else:
            tflite = tfqil.convert(model, self.storage)
            images, _ = next(self.data.test.unbatch().batch(_FILE_BATCH).as_numpy_iterator())
            report = tfqil.verify(model, tflite, images)
            record["differing_from_deployable"] = report.differing_from_deployable
        (folder / "model.tflite").write_bytes(tflite)
        record["file_accuracy"] = self.data.test_accuracy(functools.partial(run_file, tflite))
        record["bytes"] = len(tflite)
        record["integer_only"] = tfqil.inspect(tflite).integer_only
        fitting.finish(folder, record)


def run_file(tflite: bytes, images: np.ndarray) -> np.ndarray:
    """The first output of a file for many images."""
    starts = range(0, len(images), _FILE_BATCH)
    return np.concatenate([runtime.run(tflite, [images[start : start + _FILE_BATCH]])[0] for start in starts])
