"""From a trained model to the bytes of a LiteRT file, integer-only unless float parts are allowed."""

from __future__ import annotations

import os
import pathlib
import re
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfqil import _host
from tfqil.export.float_constants import is_exact_in_float16
from tfqil.export.float_layers import FloatLinear
from tfqil.export.freeze import require_calibrated, require_quantized
from tfqil.export.inspect import FileReport, inspect, read_leftovers
from tfqil.export.layers import IntegerQuantize
from tfqil.export.lower import Lowering
from tfqil.export.pack import STORAGES, pack
from tfqil.export.signature import order_like, signature_names
from tfqil.export.verify import (
    LARGEST_MEAN_LSB,
    builtin_layers,
    compare,
    find_different_weights,
    layer_of,
    lowering_for,
)
from tfqil.scheme.report import float_layers, require_no_float_layers, with_reasons

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
    require_integer_only: bool = False,
    check: bool = True,
) -> bytes:
    """Converts a quantized model to a LiteRT file whose integers are the trained ones.

    Args:
        q_model: a calibrated or trained model from `quantize_model` or `quantize_apply`.
        storage: "fastest" (INT8 for spatial and depthwise convolutions, INT4 for dense and pointwise layers where
            XNNPACK has kernels), "smallest" (INT4 everywhere the runtime takes it, INT2 for dense and pointwise
            layers whose codes fit) or "int8" (for old runtimes).
        path: writes the file there too; it must not exist yet.
        allow_float: return a file in which some operators compute in float: layers that `edge_bits=None` leaves in
            float, and layers whose integers do not fit INT8, such as powers of two over more than seven octaves. The
            kernels of the latter are FLOAT16 constants that hold the trained values exactly. Layers whose arithmetic is
            not known, which `quantize_model` named when it left them in float, need no permission; other operators do.
        require_integer_only: refuse a model with such layers too.
        check: compare the integers in the file with the trained ones, and run it once on random inputs: it must equal
            `deployable(q_model)` bit for bit, and be at most `verify.LARGEST_MEAN_LSB` steps from `q_model` on average.
            Where some operators compute in float, which may add in another order, only the latter; of a model with
            mixed precision, which rounds its outputs, only the former. Nothing is run if the range of an input is not
            known, as of one that only float layers read, or a layer adds noise.

    Returns:
        The content of the file.

    Raises:
        TypeError, ValueError: a float or uncalibrated model, an unknown storage, integers that do not fit INT8 or
            float operators in the file without `allow_float`, weights that float16 would round, or a float layer that
            LiteRT has no operators for.
        FileExistsError, FileNotFoundError: `path` exists, or its folder does not.
        RuntimeError: the written file does not compute what the model does; nothing is returned or written.
    """
    if storage not in STORAGES:
        raise ValueError(f"Got storage={storage!r}, expected one of {', '.join(map(repr, STORAGES))}.")
    require_quantized(q_model)
    require_calibrated(q_model)
    if path is not None:
        _require_new_path(pathlib.Path(path))
    if require_integer_only:
        require_no_float_layers(q_model)
    lowering = Lowering(q_model)
    plain = lowering.model()
    _require_exact_weights(plain, allow_float=allow_float)
    names = signature_names(plain.input_names), signature_names(plain.output_names)
    try:
        converted = _converted(plain, *names)
    except Exception as error:  # The converter's own class is not public.
        if (sentence := _not_converted(q_model, error)) is None:
            raise
        raise ValueError(sentence) from error
    tflite = pack(order_like(converted, *names), storage)
    report = inspect(tflite)
    if not report.integer_only and not allow_float:
        _require_expected_float(q_model, plain, tflite)
    if check:
        _require_trained_weights(find_different_weights(plain, q_model, tflite))
        examples = _random_inputs(plain)
        # Noise differs from run to run.
        if examples is not None and not any(map(_host.always_trains, float_layers(q_model))):
            if builtin_layers(q_model, report):
                lowering = lowering_for(q_model, report)
                plain = lowering.model()
            _require_equal(q_model, lowering, plain, tflite, report, examples)
    if path is not None:
        _write(tflite, pathlib.Path(path))
    return tflite


