"""From a trained model to the bytes of an integer-only LiteRT file."""

from __future__ import annotations

import os
import pathlib
import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from tfqil.export.freeze import require_calibrated, require_quantized
from tfqil.export.inspect import inspect
from tfqil.export.layers import IntegerQuantize
from tfqil.export.lower import deployable
from tfqil.export.pack import STORAGES, pack
from tfqil.export.signature import order_like
from tfqil.export.verify import LARGEST_MEAN_LSB, verify

# Random examples of the check that every written file passes; few, since the rounding of each output is a test.
_CHECKED_EXAMPLES = 4
# What stands for an open height or width in that check.
_OPEN_SIZE = 32


def convert(
    q_model: Any,
    storage: str = "fastest",
    *,
    path: str | os.PathLike[str] | None = None,
    allow_float: bool = False,
    check: bool = True,
) -> bytes:
    """Converts a quantized model to a LiteRT file whose integers are the trained ones.

    Args:
        q_model: a calibrated or trained model from `quantize_model` or `quantize_apply`.
        storage: "fastest" (INT8 for spatial and depthwise convolutions, INT4 for dense and pointwise layers where
            XNNPACK has kernels), "smallest" (INT4 everywhere the runtime takes it, INT2 for dense and pointwise
            layers whose codes fit) or "int8" (for old runtimes).
        path: writes the file there too; it must not exist yet.
        allow_float: return a file in which some operators compute in float, as `edge_bits=None` makes it.
        check: run the file once on random inputs: it must equal `deployable(q_model)` bit for bit, and be at most
            `verify.LARGEST_MEAN_LSB` steps from `q_model` on average.

    Returns:
        The content of the file.

    Raises:
        TypeError, ValueError: a float or uncalibrated model, an unknown storage, or float operators in the file.
        FileExistsError, FileNotFoundError: `path` exists, or its folder does not.
        RuntimeError: the written file does not compute what the model does; nothing is returned or written.
    """
    if storage not in STORAGES:
        raise ValueError(f"Got storage={storage!r}, expected one of {', '.join(map(repr, STORAGES))}.")
    require_quantized(q_model)
    require_calibrated(q_model)
    if path is not None:
        _require_new_path(pathlib.Path(path))
    plain = deployable(q_model)
    converter = tf.lite.TFLiteConverter.from_keras_model(plain)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with warnings.catch_warnings():
        # The fake quantizations hold the statistics that the converter misses.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")
        converted = converter.convert()
    tflite = pack(order_like(converted, plain.input_names, plain.output_names), storage)
    report = inspect(tflite)
    if not report.integer_only and not allow_float:
        first, *others = report.float_leftovers
        more = f", and {len(others)} more" if others else ""
        raise ValueError(
            f"Got a file that computes in float ({first}{more}), expected integers only: give those layers "
            "quantizers (edge_bits=8), or pass allow_float=True."
        )
    if check and report.integer_only:
        _require_equal(q_model, tflite, _random_inputs(plain))
    if path is not None:
        _write(tflite, pathlib.Path(path))
    return tflite


def _require_equal(q_model: Any, tflite: bytes, inputs: list[np.ndarray]) -> None:
    report = verify(q_model, tflite, inputs)
    if report.different_weights:
        raise RuntimeError(
            f"Got other integers or scales in the file than were trained ({', '.join(report.different_weights)}), "
            "expected the same: please report this model; check=False returns the file all the same."
        )
    if report.differing_from_deployable:
        raise RuntimeError(
            f"Got {report.differing_from_deployable} of {report.outputs} outputs of the file that differ from the "
            "model's integer arithmetic, expected 0: the runtime's kernels may round in another way on this machine; "
            "check=False returns the file all the same."
        )
    if not report.accepted:
        raise RuntimeError(
            f"Got outputs of the file that are {report.mean_lsb:.2f} steps from the model's on average, expected at "
            f"most {LARGEST_MEAN_LSB:g}: verify(..., per_layer=True) on your data shows where they part; check=False "
            "returns the file all the same."
        )


def _random_inputs(plain: Any) -> list[np.ndarray]:
    """Examples that cover the range of each input's grid."""
    random = np.random.default_rng(0)
    grids = {id(layer.input): layer.grid for layer in plain.layers if isinstance(layer, IntegerQuantize)}
    examples = []
    for tensor in plain.inputs:
        grid = grids[id(tensor)]
        shape = (_CHECKED_EXAMPLES, *(size or _OPEN_SIZE for size in tensor.shape[1:]))
        low, high = ((end - grid.zero_point) * grid.scale for end in (-128, 127))
        examples.append(random.uniform(low, high, shape).astype(np.float32))
    return examples


def _require_new_path(path: pathlib.Path) -> None:
    if path.exists():
        raise FileExistsError(f"Got the existing path {str(path)!r}, expected a new one: remove the file first.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"Got the path {str(path)!r}, expected one in an existing folder: create {str(path.parent)!r} first."
        )


def _write(content: bytes, path: pathlib.Path) -> None:
    """Writes a new file in one step: it is whole, or it is not there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
