"""The cells of the accuracy benchmark: each method at each width, trained from the float network of its seed."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import accuracy_peers as peers
import tensorflow as tf
import tf_keras as keras

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import data as image_data
import protocol
import results

import tfqil

FLOAT = protocol.Widths(weights=protocol.FLOAT, activations=protocol.FLOAT)
_OURS = "tfqil"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seed:
    """What all cells of a seed share.

    Attributes:
        seed: of the weights and the order of the batches.
        folder: of models and checkpoints; a cell has a folder of its own in it.
        data: the data set.
        network: makes a float network.
        settings: how the float network and each stage are trained.
    """

    seed: int
    folder: pathlib.Path
    data: image_data.ImageSet
    network: Callable[[], keras.Model]
    settings: protocol.Settings

    def run(self, name: str, method: str, epochs: int | None = None, **changes: Any) -> protocol.Run:
        """A run of the protocol that starts from the float network of this seed, with some epochs per stage."""
        return protocol.Run(
            folder=self.folder / name,
            data=self.data,
            network=self.network,
            method=method,
            settings=dataclasses.replace(
                self.settings,
                epochs=epochs or self.settings.epochs,
                interval_rate=changes.pop("interval_rate", self.settings.interval_rate),
            ),
            float_folder=self.folder / FLOAT.name,
            **changes,
        )

    def float_network(self) -> keras.Model:
        """The trained float network."""
        return keras.models.load_model(self.folder / FLOAT.name / "model.keras", compile=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A method at some widths.

    Attributes:
        package: who quantizes.
        method: for tables.
        bits: of weights and activations, such as 4/4.
        stages: how many stages' epochs it is trained for, as many as progressive finetuning needs for its widths.
        measure: trains it from a seed for some epochs; returns what is known of it.
        needs: a package that it needs and that tfqil does not bring.
    """

    package: str
    method: str
    bits: str
    stages: int
    measure: Callable[[Seed, int], dict[str, Any]]
    needs: str | None = None

    @property
    def name(self) -> str:
        """Of folders and records."""
        return f"{self.package} {self.method} {self.bits}".lower().replace("/", "-").replace(" ", "_").replace(",", "")

    @property
    def missing(self) -> bool:
        """Whether a package that it needs is not there."""
        return self.needs is not None and importlib.util.find_spec(self.needs) is None


def float_record(seed: Seed) -> dict[str, Any]:
    """The record of the float network of a seed, which is trained unless it is there."""
    keras.utils.set_random_seed(seed.seed)
    return seed.run("", "qil").stage(FLOAT, None)


