"""Time and memory of quantizing and converting: tfqil against TFMOT's own 8-bit path, in one run.

    python benchmarks/conversion_cost.py [--repeats=3] [--output=benchmarks/output/conversion_cost.json]

The two take turns, each time in a process of its own: seconds from the float model to the bytes of the file, without
imports and without building the float model, and the peak of the process's memory. TFMOT's ranges come from one
training batch of the images that tfqil calibrates on.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
import time
import warnings

import architectures
import numpy as np
import processes
import rich.console
import rich.table
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl import app, flags, logging

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import results
import runs

import tfqil

_ARCHITECTURE = flags.DEFINE_string("architecture", "mobilenet_v2", "Name in benchmarks/architectures.py.")
_SIZE = flags.DEFINE_integer("size", 96, "Height and width of images.", lower_bound=32)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Processes per way.", lower_bound=1)
_CHECK = flags.DEFINE_bool("check", True, "Let tfqil check its file on random inputs; TFMOT checks nothing.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

_WAYS = ("TFMOT", "tfqil")
_IMAGES = 32
# What tfqil may cost at most, as a multiple of TFMOT.
_BARS = {"seconds": 2.5, "peak_megabytes": 1.3}


def main(_: list[str]) -> None:
    measured: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
    for _round in range(_REPEATS.value):
        for way in _WAYS:
            measured[way].append(processes.call(_measure, way, _ARCHITECTURE.value, _SIZE.value, _CHECK.value))
    result = summarize(measured)
    rich.console.Console().print(table(result))
    if _OUTPUT.value:
        runs.write_json(pathlib.Path(_OUTPUT.value), result)


def summarize(measured: dict[str, list[dict[str, float]]]) -> dict[str, object]:
    """Medians of each way, and their ratios to TFMOT."""
    medians = {
        way: {figure: statistics.median(record[figure] for record in records) for figure in records[0]}
        for way, records in measured.items()
    }
    ratios = {figure: medians["tfqil"][figure] / medians["TFMOT"][figure] for figure in _BARS}
    return {
        "network": f"{_ARCHITECTURE.value}, {_SIZE.value} x {_SIZE.value}",
        "checked": _CHECK.value,
        "runs": measured,
        "medians": medians,
        "ratios": ratios,
        "bars": _BARS,
        "within_bars": {figure: ratios[figure] <= bar for figure, bar in _BARS.items()},
    }


def _measure(way: str, architecture: str, size: int, check: bool) -> dict[str, float]:
    """What a process does."""
    logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")  # TFMOT's file.
    model = architectures.build(architecture, size)
    images = architectures.images(architecture, model, _IMAGES, seed=0)
    before = processes.peak_megabytes()
    start = time.perf_counter()
    tflite = _with_tfqil(model, images, check) if way == "tfqil" else _with_tfmot(model, images)
    seconds = time.perf_counter() - start
    peak = processes.peak_megabytes()
    return {"seconds": seconds, "peak_megabytes": peak, "megabytes_before": before, "bytes": len(tflite)}


def _with_tfqil(model: keras.Model, images: np.ndarray, check: bool) -> bytes:
    q_model = tfqil.quantize_model(model, tfqil.QILQuantizeConfig(8, 8))
    tfqil.calibrate(q_model, images)
    return tfqil.convert(q_model, check=check)


def _with_tfmot(model: keras.Model, images: np.ndarray) -> bytes:
    q_model = tfmot.quantization.keras.quantize_model(model)
    q_model(images, training=True)
    return results.tfmot_file(q_model)


def table(result: dict) -> rich.table.Table:
    shown = rich.table.Table(title=f"Quantize, calibrate and convert: {result['network']}")
    for heading in ("", "seconds", "peak MB", "MB before", "bytes"):
        shown.add_column(heading, justify="right" if heading else "left")
    for way, medians in result["medians"].items():
        shown.add_row(
            way,
            f"{medians['seconds']:.1f}",
            f"{medians['peak_megabytes']:,.0f}",
            f"{medians['megabytes_before']:,.0f}",
            f"{medians['bytes']:,.0f}",
        )
    shown.add_section()
    shown.add_row("ratio", *(f"{result['ratios'][figure]:.2f}x" for figure in _BARS))
    shown.add_row("bar", *(f"{bar}x" for bar in result["bars"].values()))
    return shown


if __name__ == "__main__":
    app.run(main)
