"""From a trained model to the bytes of a LiteRT file, integer-only unless float parts are allowed."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from absl import logging

from tfqil.export.check import require_equal
from tfqil.export.freeze import require_calibrated, require_quantized
from tfqil.export.inspect import inspect
from tfqil.export.io_tensors import require_type, with_integer_io
from tfqil.export.lite_converter import converted
from tfqil.export.lower import Lowering
from tfqil.export.metadata import Normalization, with_metadata
from tfqil.export.metadata_arguments import labels_by_output, normalization_of
from tfqil.export.new_path import require_new_path, written_whole
from tfqil.export.pack import STORAGES, pack
from tfqil.export.pixels import find_pixels, kept_normalizations, normalized_inputs
from tfqil.export.refusals import require_exact_weights, require_expected_float, require_grids
from tfqil.export.signature import names_in_file, order_like, signature_names
from tfqil.scheme.report import require_no_float_layers


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
            operator is left of it. Other normalizations stay operators, with a warning that says why and what to
            do, and the integers are those of the raw input's grid. Inputs that are no float32, such as the int32
            numbers of words, stay as they are.
        output_type: type of the file's outputs, likewise.
        labels: names of the classes, one for each value of the last axis of the output, which go into the file's
            metadata (`read_metadata`); two may be equal. Of several outputs a dictionary, name of the output in the
            float model, which is that in the file, -> labels.
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
            LiteRT has no operators for, integer inputs or outputs where the model computes in float, labels that are
            not as many texts as the classes, or a normalization that is no pair of finite numbers with positive `std`.
        FileExistsError, FileNotFoundError: `path` exists, or its folder does not.
        RuntimeError: the written file does not compute what the model does; nothing is returned or written.
    """
    _require_options(storage, input_type, output_type)
    require_quantized(q_model)
    require_calibrated(q_model)
    given = None if normalization is None else normalization_of(q_model, normalization)
    if path is not None:
        require_new_path(pathlib.Path(path))
    if require_integer_only:
        require_no_float_layers(q_model)
    lowering = Lowering(q_model, pixels=find_pixels(q_model) if input_type != "float32" else {})
    plain = lowering.model()
    labels_of_outputs = labels_by_output(plain, labels)
    require_grids(plain, lowering, input_type, output_type)
    own = normalized_inputs(q_model)
    if given is not None:
        _require_no_own_normalization(own)
    if input_type != "float32":
        _warn_of_kept_normalizations(q_model)
    require_exact_weights(plain, allow_float=allow_float)
    tflite = _written(q_model, plain, storage, input_type, output_type)
    report = inspect(tflite)
    if not report.integer_only and not allow_float:
        require_expected_float(q_model, plain, tflite)
    if check:
        require_equal(q_model, lowering, plain, tflite, report)
    tflite = _described(tflite, plain, lowering, labels_of_outputs, given, own)
    if path is not None:
        with written_whole(pathlib.Path(path)) as partial:
            partial.write_bytes(tflite)
    return tflite


def _require_options(storage: str, input_type: str, output_type: str) -> None:
    if storage not in STORAGES:
        raise ValueError(f"Got storage={storage!r}, expected one of {', '.join(map(repr, STORAGES))}.")
    require_type("input_type", input_type)
    require_type("output_type", output_type)


def _require_no_own_normalization(own: Collection[str]) -> None:
    if own:
        raise ValueError(
            f"Got a normalization for the input {', '.join(map(repr, sorted(own)))}, expected none: the model has its "
            "own."
        )


def _warn_of_kept_normalizations(q_model: Any) -> None:
    for name, reason in kept_normalizations(q_model).items():
        logging.warning("tfqil: the normalization of the input %r stays an operator, since %s.", name, reason)


def _written(q_model: Any, plain: Any, storage: str, input_type: str, output_type: str) -> bytes:
    """The file of a deployable model, its constants packed, and its inputs and outputs of the types asked for."""
    names = signature_names(plain.input_names), signature_names(names_in_file(plain))
    content = order_like(converted(q_model, plain, *names), *names)
    return with_integer_io(pack(content, storage), input_type, output_type)


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
        labels=[tuple(labels.get(name, ())) for name in names_in_file(plain)],
    )
