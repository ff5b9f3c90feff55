"""From a float Keras model to 8-, 4-, 3- and 2-bit integer files, on handwritten digits.

    python examples/quickstart.py

Trains a small residual network in float, then quantizes it with TFMOT's 8 bits and with QIL at 8/8, 4/4, 3/3 and 2/2
bits (weights/activations), each starting from the one before. Converts and verifies each, and prints one table. Writes
the files and a figure of the learned intervals to --output.
"""

from __future__ import annotations

import dataclasses
import gzip
import pathlib
import statistics
import time
import warnings

import digits as digits_data
import interval_figure
import numpy as np
import rich.console
import rich.progress
import rich.table
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl import app, flags, logging

import tfqil
from tfqil.export import runtime

_OUTPUT = flags.DEFINE_string("output", "examples/output", "Folder for the files and the figure.")
_FLOAT_EPOCHS = flags.DEFINE_integer("float_epochs", 60, "Epochs of the float network.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 12, "Epochs of each quantized network.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 32, "Channels of the first block.", lower_bound=4)
_STORAGE = flags.DEFINE_enum("storage", "fastest", ["fastest", "smallest", "int8"], "How the files store weights.")
_SEED = flags.DEFINE_integer("seed", 1, "Seed of weights and batches.")

# Fine-tuning starts from a good network: the fewer the bits, the farther it has to go.
LEARNING_RATES = {8: 3e-4, 4: 3e-4, 3: 5e-4, 2: 1e-3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One trained network and its file."""

    name: str
    keras_accuracy: float
    file_accuracy: float
    tflite: bytes
    integer_only: bool
    parity: str
    smallest_bytes: int | None = None


def main(_: list[str]) -> None:
    started = time.perf_counter()
    logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")  # TFMOT's row.
    keras.utils.set_random_seed(_SEED.value)
    data = digits_data.load_digits()
    output = pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)

    with rich.progress.Progress(*_columns(), transient=True) as progress:
        trainer = Trainer(data, progress)
        network = digits_data.residual_network(_WIDTH.value)
        trainer.fit(network, "float", _FLOAT_EPOCHS.value, 3e-3)
        rows = [float_row(network, data)]

        eight_bit = tfmot.quantization.keras.quantize_model(network)
        trainer.fit(eight_bit, "TFMOT 8-bit", _EPOCHS.value, LEARNING_RATES[8])
        rows.append(tfmot_row(eight_bit, data))

        previous = network
        for bits in LEARNING_RATES:
            q_model = next_stage(network, previous, tfqil.QILQuantizeConfig(bits, bits))
            tfqil.calibrate(q_model, data.train_images)
            trainer.fit(q_model, f"QIL {bits}/{bits}", _EPOCHS.value, LEARNING_RATES[bits])
            rows.append(tfqil_row(q_model, f"QIL {bits}/{bits}", data))
            previous = q_model

    for row in rows:
        (output / f"{row.name.replace(' ', '_').replace('/', '-')}.tflite").write_bytes(row.tflite)
    figure = interval_figure.draw(previous, output / "intervals.png")
    console = rich.console.Console()
    console.print(table(rows))
    console.print(f"Files and figure: {output}, {figure.name}. {time.perf_counter() - started:.0f} s in all.")


class Trainer:
    """Fits one network after the other, with Adam and a cosine learning rate, under a progress display."""

    def __init__(self, data: digits_data.Digits, progress: rich.progress.Progress) -> None:
        self._batches = digits_data.training_batches(data, seed=_SEED.value)
        self._progress = progress

    def fit(self, model: keras.Model, name: str, epochs: int, learning_rate: float) -> None:
        steps = epochs * len(self._batches)
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(schedule), loss)
        task = self._progress.add_task(name, total=epochs)
        advance = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: self._progress.advance(task))
        model.fit(self._batches, epochs=epochs, verbose=0, callbacks=[advance])


def next_stage(network: keras.Model, previous: keras.Model, config: tfqil.QILQuantizeConfig) -> keras.Model:
    """Quantizes the network with the weights of the stage before; intervals start anew from them."""
    start = keras.models.clone_model(network)
    for layer in start.layers:
        wrappers = [other for other in previous.layers if other.name == f"quant_{layer.name}"]
        if layer.weights:
            layer.set_weights((wrappers[0].layer if wrappers else previous.get_layer(layer.name)).get_weights())
    return tfqil.quantize_model(start, config)


def float_row(model: keras.Model, data: digits_data.Digits) -> Row:
    tflite = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    return _row("float", model, tflite, data, "-")


def tfmot_row(model: keras.Model, data: digits_data.Digits) -> Row:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return _row("TFMOT 8-bit", model, converter.convert(), data, "not checked")


def tfqil_row(q_model: keras.Model, name: str, data: digits_data.Digits) -> Row:
    tflite = tfqil.convert(q_model, _STORAGE.value)
    report = tfqil.verify(q_model, tflite, data.test_images)
    parity = f"{report.differing_from_deployable} / {report.max_lsb} LSB / {100 * report.top1_agreement:.1f} %"
    row = _row(name, q_model, tflite, data, parity)
    return dataclasses.replace(row, smallest_bytes=len(tfqil.convert(q_model, "smallest")))


def _row(name: str, model: keras.Model, tflite: bytes, data: digits_data.Digits, parity: str) -> Row:
    return Row(
        name=name,
        keras_accuracy=_accuracy(model.predict(data.test_images, verbose=0), data),
        file_accuracy=_accuracy(runtime.run(tflite, [data.test_images])[0], data),
        tflite=tflite,
        integer_only=tfqil.inspect(tflite).integer_only,
        parity=parity,
    )


def _accuracy(logits: np.ndarray, data: digits_data.Digits) -> float:
    return 100.0 * float(np.mean(logits.argmax(axis=-1) == data.test_labels))


def table(rows: list[Row]) -> rich.table.Table:
    """One row per network. The latency is the median of alternating runs of batch 1 on one thread."""
    times = runtime.benchmark({row.name: row.tflite for row in rows}, repeats=2000)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    result = rich.table.Table(
        title="Digits, 899 test images",
        caption="latency: relative to float. smallest: bytes with storage='smallest'. parity: outputs that differ from "
        "the integer model / largest difference from Keras / same class as Keras.",
    )
    headings = ("network", "Keras %", "file %", "bytes", "gzipped", "smallest", "latency", "integer-only", "parity")
    for heading in headings:
        result.add_column(heading, justify="left" if heading == "network" else "right")
    for row in rows:
        result.add_row(
            row.name,
            f"{row.keras_accuracy:.2f}",
            f"{row.file_accuracy:.2f}",
            f"{len(row.tflite):,}",
            f"{len(gzip.compress(row.tflite, mtime=0)):,}",
            f"{row.smallest_bytes:,}" if row.smallest_bytes else "-",
            f"{medians[row.name] / medians['float']:.2f}x",
            "yes" if row.integer_only else "no",
            row.parity,
        )
    return result


def _columns() -> tuple[rich.progress.ProgressColumn, ...]:
    return (
        rich.progress.TextColumn("{task.description:12}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )


if __name__ == "__main__":
    app.run(main)
