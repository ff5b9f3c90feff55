"""Trained networks of the examples, their files, and one table of them."""

from __future__ import annotations

import dataclasses
import gzip
import pathlib
import statistics
import sys
from collections.abc import Sequence

import digits as digits_data
import numpy as np
import rich.console
import rich.table
import tensorflow as tf
import tf_keras as keras

import tfqil
from tfqil.export import runtime


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
    accepted: bool = False


def float_file(model: keras.Model) -> bytes:
    """The file of a float network."""
    return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def tfmot_file(model: keras.Model) -> bytes:
    """The file of a network that TFMOT has quantized, as its guide has it."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()


def float_row(model: keras.Model, data: digits_data.Digits) -> Row:
    return _row("float", model, float_file(model), data, "-")


def tfmot_row(model: keras.Model, data: digits_data.Digits) -> Row:
    return _row("TFMOT 8-bit", model, tfmot_file(model), data, "not checked")


def tfqil_row(
    q_model: keras.Model,
    name: str,
    data: digits_data.Digits,
    storage: str = "fastest",
    *,
    allow_float: bool = False,
    smallest: bool = True,
) -> Row:
    """Converts and verifies a network; `smallest` adds the bytes of that storage."""
    tflite = tfqil.convert(q_model, storage, allow_float=allow_float)
    report = tfqil.verify(q_model, tflite, data.test_images)
    parity = f"{report.differing_from_deployable} / {report.max_lsb} LSB / {100 * report.top1_agreement:.1f} %"
    row = dataclasses.replace(_row(name, q_model, tflite, data, parity), accepted=report.accepted)
    if not smallest:
        return row
    return dataclasses.replace(row, smallest_bytes=len(tfqil.convert(q_model, "smallest", allow_float=allow_float)))


def _row(name: str, model: keras.Model, tflite: bytes, data: digits_data.Digits, parity: str) -> Row:
    return Row(
        name=name,
        keras_accuracy=accuracy(model.predict(data.test_images, verbose=0), data.test_labels),
        file_accuracy=accuracy(runtime.run(tflite, [data.test_images])[0], data.test_labels),
        tflite=tflite,
        integer_only=tfqil.inspect(tflite).integer_only,
        parity=parity,
    )


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Percent of the examples whose largest logit is the right one."""
    return 100.0 * float(np.mean(logits.argmax(axis=-1) == labels))


def write_files(rows: Sequence[Row], folder: pathlib.Path) -> None:
    """Writes the file of each row, named after it."""
    for row in rows:
        (folder / f"{row.name.replace(' ', '_').replace('/', '-')}.tflite").write_bytes(row.tflite)


def console() -> rich.console.Console:
    """The terminal; a console wide enough for a table where the output goes elsewhere."""
    return rich.console.Console(width=None if sys.stdout.isatty() else 120)


def table(rows: Sequence[Row]) -> rich.table.Table:
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
