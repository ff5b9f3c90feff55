"""From a trained model to the bytes of a LiteRT file, integer-only unless float parts are allowed."""

from __future__ import annotations

import os
import pathlib
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfqil import _host
from tfqil.export.edges import require_type, with_integer_edges
from tfqil.export.float_constants import is_exact_in_float16
from tfqil.export.float_layers import FloatLinear
from tfqil.export.freeze import require_calibrated, require_quantized
from tfqil.export.inspect import FileReport, inspect, read_leftovers
from tfqil.export.layers import IntegerPixels, IntegerQuantize
from tfqil.export.lower import Lowering
from tfqil.export.metadata import Normalization, labels_by_output, normalization_of, with_metadata
from tfqil.export.new_path import require_new_path, written_whole
from tfqil.export.pack import STORAGES, pack
from tfqil.export.pixels import normalized_inputs
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
    input_type: str = "float32",
    output_type: str = "float32",
    labels: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    normalization: tuple[Any, Any] | None = None,
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
        input_type: type of the file's inputs, "float32", "int8" or "uint8". Integers are those of the input's grid,
            value = scale * (integer - zero point), and no operator quantizes them; uint8 costs one that takes 128 from
            each. Where the model begins with a Rescaling or Normalization, with one scale and one offset for all
            channels and -offset / scale a whole number, they are the raw bytes of pixels (as int8: less 128), and no
            operator is left of it. Other normalizations stay operators, with a warning that says why, and the integers
            are those of the raw input's grid. Inputs that are no float32 stay as they are.
        output_type: type of the file's outputs, likewise.
        labels: names of the classes, one for each value of the last axis of the output, which go into the file's
            metadata (`read_metadata`); of several outputs a dictionary, name of the output in the file -> labels.
        normalization: (mean, std) for the metadata: the app computes (pixel - mean) / std before it quantizes. Numbers,
            or sequences of one per channel. None: that of the model's own first layer if the file takes raw bytes, else
            none if the model has such a layer (0 and 1), else not said.
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
        TypeError, ValueError: a float or uncalibrated model, an unknown storage or type, integers that do not fit INT8
            or float operators in the file without `allow_float`, weights that float16 would round, a float layer that
            LiteRT has no operators for, integer edges where the model computes in float, labels that are not as many
            as the classes, or a standard deviation of 0.
        FileExistsError, FileNotFoundError: `path` exists, or its folder does not.
        RuntimeError: the written file does not compute what the model does; nothing is returned or written.
    """
    if storage not in STORAGES:
        raise ValueError(f"Got storage={storage!r}, expected one of {', '.join(map(repr, STORAGES))}.")
    require_type("input_type", input_type)
    require_type("output_type", output_type)
    require_quantized(q_model)
    require_calibrated(q_model)
    given = None if normalization is None else normalization_of(q_model, *normalization)
    if path is not None:
        require_new_path(pathlib.Path(path))
    if require_integer_only:
        require_no_float_layers(q_model)
    integer_inputs = input_type != "float32"
    lowering = Lowering(q_model, integer_inputs=integer_inputs)
    plain = lowering.model()
    labels_of_outputs = labels_by_output(plain, labels)
    _require_grids_at_edges(plain, lowering, input_type, output_type)
    own = normalized_inputs(q_model)
    if given and own:
        raise ValueError(
            f"Got a normalization for the input {', '.join(map(repr, sorted(own)))}, expected none: the model has its "
            "own."
        )
    for name, reason in lowering.kept_normalizations.items():
        logging.warning("tfqil: the normalization of the input %r stays an operator, since %s.", name, reason)
    _require_exact_weights(plain, allow_float=allow_float)
    names = signature_names(plain.input_names), signature_names(plain.output_names)
    try:
        converted = _converted(plain, *names)
    except Exception as error:  # The converter's own class is not public.
        if (sentence := _not_converted(q_model, error)) is None:
            raise
        raise ValueError(sentence) from error
    tflite = with_integer_edges(pack(order_like(converted, *names), storage), input_type, output_type)
    report = inspect(tflite)
    if not report.integer_only and not allow_float:
        _require_expected_float(q_model, plain, tflite)
    if check:
        _require_trained_weights(find_different_weights(plain, q_model, tflite))
        examples = _random_inputs(plain, lowering)
        # Noise differs from run to run.
        if examples is not None and not any(map(_host.always_trains, float_layers(q_model))):
            if builtin_layers(q_model, report):
                lowering = lowering_for(q_model, report, integer_inputs=integer_inputs)
                plain = lowering.model()
            _require_equal(q_model, lowering, plain, tflite, report, examples)
    tflite = _described(tflite, plain, lowering, labels_of_outputs, given, own)
    if path is not None:
        with written_whole(pathlib.Path(path)) as partial:
            partial.write_bytes(tflite)
    return tflite


def _described(
    tflite: bytes,
    plain: Any,
    lowering: Lowering,
    labels: Mapping[str, Sequence[str]],
    given: Normalization | None,
    normalized: Collection[str],
) -> bytes:
    """The file with metadata, if there is something to say: labels, or how an app prepares the input.

    Args:
        tflite: content of the file.
        plain: the deployable model.
        lowering: what made it.
        labels: by the names of the outputs.
        given: what the caller says of the input.
        normalized: names of the inputs whose pixels the model normalizes itself.
    """
    of_pixels = {
        name: Normalization(mean=(0.0 - pixels.offset / pixels.scale,), std=(1 / pixels.scale,))
        for name, pixels in lowering.pixels.items()
    }
    if not (labels or given or of_pixels):
        return tflite
    known = {**dict.fromkeys(normalized, Normalization(mean=(0.0,), std=(1.0,))), **of_pixels}
    return with_metadata(
        tflite,
        name=plain.name,
        normalizations=[given or known.get(name) for name in plain.input_names],
        labels=[tuple(labels.get(name, ())) for name in plain.output_names],
    )


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


def _require_grids_at_edges(plain: Any, lowering: Lowering, input_type: str, output_type: str) -> None:
    """Raises one sentence unless what shall be integers in the file is on a grid."""
    graph = _host.graph_of(plain)
    if input_type != "float32":
        nodes = [node for node in graph.nodes if not node.inputs and _host.is_floating(node)]
        readers = {node.layer.name: [r.layer for r in graph.readers(node.outputs[0])] for node in nodes}
        in_float = [
            name
            for name, layers in readers.items()
            if len(layers) != 1 or not isinstance(layers[0], (IntegerQuantize, IntegerPixels))
        ]
        if in_float or not readers:
            raise ValueError(
                f"Got input_type={input_type!r} for {_edge_names('input', in_float or plain.input_names)}, expected "
                "float32, since nothing quantizes it first: leave out input_type, or give the layers that read it "
                "quantizers (edge_bits=8)."
            )
    if output_type != "float32":
        in_float = [
            name for name, scale in zip(plain.output_names, lowering.output_scales, strict=True) if scale is None
        ]
        if in_float:
            raise ValueError(
                f"Got output_type={output_type!r} for {_edge_names('output', in_float)}, expected float32, since a "
                "layer in float computes it: leave out output_type, or give that layer quantizers (edge_bits=8)."
            )


def _edge_names(what: str, names: Sequence[str]) -> str:
    return f"the {what}{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"


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
