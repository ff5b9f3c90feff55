"""Bytes and latency of the exported files against float and TFMOT's own 8 bits, in one run.

    python benchmarks/latency.py [--networks=residual,dense] [--output=benchmarks/output/latency.json]
    python benchmarks/latency.py --networks=resnet18,mobilenet_v2 --bits=4/8

Names are those of benchmarks/networks.py or of benchmarks/architectures.py; where TFMOT refuses an architecture's
Rescaling layer, all files are those of the network without it.

The networks are quantized, calibrated and converted, not trained: size and speed do not depend on that. All files of
a network run alternately on one thread, batch 1; the table shows medians and their ratios.
"""

from __future__ import annotations

import gzip
import pathlib
import statistics
import sys
import warnings

import architectures
import networks
import numpy as np
import rich.console
import rich.table
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl import app, flags, logging

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import results
import runs

import tfqil
from tfqil.export import runtime

_NETWORKS = flags.DEFINE_list("networks", ["residual", "dense"], "Of networks.py or architectures.py.")
_BITS = flags.DEFINE_list("bits", ["4/8", "4/4", "2/2"], "Weight and activation bits.")
_SIZE = flags.DEFINE_integer("size", 224, "Height and width of images.", lower_bound=32)
_REPEATS = flags.DEFINE_integer("repeats", 100, "Timed rounds.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")  # TFMOT's file.
    records = [record for name in _NETWORKS.value for record in measure(name)]
    rich.console.Console().print(table(records))
    if _OUTPUT.value:
        runs.write_json(pathlib.Path(_OUTPUT.value), records)


def measure(name: str) -> list[dict[str, object]]:
    """One record per file of a network."""
    model, inputs = network(name)
    files = {"float": results.float_file(model), "TFMOT 8-bit": tfmot_file(model, inputs)}
    for bits in _BITS.value:
        weight_bits, activation_bits = map(int, bits.split("/"))
        q_model = tfqil.quantize_model(model, tfqil.QILQuantizeConfig(weight_bits, activation_bits))
        tfqil.calibrate(q_model, inputs)
        for storage in ("int8", "fastest", "smallest"):
            files[f"QIL {bits} {storage}"] = tfqil.convert(q_model, storage)
    times = runtime.benchmark(files, repeats=_REPEATS.value, seconds=240)
    medians = {file: statistics.median(seconds) for file, seconds in times.items()}
    return [
        {
            "network": f"{name}, {model.count_params() / 1e6:.1f} M weights",
            "file": file,
            "bytes": len(tflite),
            "gzipped_bytes": len(gzip.compress(tflite, mtime=0)),
            "smaller_than_float": len(files["float"]) / len(tflite),
            "milliseconds": 1e3 * medians[file],
            "faster_than_float": medians["float"] / medians[file],
            "time_of_tfmot": medians[file] / medians["TFMOT 8-bit"],
            "partitions": runtime.delegate_partitions(tflite),
            "integer_only": tfqil.inspect(tflite).integer_only,
        }
        for file, tflite in files.items()
    ]


def network(name: str) -> tuple[keras.Model, np.ndarray]:
    """A network and the inputs that quantizers take their ranges from."""
    if name in architectures.ARCHITECTURES:
        comparable = f"{name}_unscaled" if f"{name}_unscaled" in architectures.ARCHITECTURES else name
        model = architectures.build(comparable, _SIZE.value)
        return model, architectures.images(comparable, model, 8, seed=0)
    arguments = {} if name == "dense" else {"size": _SIZE.value}
    model = networks.with_random_statistics(getattr(networks, name)(**arguments))
    return model, networks.smooth_images(8, model.input_shape[1:])


def tfmot_file(model: keras.Model, inputs: object) -> bytes:
    """The file of a network that TFMOT quantizes, with ranges of one batch."""
    q_model = tfmot.quantization.keras.quantize_model(model)
    q_model(inputs, training=True)  # The ranges come from a training batch.
    return results.tfmot_file(q_model)


def table(records: list[dict[str, object]]) -> rich.table.Table:
    result = rich.table.Table(title=f"Bytes and latency: {_SIZE.value} x {_SIZE.value} images, one thread, batch 1")
    for heading in ("network", "file", "bytes", "gzipped", "smaller", "ms", "faster", "time/TFMOT", "partitions"):
        result.add_column(heading, justify="left" if heading in ("network", "file") else "right")
    previous = None
    for row in records:
        if row["network"] != previous and previous is not None:
            result.add_section()
        result.add_row(
            row["network"] if row["network"] != previous else "",
            row["file"],
            f"{row['bytes']:,}",
            f"{row['gzipped_bytes']:,}",
            f"{row['smaller_than_float']:.1f}x",
            f"{row['milliseconds']:.3f}",
            f"{row['faster_than_float']:.2f}x",
            f"{row['time_of_tfmot']:.2f}x",
            str(row["partitions"]),
        )
        previous = row["network"]
    return result


if __name__ == "__main__":
    app.run(main)
