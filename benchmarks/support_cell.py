"""One cell of the support matrix: an architecture under one config, as a file with one storage.

A cell walks the whole way of a user: quantize, calibrate, train two steps, save, reload, convert, inspect, verify.
Whatever goes wrong on it becomes the reason of the cell.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import gc
import pathlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import architectures
import distances
import numpy as np
import tf_keras as keras

import tfqil
from tfqil import _host

CONFIGS: dict[str, Callable[[], tfqil.LowBitQuantizeConfig]] = {
    "QIL 8/8": functools.partial(tfqil.QILQuantizeConfig, 8, 8),
    "QIL 4/4": functools.partial(tfqil.QILQuantizeConfig, 4, 4),
    "QIL 2/2": functools.partial(tfqil.QILQuantizeConfig, 2, 2),
    "LBW 4/8": functools.partial(tfqil.LBWQuantizeConfig, 4, 8),
    "BCGD 1/4": functools.partial(tfqil.BCGDQuantizeConfig, 1, 4),
}
STORAGES = ("fastest", "smallest", "int8")

_CALIBRATION_IMAGES = 32
_TRAINING_IMAGES = 16
_BATCH = 8
# Other images than those of calibration; with 100 classes they give 3,200 outputs.
_VERIFICATION_IMAGES = 32
# The steps show that training works; they shall not move the calibrated intervals.
_LEARNING_RATE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """What became of one cell. Fields without a value were not reached."""

    architecture: str
    config: str
    storage: str
    # Height and width of the images, number of weights, and kernels on the longest way through the network.
    size: int = 0
    weights: int = 0
    depth: int = 0
    # Name of the step that failed, and why.
    failed_in: str | None = None
    reason: str | None = None
    # Why `convert` refuses the file unless it is told otherwise; the file is measured all the same.
    refusal: str | None = None
    bytes: int | None = None
    gzipped_bytes: int | None = None
    integer_only: bool | None = None
    # Operators of the file that compute in float, and its kernels in a float type.
    float_operators: tuple[str, ...] = ()
    float_kernels: tuple[str, ...] = ()
    # Mean distance of the calibrated model's outputs from the float model's, as a share of their deviation.
    from_float: float | None = None
    # Reason of the placement -> number of layers and tensors, with their bits.
    placements: dict[str, int] = dataclasses.field(default_factory=dict)
    # Output values; those that differ from the deployable model; distances from the trained model in output steps.
    outputs: int | None = None
    differing_from_deployable: int | None = None
    different_weights: tuple[str, ...] = ()
    median_lsb: float | None = None
    high_lsb: float | None = None
    max_lsb: float | None = None
    top1_agreement: float | None = None
    # How far the outputs of one image are from those of another, in steps: distances are to be seen against that.
    spread_lsb: float | None = None
    # Step -> seconds; the steps before the conversion are shared by the storages.
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.architecture, self.config, self.storage

    @property
    def is_supported(self) -> bool:
        """Whether the file is integer-only, converted without being told so, and exactly the trained integers."""
        wrong = self.failed_in or self.refusal or self.float_kernels or self.different_weights
        return not wrong and bool(self.integer_only) and self.differing_from_deployable == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Trained:
    """A model on its way; `images` are those of the verification."""

    q_model: keras.Model
    images: np.ndarray


def measure(architecture: str, config: str, storages: Sequence[str]) -> Iterator[Cell]:
    """The cells of an architecture under one config, each as soon as it is known."""
    facts: dict[str, Any] = {"architecture": architecture, "config": config}
    seconds: dict[str, float] = {}
    try:
        trained = _train(architecture, config, facts, seconds)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the reason.
        for storage in storages:
            yield Cell(storage=storage, seconds=seconds, **_failure(error, seconds), **facts)
        return
    for storage in storages:
        own_seconds = dict(seconds)
        own_facts: dict[str, Any] = {}
        try:
            _convert(trained, storage, own_facts, own_seconds)
        except Exception as error:  # noqa: BLE001 - as above.
            own_facts.update(_failure(error, own_seconds))
        yield Cell(storage=storage, seconds=own_seconds, **own_facts, **facts)
        _return_memory()


def _train(architecture: str, config: str, facts: dict[str, Any], seconds: dict[str, float]) -> _Trained:
    """Everything before the conversion; adds to `facts` what it learns on the way."""
    keras.utils.set_random_seed(1)
    with _timed("build", seconds):
        model = architectures.build(architecture)
        images = functools.partial(architectures.images, architecture, model)
        targets = [tensor.numpy() for tensor in _as_list(model(images(_TRAINING_IMAGES, 1), training=False))]
        facts.update(size=model.input_shape[1], weights=model.count_params())
    with _timed("quantize", seconds):
        q_model = tfqil.quantize_model(model, CONFIGS[config]())
        facts.update(depth=_depth(q_model), placements=_placements(q_model))
    with _timed("calibrate", seconds):
        tfqil.calibrate(q_model, images(_CALIBRATION_IMAGES, 0))
    with _timed("compare with float", seconds):
        facts.update(from_float=_distance(model, q_model, images(_VERIFICATION_IMAGES, 2)))
    with _timed("train", seconds):
        q_model.compile(keras.optimizers.SGD(_LEARNING_RATE), "mse")
        history = q_model.fit(images(_TRAINING_IMAGES, 1), targets, batch_size=_BATCH, epochs=1, verbose=0)
        if not np.isfinite(history.history["loss"]).all():
            raise RuntimeError(f"Got the loss {history.history['loss']}, expected a finite one.")
    with _timed("save and reload", seconds):
        reloaded = _reloaded(q_model, images(_BATCH, 1))
    return _Trained(q_model=reloaded, images=images(_VERIFICATION_IMAGES, 2))


def _distance(model: keras.Model, q_model: keras.Model, images: np.ndarray) -> float:
    """The largest, over the outputs, of the mean distances."""
    pairs = [[output.numpy() for output in _as_list(m(images, training=False))] for m in (model, q_model)]
    return max(
        float(np.abs(got - wanted).mean() / (wanted.std(axis=0).mean() or 1.0))
        for wanted, got in zip(*pairs, strict=True)
    )


def _reloaded(q_model: keras.Model, images: np.ndarray) -> keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "model.keras")
        q_model.save(path)
        reloaded = tfqil.load_model(path)
    pairs = zip(_as_list(q_model(images)), _as_list(reloaded(images)), strict=True)
    differing = sum(int(np.count_nonzero(before.numpy() != after.numpy())) for before, after in pairs)
    if differing:
        raise RuntimeError(f"Got {differing} other predictions from the reloaded model, expected the same.")
    return reloaded


def _convert(trained: _Trained, storage: str, facts: dict[str, Any], seconds: dict[str, float]) -> None:
    """Conversion and everything after it; adds to `facts` what it learns on the way."""
    with _timed("convert", seconds):
        try:
            tflite = tfqil.convert(trained.q_model, storage)
        except (ValueError, RuntimeError) as error:
            _return_memory()
            tflite = tfqil.convert(trained.q_model, storage, allow_float=True, check=False)
            facts.update(refusal=str(error))
    with _timed("inspect", seconds):
        report = tfqil.inspect(tflite)
        facts.update(
            bytes=report.bytes,
            gzipped_bytes=report.gzipped_bytes,
            integer_only=report.integer_only,
            float_operators=report.float_leftovers,
            float_kernels=tuple(weight.name for weight in report.weights if not weight.stored.startswith("INT")),
        )
    with _timed("verify", seconds):
        verified = tfqil.verify(trained.q_model, tflite, trained.images)
        facts.update(
            outputs=verified.outputs,
            differing_from_deployable=verified.differing_from_deployable,
            different_weights=verified.different_weights,
            top1_agreement=verified.top1_agreement,
        )
    with _timed("compare", seconds):
        found = distances.distances(trained.q_model, tflite, trained.images)
        if found is not None:
            median, high = np.percentile(found.steps, [50, 99])
            facts.update(
                median_lsb=float(median),
                high_lsb=float(high),
                max_lsb=float(found.steps.max()),
                spread_lsb=found.spread,
            )


@contextlib.contextmanager
def _timed(step: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[step] = time.perf_counter() - start


def _return_memory() -> None:
    """Gives freed memory back to the system: a conversion leaves gigabytes with the allocator."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # Other allocators than glibc's.
        ctypes.CDLL(None).malloc_trim(0)


def _failure(error: Exception, seconds: dict[str, float]) -> dict[str, str]:
    """The step that was timed last, and the first lines of the error."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return {"failed_in": list(seconds)[-1], "reason": reason[:1000]}


def _as_list(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _depth(q_model: keras.Model) -> int:
    """Kernels on the longest way from an input to an output."""
    depths: dict[int, int] = {}
    for node in _host.graph_of(q_model).nodes:
        own = any(weight.name.split(":")[0].endswith("kernel") for weight in node.layer.weights)
        depth = max((depths[number] for number in node.inputs), default=0) + own
        depths.update(dict.fromkeys(node.outputs, depth))
    return max(depths.values())


def _placements(q_model: keras.Model) -> dict[str, int]:
    rows = (row for row in tfqil.placements(q_model) if row.role in ("kernel", "tensor") or row.bits is not None)
    return dict(Counter(f"{row.role}, {f'{row.bits} bits' if row.bits else 'float'}: {row.reason}" for row in rows))