def _converted(plain: Any, input_names: Sequence[str], output_names: Sequence[str]) -> bytes:
    """What TFLiteConverter writes of a deployable model."""
    # The loops of recurrent layers need a known batch size.
    batch = 1 if any(map(_host.is_recurrent, plain.layers)) else None

    def run(*inputs: Any) -> dict[str, Any]:
        return dict(zip(output_names, _host.as_list(plain(list(inputs), training=False)), strict=True))

    signature = [
        tf.TensorSpec((batch or tensor.shape[0], *tensor.shape[1:]), tensor.dtype, name=name)
        for tensor, name in zip(plain.inputs, input_names, strict=True)
    ]
    # A module with the variables alone: a Keras model is traced several times over before it is converted.
    module = tf.Module()
    module.variables_of_float_layers = plain.variables
    function = tf.function(run, autograph=False).get_concrete_function(*signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with warnings.catch_warnings():
        # The fake quantizations hold the statistics that the converter misses.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")
        content: bytes = converter.convert()
    return content


def _not_converted(q_model: Any, error: Exception) -> str | None:
    """A sentence about what the converter refuses, if it is a float layer that may be the reason."""
    in_float = float_layers(q_model)
    missing = re.search(r"(?:TF Select|Custom) ops: ([^\n]+)", str(error))
    if not in_float or missing is None:
        return None
    return (
        f"Got the TensorFlow operators {missing[1]}, which LiteRT does not have, expected others: replace the layer "
        f"they come from, which is one of those in float, {with_reasons(in_float)}."
    )


def _require_exact_weights(plain: Any, *, allow_float: bool) -> None:
    """Raises one sentence unless integers, or float16 where float is allowed, hold every trained weight."""
    wide = [layer for layer in plain.layers if isinstance(layer, FloatLinear)]
    if wide and not allow_float:
        raise ValueError(
            f"Got weights whose integers do not fit INT8 ({_names(wide)}), expected at most 127: train these layers "
            "with int8_exact=True, as in LBWQuantizeConfig(..., int8_exact=True), which keeps the seven largest "
            "powers of two, or pass allow_float=True, which computes them in float with float16 constants."
        )
    rounded = [layer for layer in wide if not is_exact_in_float16(layer.kernel)]
    if rounded:
        raise ValueError(
            f"Got weights whose integers do not fit INT8 and whose values float16 would round ({_names(rounded)}), "
            "expected values such as powers of two in 2^-24 .. 2^15: train these layers with int8_exact=True, or with "
            "a uniform quantizer of at most 8 bits."
        )


def _names(layers: list[Any]) -> str:
    return ", ".join(layer.name for layer in layers)


def _require_expected_float(q_model: Any, plain: Any, tflite: bytes) -> None:
    """Raises one sentence if more than the layers that were left in float computes in float."""
    named = {layer.name for layer in float_layers(q_model)}
    others = {layer.name for layer in plain.layers} - named
    unexpected = [
        leftover.sentence
        for leftover in read_leftovers(tflite)
        # Operators inside a layer, as in the body of a loop, may bear no layer's name.
        if not named or (leftover.computes and _is_of(leftover.result, others, unless=named))
    ]
    if unexpected:
        first, *more = unexpected
        raise ValueError(
            f"Got a file that computes in float ({first}{f', and {len(more)} more' if more else ''}), expected "
            f"integers only{' but for ' + ', '.join(sorted(named)) if named else ''}: give those layers quantizers "
            "(edge_bits=8), or pass allow_float=True."
        )


def _is_of(tensor: str, layers: Collection[str], *, unless: Collection[str]) -> bool:
    """Whether a tensor is named after one of some layers, and after none of others."""
    return layer_of(tensor, layers) is not None and layer_of(tensor, unless) is None


def _require_trained_weights(different: Sequence[str]) -> None:
    if different:
        raise RuntimeError(
            f"Got other integers or scales in the file than were trained ({', '.join(different)}), "
            "expected the same: please report this model; check=False returns the file all the same."
        )


def _require_equal(
    q_model: Any, lowering: Lowering, plain: Any, tflite: bytes, file: FileReport, inputs: list[np.ndarray]
) -> None:
    report = compare(q_model, lowering, plain, tflite, file, inputs)
    if file.integer_only and report.differing_from_deployable:
        raise RuntimeError(
            f"Got {report.differing_from_deployable} of {report.outputs} outputs of the file that differ from the "
            "model's integer arithmetic, expected 0: the runtime's kernels may round in another way on this machine; "
            "check=False returns the file all the same."
        )
    # Mixed precision is for training: its outputs have 8 or 11 bits, with which many a step is another.
    computes_in_float32 = all(layer.compute_dtype not in ("bfloat16", "float16") for layer in q_model.layers)
    if computes_in_float32 and report.mean_lsb > LARGEST_MEAN_LSB:
        raise RuntimeError(
            f"Got outputs of the file that are {report.mean_lsb:.2f} steps from the model's on average, expected at "
            f"most {LARGEST_MEAN_LSB:g}: verify(..., per_layer=True) on your data shows where they part; check=False "
            "returns the file all the same."
        )


def _random_inputs(plain: Any) -> list[np.ndarray] | None:
    """Examples that cover the range of each input; None if that of one is not known."""
    random = np.random.default_rng(0)
    grids = {id(layer.input): layer.grid for layer in plain.layers if isinstance(layer, IntegerQuantize)}
    examples = []
    for tensor in plain.inputs:
        shape = (_CHECKED_EXAMPLES, *(size or _OPEN_SIZE for size in tensor.shape[1:]))
        grid = grids.get(id(tensor))
        if grid is not None:
            low, high = ((end - grid.zero_point) * grid.scale for end in (-128, 127))
            examples.append(random.uniform(low, high, shape).astype(np.float32))
        elif tensor.dtype == tf.uint8:
            examples.append(random.integers(0, 256, shape, np.uint8))
        else:
            return None  # Words of a vocabulary, or values of a layer that may be defined for few.
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
