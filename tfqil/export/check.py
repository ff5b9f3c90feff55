"""The check that every written file passes: its integers are the trained ones, and it computes what the model does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfqil import _host
from tfqil.export.inspect import FileReport
from tfqil.export.layers import IntegerQuantize
from tfqil.export.lower import Lowering
from tfqil.export.verify import LARGEST_MEAN_LSB, builtin_layers, compare, find_different_weights, lowering_for
from tfqil.scheme.report import float_layers

# Random examples; few, since the rounding of each output is a test.
_CHECKED_EXAMPLES = 4
# What stands for an open height or width.
_OPEN_SIZE = 32


def require_equal(q_model: Any, lowering: Lowering, plain: Any, tflite: bytes, report: FileReport) -> None:
    """Raises one sentence unless a file holds the trained integers and computes what its model does.

    Nothing is run if the range of an input is not known, or a layer adds noise, which differs from run to run.

    Args:
        q_model: the quantized model.
        lowering: the lowering that the file was made by.
        plain: the model that it made.
        tflite: content of the file.
        report: what `inspect` says of it.

    Raises:
        RuntimeError: other integers or scales, outputs that differ from the integer arithmetic, or that are more than
            `LARGEST_MEAN_LSB` steps from the trained model on average.
    """
    _require_trained_weights(find_different_weights(plain, q_model, tflite))
    examples = _random_inputs(plain, lowering)
    if examples is None or any(map(_host.always_trains, float_layers(q_model))):
        return
    if builtin_layers(q_model, report):
        lowering = lowering_for(q_model, report, lowering.pixels)
        plain = lowering.model()
    _require_equal_outputs(q_model, lowering, plain, tflite, report, examples)


def _require_trained_weights(different: Sequence[str]) -> None:
    if different:
        raise RuntimeError(
            f"Got other integers or scales in the file than were trained ({', '.join(different)}), "
            "expected the same: please report this model; check=False returns the file all the same."
        )


def _require_equal_outputs(
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


def _random_inputs(plain: Any, lowering: Lowering) -> list[np.ndarray] | None:
    """Examples that cover the range of each input; None if that of one is not known."""
    random = np.random.default_rng(0)
    grids = {id(layer.input): layer.grid for layer in plain.layers if isinstance(layer, IntegerQuantize)}
    examples = []
    for name, tensor in zip(plain.input_names, plain.inputs, strict=True):
        shape = (_CHECKED_EXAMPLES, *(size or _OPEN_SIZE for size in tensor.shape[1:]))
        grid, pixels = grids.get(id(tensor)), lowering.pixels.get(name)
        if pixels is not None:
            examples.append(random.integers(0, pixels.highest + 1, shape).astype(np.float32))
        elif grid is not None:
            low, high = ((end - grid.zero_point) * grid.scale for end in (-128, 127))
            examples.append(random.uniform(low, high, shape).astype(np.float32))
        elif tensor.dtype == tf.uint8:
            examples.append(random.integers(0, 256, shape, np.uint8))
        else:
            return None  # Words of a vocabulary, or values of a layer that may be defined for few.
    return examples
