"""What a server holds and waits for: SavedModels of quantized networks against those of float ones, in one run.

    python benchmarks/serving_size.py [--networks=resnet18,mobilenet_v2] [--output=benchmarks/output/serving_size.json]

Names are those of benchmarks/architectures.py. The networks are quantized and calibrated, not trained: size and speed
do not depend on that. Each folder is loaded by a process of its own, several times; then all of them answer in turn,
one image at a time, with TensorFlow's own choice of threads. The table shows medians.
"""

from __future__ import annotations

import contextlib
import gc
import io
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import architectures
import numpy as np
import processes
import rich.table
import tensorflow as tf
from absl import app, flags, logging

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import results
import runs

import tfqil

_NETWORKS = flags.DEFINE_list("networks", ["resnet18", "mobilenet_v2"], "Of benchmarks/architectures.py.")
_BITS = flags.DEFINE_list("bits", ["4/4", "2/2"], "Weight and activation bits.")
_SIZE = flags.DEFINE_integer("size", 224, "Height and width of images.", lower_bound=32)
_LOADS = flags.DEFINE_integer("loads", 5, "Times that each folder is loaded.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 50, "Timed requests to each model.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

_IMAGES = 8
_WARM_UP = 3


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    records = [record for name in _NETWORKS.value for record in measure(name)]
    results.console().print(table(records))
    if _OUTPUT.value:
        runs.write_json(pathlib.Path(_OUTPUT.value), records)


def measure(name: str) -> list[dict[str, object]]:
    """One record per SavedModel of a network."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        weights, folders = _export(name, pathlib.Path(directory))
        workers = {
            model: stack.enter_context(processes.Worker(_server, str(folder), _SIZE.value, _LOADS.value))
            for model, folder in folders.items()
        }
        answers: dict[str, list[dict[str, float]]] = {model: [] for model in workers}
        for _round in range(_WARM_UP + _REPEATS.value):
            for model, worker in workers.items():
                answers[model].append(worker.call())
        sizes = {model: _bytes(folder) for model, folder in folders.items()}
        graphs = {model: (folder / "saved_model.pb").stat().st_size for model, folder in folders.items()}
    seconds = {model: statistics.median(one["seconds"] for one in found[_WARM_UP:]) for model, found in answers.items()}
    return [
        {
            "network": f"{name}, {weights / 1e6:.1f} M weights",
            "model": model,
            "bytes": sizes[model],
            "graph_bytes": graphs[model],
            "smaller_than_float": sizes["float"] / sizes[model],
            "load_seconds": answers[model][-1]["load_seconds"],
            "milliseconds": 1e3 * seconds[model],
            "time_of_float": seconds[model] / seconds["float"],
        }
        for model in folders
    ]


def _export(name: str, directory: pathlib.Path) -> tuple[int, dict[str, pathlib.Path]]:
    """The number of a network's weights, and the folders of its SavedModels."""
    model = architectures.build(name, _SIZE.value)
    images = architectures.images(name, model, _IMAGES, seed=0)
    folders = {"float": directory / "float"}
    with contextlib.redirect_stdout(io.StringIO()):  # It lists what it has written.
        model.export(str(folders["float"]))
    for bits in _BITS.value:
        weight_bits, activation_bits = map(int, bits.split("/"))
        q_model = tfqil.quantize_model(model, tfqil.QILQuantizeConfig(weight_bits, activation_bits))
        tfqil.calibrate(q_model, images)
        folders[f"QIL {bits}"] = directory / f"qil_{weight_bits}_{activation_bits}"
        tfqil.export_saved_model(q_model, folders[f"QIL {bits}"])
    return model.count_params(), folders


def _server(folder: str, size: int, loads: int) -> Callable[[], dict[str, float]]:
    """What a process does: it loads a model, and answers a request each time it is asked to."""
    load_seconds = []
    for _load in range(loads):
        gc.collect()
        start = time.perf_counter()
        serve = tf.saved_model.load(folder).signatures["serving_default"]
        load_seconds.append(time.perf_counter() - start)
    (name,) = serve.structured_input_signature[1]
    image = tf.constant(np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32))

    def request() -> dict[str, float]:
        start = time.perf_counter()
        for output in serve(**{name: image}).values():
            output.numpy()
        return {"seconds": time.perf_counter() - start, "load_seconds": statistics.median(load_seconds)}

    return request


def _bytes(folder: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def table(records: list[dict[str, object]]) -> rich.table.Table:
    result = rich.table.Table(title=f"SavedModels: {_SIZE.value} x {_SIZE.value} images, one in each request")
    for heading in ("network", "model", "bytes", "graph", "smaller", "load s", "ms", "time/float"):
        result.add_column(heading, justify="left" if heading in ("network", "model") else "right")
    previous = None
    for row in records:
        if row["network"] != previous and previous is not None:
            result.add_section()
        result.add_row(
            row["network"] if row["network"] != previous else "",
            row["model"],
            f"{row['bytes']:,}",
            f"{row['graph_bytes']:,}",
            f"{row['smaller_than_float']:.1f}x",
            f"{row['load_seconds']:.2f}",
            f"{row['milliseconds']:.1f}",
            f"{row['time_of_float']:.2f}x",
        )
        previous = row["network"]
    return result


if __name__ == "__main__":
    app.run(main)