def measure(cell: Cell, seed: Seed) -> dict[str, Any]:
    """The record of a cell, which is trained to its end; one that cannot be trained says why."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed.seed)
    epochs = cell.stages * seed.settings.epochs
    started = time.perf_counter()
    record = {"package": cell.package, "method": cell.method, "bits": cell.bits, "epochs": epochs}
    try:
        found = cell.measure(seed, epochs)
    except Exception as error:  # Another package's failure is a row of the table, but not that of this machine.
        if cell.package == _OURS or isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
            raise
        found = {"reason": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return {**record, "seconds": time.perf_counter() - started, **found}


def _progressive(seed: Seed, epochs: int, *, name: str, stages: list[protocol.Widths]) -> dict[str, Any]:
    """The last of some stages, each from the one before and each with its share of the epochs.

    Stages that another cell has trained are there.
    """
    run = seed.run(name, "qil", epochs // len(stages))
    record: dict[str, Any] = {}
    for before, widths in zip([FLOAT, *stages[:-1]], stages, strict=True):
        keras.utils.set_random_seed(seed.seed)
        record = run.stage(widths, before)
    return _of_file(record)


def _direct(
    seed: Seed, epochs: int, *, name: str, method: str, widths: protocol.Widths, **changes: Any
) -> dict[str, Any]:
    """One stage, straight from the float network."""
    return _of_file(seed.run(name, method, epochs, **changes).stage(widths, FLOAT))


def _of_file(record: dict[str, Any]) -> dict[str, Any]:
    kept = ("keras_accuracy", "file_accuracy", "bytes", "integer_only", "training_accuracy")
    return {name: record[name] for name in kept}


def _only_quantizers(model: keras.Model) -> None:
    """Freezes weights and normalizations: only what quantizers learn is trained."""
    for layer in model.layers:
        inner = getattr(layer, "layer", None)
        if inner is not None:
            inner.trainable = False
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def _peer(
    seed: Seed, epochs: int, *, quantize: peers.Quantize, file: Callable[[keras.Model], bytes] | str
) -> dict[str, Any]:
    """A network that another package quantizes, trained as ours are but for the rate of the intervals.

    Args:
        seed: where it starts.
        epochs: of training.
        quantize: makes the model from the float network and one batch of images.
        file: makes a file of the trained model, or says why there is none.
    """
    images = next(iter(seed.data.train(0)))[0].numpy()
    model = quantize(seed.float_network(), images)
    settings = seed.settings
    steps = epochs * (seed.data.train_examples // settings.batch)
    optimizer = settings.sgd(settings.rate, settings.drops, steps)
    optimizer.exclude_from_weight_decay(var_names=["step:0$"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    history = [model.fit(seed.data.train(epoch), verbose=0).history for epoch in range(epochs)]
    found = {
        "training_accuracy": history[-1]["accuracy"][0],
        "keras_accuracy": seed.data.test_accuracy(model.predict_on_batch),
    }
    if isinstance(file, str):
        return {**found, "no_file": file}
    try:
        tflite = file(model)
    except Exception as error:  # noqa: BLE001, a refusal of the converter is what the table reports
        return {**found, "no_file": str(error).split("error: ")[-1].splitlines()[0][:200]}
    return {
        **found,
        "file_accuracy": seed.data.test_accuracy(functools.partial(protocol.run_file, tflite)),
        "bytes": len(tflite),
        "integer_only": tfqil.inspect(tflite).integer_only,
    }


def _widths(bits: str) -> protocol.Widths:
    weights, activations = bits.split("/")
    return protocol.Widths(weights=int(weights), activations=int(activations))


def _ours(method: str, bits: str, stages: int, key: str, **changes: Any) -> Cell:
    folder = f"{method} {bits}".lower().replace("/", "-").replace(" ", "_")
    direct = functools.partial(_direct, name=folder, method=key, widths=_widths(bits), **changes)
    return Cell(package=_OURS, method=method, bits=bits, stages=stages, measure=direct)


def _stages(method: str, schedule: list[str], *, only_last: bool = False) -> list[Cell]:
    """A cell per stage of progressive finetuning; the cells train in one folder."""
    widths = [_widths(bits) for bits in schedule]
    name = f"progressive_{schedule[-1].replace('/', '-')}"
    return [
        Cell(
            package=_OURS,
            method=method,
            bits=schedule[end - 1],
            stages=end,
            measure=functools.partial(_progressive, name=name, stages=widths[:end]),
        )
        for end in range(len(schedule) if only_last else 1, len(schedule) + 1)
    ]


def _of_peer(package: str, method: str, bits: str, stages: int, quantize: Any, **arguments: Any) -> Cell:
    file = _NO_FILE.get(package, results.tfmot_file)
    measured = functools.partial(_peer, quantize=functools.partial(quantize, **arguments), file=file)
    needs = package.lower() if package in ("QKeras", "larq") else None
    return Cell(package=package, method=method, bits=bits, stages=stages, measure=measured, needs=needs)


def _float_longer(seed: Seed, epochs: int) -> dict[str, Any]:
    """The float network trained on, in float, for as long as the networks of 2 bits."""
    return _peer(seed, epochs, quantize=lambda network, images: network, file=results.float_file)


# Why the files of other packages are not measured.
_NO_FILE = {
    "QKeras": "QKeras writes no TFLite file",
    "larq": "larq's converter writes binary networks, with operators of its own",
    "baseline": "only what trains is written here",
}
# How many stages of progressive finetuning end at these widths.
_STAGES = {"4/4": 2, "3/3": 3, "2/2": 4}


def _equal_widths(bits: str) -> list[Cell]:
    """All that quantizes to equal levels at 4/4, 3/3 or 2/2."""
    stages, width = _STAGES[bits], int(bits[0])
    both = {"weight_bits": width, "activation_bits": width}
    cells = [
        _ours("QIL direct", bits, stages, "qil"),
        _of_peer("TFMOT", "experimental n-bit", bits, stages, peers.tfmot_n_bit, **both),
        _of_peer("baseline", "LSQ", bits, stages, peers.lsq, **both),
        _of_peer("baseline", "PACT", bits, stages, peers.pact, **both),
    ]
    if bits != "3/3":
        kernel = f"quantized_bits({width},0,1,alpha='auto')"
        cells += [
            _of_peer("QKeras", "quantized_bits", bits, stages, peers.qkeras, kernel=kernel, activation_bits=width),
            _of_peer("larq", "DoReFa", bits, stages, peers.larq, kernel="dorefa", activation_bits=width),
        ]
    return cells


CELLS = [
    Cell(package="float", method="trained on", bits="32/32", stages=4, measure=_float_longer),
    *_stages("QIL progressive", ["5/5", "4/4", "3/3", "2/2"]),
    *_equal_widths("2/2"),
    _ours("QIL quantizers only", "2/2", 4, "qil", prepare=_only_quantizers, interval_rate=1.0),
    # As the paper compares progressive with direct: the epochs of the last stage alone.
    _ours("QIL direct, one stage", "2/2", 1, "qil"),
    Cell(
        package=_OURS,
        method="QIL in two stages",
        bits="2/2",
        stages=4,
        measure=functools.partial(_progressive, name="two_stages_2-2", stages=[_widths("4/4"), _widths("2/2")]),
    ),
    *_stages("QIL progressive", ["5/8", "4/8", "3/8", "2/8"], only_last=True),
    _ours("QIL direct", "2/8", 4, "qil"),
    *_equal_widths("4/4"),
    _ours("QIL quantizers only", "4/4", 2, "qil", prepare=_only_quantizers, interval_rate=1.0),
    *_equal_widths("3/3"),
    _of_peer("TFMOT", "8-bit", "8/8", 2, peers.tfmot_8bit),
    _ours("LBW", "4/8", 2, "lbw"),
    _ours("LBW", "2/8", 4, "lbw"),
    _of_peer("QKeras", "quantized_po2", "4/8", 2, peers.qkeras, kernel="quantized_po2(4)", activation_bits=8),
    _of_peer("QKeras", "ternary", "2/8", 4, peers.qkeras, kernel="ternary(alpha='auto')", activation_bits=8),
    _ours("BCGD", "1/4", 4, "bcgd"),
    _ours("BinaryRelax", "1/4", 4, "binary_relax"),
    _of_peer("QKeras", "binary", "1/4", 4, peers.qkeras, kernel="binary(alpha='auto')", activation_bits=4),
    _of_peer("larq", "ste_sign, DoReFa", "1/4", 4, peers.larq, kernel="ste_sign", activation_bits=4),
]
