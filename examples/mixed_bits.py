"""Bits where they matter: a network with widths chosen layer by layer against one of 3 bits, at the same bytes.

    python examples/mixed_bits.py --directory=runs/mixed_bits

For each seed a MobileNet learns glyphs in float. `tfqil.sensitivity` measures on training images what it loses when one
layer at a time has few bits, and `tfqil.suggest_bits` chooses widths that take no more bytes than uniform ones. All
copies have the same activations and edges, and are trained from the same float network with the same batches, epochs
and optimizer. A run that was stopped goes on where it stopped.

Depthwise kernels are sensitive and small, pointwise ones are large and are not: few bits more for the former cost the
latter next to nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import classifiers
import data as image_data
import numpy as np
import protocol
import results
import rich.table
import runs
import tensorflow as tf
import tf_keras as keras
from absl import app, flags, logging

import tfqil
from tfqil.report.sensitivity import Sensitivity

_DIRECTORY = flags.DEFINE_string(
    "directory", None, "Folder of the run; one with the same settings goes on.", required=True
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the generated set is stored.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of weights and batches, one network each.")
_BITS = flags.DEFINE_integer("bits", 3, "Bits of the uniform weights.", lower_bound=2, upper_bound=8)
_ACTIVATION_BITS = flags.DEFINE_integer("activation_bits", 3, "Bits of all activations.", lower_bound=2, upper_bound=8)
_NETWORK = flags.DEFINE_enum("network", "mobilenet", ("mobilenet", "vgg11", "resnet20"), "What is trained.")
_WIDTH = flags.DEFINE_float("width", 0.5, "Share of the network's channels.", lower_bound=0.01)
_FLOAT_EPOCHS = flags.DEFINE_integer("float_epochs", 16, "Epochs of the float network.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of each quantized copy.", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", 20_000, "Images to train with.", lower_bound=128, upper_bound=20_000)
_WIDTHS = flags.DEFINE_list("widths", ["2", "3", "4", "8"], "Bits to choose from, with those of --bits among them.")
_MEASURED = flags.DEFINE_integer("measured", 1024, "Training images that each choice is measured on.", lower_bound=1)
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", False, "Use deterministic kernels: a resumed run ends bit for bit the same."
)

# A small batch: a float network of some epochs has to leave chance early.
_BATCH = 64
_FLOAT_RATE = 0.05
_RATE = 0.02


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    if _DETERMINISTIC.value:
        tf.config.experimental.enable_op_determinism()
    folder = pathlib.Path(_DIRECTORY.value)
    try:
        seeds, widths = numbers(_SEEDS), numbers(_WIDTHS)
        if _BITS.value not in widths:
            raise ValueError(
                f"Got --widths={','.join(_WIDTHS.value)} without the {_BITS.value} bits of the uniform copy, expected "
                "them too: their bytes are the budget."
            )
        chosen = (_NETWORK, _BITS, _ACTIVATION_BITS, _WIDTH, _FLOAT_EPOCHS, _EPOCHS, _EXAMPLES, _WIDTHS, _MEASURED)
        runs.require_same_run(folder, {flag.name: flag.value for flag in chosen})
        arrays = image_data.glyph_arrays(_DATA_DIR.value)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    with runs.ending_where_unusable():
        records = [of_seed(seed, folder / f"seed{seed}", arrays) for seed in seeds]
    console = results.console()
    console.print(table(records))


def numbers(flag: flags.FlagHolder[list[str]]) -> list[int]:
    """The whole numbers of a flag.

    Raises:
        ValueError: none, or one that is no whole number.
    """
    texts = flag.value
    if not texts or not all(text.isdecimal() for text in texts):
        raise ValueError(f"Got --{flag.name}={','.join(texts)}, expected whole numbers such as {flag.default}.")
    return [int(text) for text in texts]


def of_seed(seed: int, folder: pathlib.Path, arrays: image_data.Arrays) -> dict[str, dict[str, Any]]:
    """The records of the networks of a seed, by name."""
    data = image_data.glyph_set(arrays, batch=_BATCH, seed=seed, examples=_EXAMPLES.value)
    settings = protocol.Settings(
        batch=_BATCH,
        float_epochs=_FLOAT_EPOCHS.value,
        epochs=_EPOCHS.value,
        float_rate=_FLOAT_RATE,
        rate=_RATE,
        weight_decay=protocol.SETTINGS["glyphs"].weight_decay,
    )
    in_float = protocol.Widths(weights=protocol.FLOAT, activations=protocol.FLOAT)
    widths = protocol.Widths(weights=_BITS.value, activations=_ACTIVATION_BITS.value)
    run = protocol.Run(
        folder=folder,
        data=data,
        network=lambda: classifiers.build(_NETWORK.value, data.shape, data.classes, width=_WIDTH.value),
        method="qil",
        settings=settings,
        storage="smallest",
        float_folder=folder / "float",
    )
    keras.utils.set_random_seed(seed)
    records = {"float": run.stage(in_float, None)}
    for name, scheme in schemes(measure(folder, arrays)).items():
        keras.utils.set_random_seed(seed)  # All copies see the same batches.
        copy = dataclasses.replace(run, folder=folder / re.sub(r"\W+", "_", name), scheme=scheme)
        records[name] = copy.stage(widths, in_float)
        model = tfqil.load_model(copy.folder / widths.name / "model.keras", compile=False)
        records[name]["kernels"] = {row.placement.layer: row for row in tfqil.summary(model) if row.weights}
    return records


def schemes(measured: Sensitivity) -> dict[str, Callable[[tfqil.LowBitQuantizeConfig], tfqil.LowBitScheme]]:
    """What makes the scheme of each quantized copy from a uniform config, by name."""
    chosen: dict[str, Any] = {f"uniform {_BITS.value}/{_ACTIVATION_BITS.value}": tfqil.LowBitScheme}
    for count in ("stored", "packed"):
        budget = measured.uniform_bytes(_BITS.value, count)
        suggested = tfqil.suggest_bits(measured, max_bytes=budget, activation_bits=_ACTIVATION_BITS.value, count=count)
        chosen[f"mixed, {count}"] = functools.partial(_given, suggested)
    return chosen


def _given(scheme: tfqil.LowBitScheme, config: tfqil.LowBitQuantizeConfig) -> tfqil.LowBitScheme:
    """The scheme, whatever a uniform one would be made of."""
    del config
    return scheme


def measure(folder: pathlib.Path, arrays: image_data.Arrays) -> Sensitivity:
    """What the float network of a folder loses layer by layer, on training images."""
    model = tfqil.load_model(folder / "float" / "model.keras", compile=False)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    examples = (image_data.normalized_glyphs(arrays[0][: _MEASURED.value]), arrays[1][: _MEASURED.value])
    batches = tf.data.Dataset.from_tensor_slices(examples).batch(256)
    return tfqil.sensitivity(model, batches, "loss", numbers(_WIDTHS), resume=folder / "sensitivity.json")


def table(records: list[dict[str, dict[str, Any]]]) -> rich.table.Table:
    """One row per network; what it gains is paired by seed."""
    names = list(records[0])
    uniform = names[1]
    accuracy = {name: np.array([of_seed[name]["file_accuracy"] for of_seed in records]) for name in names}
    result = rich.table.Table(
        title=f"{_NETWORK.value} x {_WIDTH.value:g} on glyphs, {_EPOCHS.value} epochs for each quantized copy",
        caption="bits: of the weights of each layer, first seed. codes: their bytes with 2, 4 or 8 bits, as a file "
        "stores them / with as many bits as they have.",
    )
    for heading in ("network", "bits", "codes", "file", "file %", f"against {uniform}", "of the seeds"):
        result.add_column(heading, justify="left" if heading == "network" else "right")
    for name in names:
        first = records[0][name]
        gains = accuracy[name] - accuracy[uniform]
        result.add_row(
            name,
            *_codes(first.get("kernels", {})),
            f"{first['bytes']:,}",
            f"{accuracy[name].mean():.2f}",
            f"{gains.mean():+.2f}",
            " ".join(f"{gain:+.2f}" for gain in gains),
        )
    return result


def _codes(kernels: dict[str, Any]) -> tuple[str, str]:
    """The widths of kernels, and their bytes as they are stored and as they could be packed."""
    if not kernels:
        return "32", "-"
    widths = {name: row.placement.bits for name, row in kernels.items()}
    packed = sum(math.ceil(row.weights * widths[name] / 8) for name, row in kernels.items())
    stored = sum(row.bytes for row in kernels.values())
    return " ".join(map(str, widths.values())), f"{stored:,} / {packed:,}"


if __name__ == "__main__":
    app.run(main)
