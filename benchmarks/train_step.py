"""Time and memory of a training step: float, TFMOT and each method of tfqil, in one run.

    python benchmarks/train_step.py [--networks=resnet18_unscaled] [--jit] [--output=benchmarks/output/train_step.json]

Every candidate has a process of its own, since what a step costs depends on what others have left in the allocator; all
of them are in memory at once, up to 2 GB each. They take turns in random order, one step of `fit` each, with SGD and
momentum. (`train_on_batch` makes a data set for each call and waits for it to end.)
The peak memory is that of the process, the float network and its first step included; what TensorFlow takes before is
given beside it.
"""

from __future__ import annotations

import contextlib
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import architectures
import numpy as np
import processes
import rich.table
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl import app, flags, logging

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import results
import runs

import tfqil

_NETWORKS = flags.DEFINE_list("networks", ["resnet18_unscaled", "mobilenet_v2"], "Of benchmarks/architectures.py.")
_CANDIDATES = flags.DEFINE_list("candidates", [], "Names of the table, beside float; all without.")
_SIZE = flags.DEFINE_integer("size", 64, "Height and width of images.", lower_bound=32)
_BATCH = flags.DEFINE_integer("batch", 32, "Images per step.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 20, "Timed steps of each candidate.", lower_bound=1)
_JIT = flags.DEFINE_bool("jit", False, "Compile the steps with XLA.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

_FLOAT = "float"
_TFMOT = "TFMOT 8-bit"
# Steps before the timed ones: tracing, and the batches on which a model that is not calibrated sets its intervals.
_WARM_UP = 6


def _tfqil(config: tfqil.LowBitQuantizeConfig) -> Callable[[keras.Model], keras.Model]:
    return lambda network: tfqil.quantize_model(network, config)


def _n_bit(network: keras.Model) -> keras.Model:
    scheme = tfmot.quantization.keras.experimental.default_n_bit.DefaultNBitQuantizeScheme(
        num_bits_weight=4, num_bits_activation=4
    )
    return tfmot.quantization.keras.quantize_apply(tfmot.quantization.keras.quantize_annotate_model(network), scheme)


CANDIDATES: dict[str, Callable[[keras.Model], keras.Model]] = {
    _FLOAT: lambda network: network,
    _TFMOT: lambda network: tfmot.quantization.keras.quantize_model(network),
    "TFMOT n-bit 4/4": _n_bit,
    "QIL 4/4": _tfqil(tfqil.QILQuantizeConfig(4, 4)),
    "QIL 2/2, gamma": _tfqil(tfqil.QILQuantizeConfig(2, 2, train_gamma=True)),
    "LBW 4/8": _tfqil(tfqil.LBWQuantizeConfig(4, 8)),
    "BCGD 1/4": _tfqil(tfqil.BCGDQuantizeConfig(1, 4)),
    "BinaryRelax 1/4": _tfqil(tfqil.BCGDQuantizeConfig(1, 4, relax=True)),
}


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    names = chosen()
    records = [record for network in _NETWORKS.value for record in measure(network, names)]
    results.console().print(table(records))
    if _OUTPUT.value:
        runs.write_json(pathlib.Path(_OUTPUT.value), records)


def chosen() -> list[str]:
    """The candidates that the flags name, float first."""
    unknown = [name for name in _CANDIDATES.value if name not in CANDIDATES]
    if unknown:
        raise SystemExit(f"Got --candidates={','.join(unknown)}, expected some of {'; '.join(CANDIDATES)}.")
    return [name for name in CANDIDATES if not _CANDIDATES.value or name in (_FLOAT, *_CANDIDATES.value)]


def measure(network: str, names: list[str]) -> list[dict[str, Any]]:
    """One record per candidate."""
    flags_of_run = [f"--size={_SIZE.value}", f"--batch={_BATCH.value}", f"--jit={_JIT.value}"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, tuple[float, float]] = {}
    first = {}
    order = np.random.default_rng(0)
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in names:
            workers[name] = stack.enter_context(processes.Worker(_step, network, name, flags_of_run))
            first[name], *_ = workers[name].call()
        for number in range(_WARM_UP + _STEPS.value):
            for name in order.permutation(names):
                duration, *memory[name] = workers[name].call()
                if number >= _WARM_UP:
                    seconds[name].append(duration)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        {
            "network": network,
            "candidate": name,
            "jit": _JIT.value,
            "images": [_BATCH.value, _SIZE.value, _SIZE.value],
            "first_seconds": first[name],
            "milliseconds": 1e3 * medians[name],
            "of_float": medians[name] / medians[_FLOAT],
            "of_tfmot": medians[name] / medians[_TFMOT] if _TFMOT in names else None,
            "megabytes_before": memory[name][0],
            "peak_megabytes": memory[name][1],
            "peak_of_float": memory[name][1] / memory[_FLOAT][1],
        }
        for name in names
    ]


def candidate(network: str, name: str) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A candidate that is ready to train, and the images and classes of a step."""
    model = architectures.build(network, _SIZE.value)
    images = architectures.images(network, model, _BATCH.value, seed=0)
    labels = np.arange(_BATCH.value) % model.output_shape[-1]
    model = CANDIDATES[name](model)
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    if name.startswith("BCGD"):
        optimizer = tfqil.optimizers.BlendedOptimizer(optimizer, model)
    # The applications end in a softmax, the others in logits: what a step costs is the same.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=_JIT.value)
    optimizer.build(model.trainable_variables)  # Else Keras traces the step twice, and keeps both graphs.
    return model, images, labels


def _step(network: str, name: str, flags_of_run: list[str]) -> Callable[[], tuple[float, float, float]]:
    """A function that trains a candidate for a step: its seconds, and the peak memory of the process before and so far.

    The first call builds the candidate too.
    """
    flags.FLAGS(["train_step", *flags_of_run])
    logging.set_verbosity(logging.ERROR)
    before = processes.peak_megabytes()
    built: list[tuple[Callable[[Any], dict[str, Any]], Any]] = []

    def step() -> tuple[float, float, float]:
        start = time.perf_counter()
        if not built:
            model, images, labels = candidate(network, name)
            data = tf.data.Dataset.from_tensors((images, labels)).repeat()
            built.append((model.make_train_function(), iter(data)))
        train, batches = built[0]
        float(train(batches)["loss"])  # So that the step is done.
        return time.perf_counter() - start, before, processes.peak_megabytes()

    return step


def table(records: list[dict[str, Any]]) -> rich.table.Table:
    """One row per candidate."""
    how = "XLA" if _JIT.value else "no XLA"
    shown = rich.table.Table(
        title=f"A training step: {_BATCH.value} images of {_SIZE.value} x {_SIZE.value}, {how}, "
        f"{tf.config.threading.get_intra_op_parallelism_threads() or 'all'} threads",
        caption="Medians. first: seconds to the end of the first step, tracing included. Of the peak memory "
        f"{records[0]['megabytes_before']:,.0f} MB are TensorFlow's own.",
    )
    headings = (
        "network",
        "candidate",
        "ms",
        "of float",
        "of TFMOT",
        "first s",
        "peak MB",
        "of float",
    )
    for heading in headings:
        shown.add_column(heading, justify="left" if heading in ("network", "candidate") else "right")
    for record in records:
        if record["candidate"] == _FLOAT and record is not records[0]:
            shown.add_section()
        shown.add_row(
            record["network"] if record["candidate"] == _FLOAT else "",
            record["candidate"],
            f"{record['milliseconds']:.1f}",
            f"{record['of_float']:.2f}x",
            f"{record['of_tfmot']:.2f}x" if record["of_tfmot"] else "-",
            f"{record['first_seconds']:.1f}",
            f"{record['peak_megabytes']:,.0f}",
            f"{record['peak_of_float']:.2f}x",
        )
    return shown


if __name__ == "__main__":
    app.run(main)
