"""The whole QIL protocol with one command: a float network, then fewer bits, each stage from the one before.

    python examples/train_classifier.py --data=glyphs --network=vgg11 --width=0.25 --directory=runs/glyphs
    python examples/train_classifier.py --data=imagenet2012 --network=resnet18 --data_dir=/data --directory=runs/18

Trains with the settings of the papers (`protocol.py`; flags change them), and goes on where it was stopped if the
directory has a training with the same settings. Each stage leaves a model (`model.keras`), a file (`model.tflite`), and
a record (`record.json`); the table at the end has them all.

Several machines run the same command with `--strategy=multi_worker`, each with a TF_CONFIG that names them all and says
which it is. They share `--directory`; where one is lost, all are started again and go on.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import classifiers
import data as image_data
import devices
import protocol
import results
import rich.table
import runs
import tensorflow as tf
import tf_keras as keras
from absl import app, flags, logging

import tfqil

_DATA = flags.DEFINE_enum("data", "glyphs", image_data.NAMES, "Data set.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TensorFlow Datasets prepared the set, or glyphs are stored.")
_NETWORK = flags.DEFINE_enum("network", "resnet20", classifiers.NAMES, "Network.")
_WIDTH = flags.DEFINE_float("width", 1.0, "Share of the network's channels.", lower_bound=0.01)
_METHOD = flags.DEFINE_enum("method", "qil", protocol.METHODS, "How to quantize.")
_SCHEDULE = flags.DEFINE_list(
    "schedule", ["32", "5", "4", "3", "2"], "Bits of the stages, 4 or 4/8 (weights/activations)."
)
_EDGE_BITS = flags.DEFINE_integer(
    "edge_bits", 8, "Bits of the first and last layer; 0 leaves them in float, as the papers do."
)
_INTERVALS = flags.DEFINE_enum("intervals", "fit", ["fit", "keep"], "Start of the intervals in each stage.")
_RHO = flags.DEFINE_float("rho", 1e-5, "Share of the blending of bcgd.")
_DIRECTORY = flags.DEFINE_string(
    "directory", None, "Folder of the run; one with the same settings goes on.", required=True
)
_STORAGE = flags.DEFINE_enum("storage", "fastest", ["fastest", "smallest", "int8"], "How the files store weights.")
_STRATEGY = flags.DEFINE_enum(
    "strategy", "none", devices.NAMES, "Devices to train on: one, all of this machine, or all of several machines."
)
_MIXED_PRECISION = flags.DEFINE_enum(
    "mixed_precision", "none", ["none", "bfloat16", "float16"], "Type of the computation."
)
_JIT = flags.DEFINE_bool("jit", False, "Compile the training step with XLA.")
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", False, "Use deterministic kernels: a resumed run ends bit for bit the same."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, batches and augmentation.")
_EXAMPLES = flags.DEFINE_integer("examples", None, "Training images to use; all without.", lower_bound=1)
# What is not given is that of `protocol.SETTINGS`.
_GIVEN = {
    field.name: (flags.DEFINE_integer if field.type == "int" else flags.DEFINE_float)(
        field.name, None, f"Instead of the paper's {field.name}.", lower_bound=1 if field.type == "int" else 0
    )
    for field in dataclasses.fields(protocol.Settings)
    if field.type in ("int", "float")
}


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    try:
        stages = protocol.parse_schedule(_SCHEDULE.value)
        for widths in stages[1:]:
            protocol.config_for(_METHOD.value, widths)
        run = _run()
        run.network()  # One that the images do not suit is refused before anything is written.
        keras.backend.clear_session()
        with devices.chief_first(run.strategy):
            description = described(run.settings)
            runs.require_same_run(run.folder, description, creates=devices.is_chief(run.strategy))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from None
    records = _trained(run, stages)
    if devices.is_chief(run.strategy):
        results.console().print(table(records, f"{_NETWORK.value} on {_DATA.value}, {_METHOD.value}"))


def _trained(run: protocol.Run, stages: list[protocol.Widths]) -> list[dict[str, Any]]:
    """The records of all stages."""
    records = []
    for before, widths in zip([None, *stages[:-1]], stages, strict=True):
        keras.utils.set_random_seed(_SEED.value)
        try:
            with runs.ending_where_unusable():
                records.append(run.stage(widths, before))
        except tf.errors.UnimplementedError as error:
            if not (_JIT.value and _DETERMINISTIC.value):
                raise
            raise SystemExit(
                "Got --jit and --deterministic for a network with operators that XLA does not compute "
                "deterministically, as the gradient of MaxPool, expected one of the two: leave out the other."
            ) from error
        if devices.is_chief(run.strategy):
            print(f"{records[-1]['stage']}: {records[-1]['file_accuracy']:.2f} %", flush=True)
    return records


def _run() -> protocol.Run:
    """The run that the flags describe."""
    strategy = devices.strategy(_STRATEGY.value)
    if _JIT.value and _STRATEGY.value != "none" and not tf.config.list_physical_devices("GPU"):
        raise ValueError(
            f"Got --jit with --strategy={_STRATEGY.value} on CPUs, where XLA compiles no step of several devices, "
            "whatever the model, expected one of the two: leave out --jit."
        )
    if _DETERMINISTIC.value:
        tf.config.experimental.enable_op_determinism()
    if _MIXED_PRECISION.value != "none":
        keras.mixed_precision.set_global_policy(f"mixed_{_MIXED_PRECISION.value}")
    given = {name: flag.value for name, flag in _GIVEN.items() if flag.value is not None}
    settings = dataclasses.replace(protocol.SETTINGS[_DATA.value], **given)
    data = image_data.load(
        _DATA.value, batch=settings.batch, seed=_SEED.value, data_dir=_DATA_DIR.value, examples=_EXAMPLES.value
    )
    if data.train_examples < settings.batch:
        raise ValueError(f"Got {data.train_examples} training images, expected a batch of {settings.batch} at least.")
    if settings.batch % strategy.num_replicas_in_sync:
        raise ValueError(
            f"Got a batch of {settings.batch} for {strategy.num_replicas_in_sync} devices, expected a multiple: change "
            "--batch."
        )
    return protocol.Run(
        folder=pathlib.Path(_DIRECTORY.value),
        data=data,
        network=lambda: classifiers.build(_NETWORK.value, data.shape, data.classes, width=_WIDTH.value),
        method=_METHOD.value,
        settings=settings,
        scheme=lambda config: tfqil.LowBitScheme(config, _EDGE_BITS.value or None),
        rho=_RHO.value,
        intervals=_INTERVALS.value,
        jit=_JIT.value,
        strategy=strategy,
        storage=_STORAGE.value,
    )


def described(settings: protocol.Settings) -> dict[str, Any]:
    """What the models and files of a run follow from; the schedule may grow at its end."""
    chosen = (
        _DATA, _NETWORK, _WIDTH, _METHOD, _EDGE_BITS, _INTERVALS, _RHO, _MIXED_PRECISION, _SEED, _EXAMPLES, _STORAGE
    )  # fmt: skip
    described = {flag.name: flag.value for flag in chosen} | dataclasses.asdict(settings)
    return {**described, "schedule": _SCHEDULE.value}


def table(records: list[dict[str, Any]], title: str) -> rich.table.Table:
    """One row per stage."""
    result = rich.table.Table(title=title)
    for heading in ("bits W/A", "Keras %", "file %", "to float", "bytes", "integer-only", "seconds"):
        result.add_column(heading, justify="left" if heading == "bits W/A" else "right")
    for record in records:
        result.add_row(
            record["stage"].replace("_", "/"),
            f"{record['keras_accuracy']:.2f}",
            f"{record['file_accuracy']:.2f}",
            f"{record['file_accuracy'] - records[0]['file_accuracy']:+.2f}",
            f"{record['bytes']:,}",
            "yes" if record["integer_only"] else "no",
            f"{record['seconds']:.0f}",
        )
    return result


if __name__ == "__main__":
    app.run(main)
