"""Verification: what a file computes against what was trained.

Two distances: from the file to the lowered model, which runs the same integer arithmetic and must agree bit for bit,
and from the file to the trained model, which computes in float and may differ where a float lies next to a rounding
boundary.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfqil import _host
from tfqil.export import runtime
from tfqil.export.float_layers import FloatLinear
from tfqil.export.freeze import freeze
from tfqil.export.inspect import FileReport, inspect, read_content, read_float_weights, read_weights
from tfqil.export.layers import IntegerLinear
from tfqil.export.lower import Lowering, tensor_name
from tfqil.export.pixels import Pixels, find_pixels
from tfqil.export.signature import names_in_file, places_of, signature_names
from tfqil.export.tied_layers import IntegerPReLU
from tfqil.scheme.inputs import input_tensors
from tfqil.scheme.layers import QuantizeActivation

_BATCH = 64
# From more batches on it pays to trace a model.
_EAGER_CHUNKS = 2

# How far the file may be from `q_model.predict` on average, in steps of the output. A float next to a rounding boundary
# moves single outputs, by a few steps in 2-bit networks; more on average means that they compute different things.
LARGEST_MEAN_LSB = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerDifference:
    """How far the trained model's tensor is from the lowered one, behind one quantizer.

    Attributes:
        layer: name of the quantizing layer.
        differing: share of the values that differ.
        largest: largest difference in steps of the tensor's grid.
    """

    layer: str
    differing: float
    largest: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerificationReport:
    """What `verify` measured.

    Attributes:
        accepted: the file is integer-only, its integers and scales are the trained ones, no output differs from the
            lowered model, and `mean_lsb` is at most `LARGEST_MEAN_LSB`. A file with float layers is never accepted.
        integer_only: whether every operator of the file computes on integers.
        examples: number of inputs.
        outputs: number of output values.
        differing_from_deployable: outputs that differ from `deployable(q_model)` with the kernels that run the file. A
            float layer inside (`allow_float=True`) may add its products in another order: a sum next to a rounding
            boundary then falls to the other side.
        different_weights: layers whose integers or scales in the file are not the trained ones; of the layers whose
            integers fit no integer type, those whose float values are not.
        differing_from_model: share of the outputs that differ from `q_model.predict`, in [0, 1].
        max_lsb: largest difference from `q_model.predict`, in steps of the output grid; a 255th of the range of an
            output that is on no grid counts as its step.
        mean_lsb: mean absolute difference, in steps of the output grid.
        top1_agreement: share of examples whose largest output is the same class, ties counted as agreement.
        layers: per-layer differences, if they were asked for.
    """

    accepted: bool
    integer_only: bool
    examples: int
    outputs: int
    differing_from_deployable: int
    different_weights: tuple[str, ...]
    differing_from_model: float
    max_lsb: int
    mean_lsb: float
    top1_agreement: float
    layers: tuple[LayerDifference, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        values = dataclasses.asdict(self)
        return {**values, "different_weights": list(self.different_weights), "layers": list(values["layers"])}


def verify(
    q_model: Any, tflite: bytes | str | os.PathLike[str], inputs: Any, *, per_layer: bool = False
) -> VerificationReport:
    """Compares a file with the model that it was converted from.

    Args:
        q_model: the quantized model.
        tflite: content of the file, or its path: from `convert`, or from a TFLiteConverter and `deployable(q_model)`.
        inputs: an array of examples as the model takes them, or for several inputs a list of arrays, or a dictionary by
            their names. For a file with integer inputs they are put on its grids, and its outputs taken off theirs.
        per_layer: also compare every quantized tensor of the trained model with the lowered one.

    Raises:
        TypeError, ValueError: a float or uncalibrated model, no .tflite file, or inputs of another shape.
    """
    arrays = [tensor.numpy() for tensor in input_tensors(q_model, inputs, "inputs")]
    tflite = read_content(tflite)
    report = inspect(tflite)
    lowering = lowering_for(q_model, report, pixels_in(report, q_model))
    return compare(q_model, lowering, lowering.model(), tflite, report, arrays, per_layer=per_layer)


def compare(
    q_model: Any,
    lowering: Lowering,
    lowered: Any,
    tflite: bytes,
    report: FileReport,
    arrays: list[np.ndarray],
    *,
    per_layer: bool = False,
) -> VerificationReport:
    """What `verify` measures, with the lowering and the report of the file at hand.

    Args:
        q_model: the quantized model.
        lowering: the lowering with the kernels that run the file.
        lowered: the model that it made.
        tflite: content of the file.
        report: what `inspect` says of it.
        arrays: examples, one array per model input.
        per_layer: also compare every quantized tensor.
    """
    got, deployed = _run_file(tflite, report, lowered, lowering.file_inputs(arrays)), _predict(lowered, arrays)
    trained = _predict(q_model, arrays)
    if [output.shape for output in got] != [output.shape for output in trained]:
        raise ValueError(
            f"Got a file with outputs of shape {[output.shape for output in got]}, expected "
            f"{[output.shape for output in trained]}: pass the file that was converted from this model."
        )
    steps = [
        np.rint((file - model) / (scale or _float_step(model)))
        for file, model, scale in zip(got, trained, lowering.output_scales, strict=True)
    ]
    magnitudes = np.abs(np.concatenate([difference.ravel() for difference in steps]))
    differing = _count_differing(got, deployed)
    different_weights = find_different_weights(lowered, q_model, tflite)
    return VerificationReport(
        accepted=report.integer_only
        and not differing
        and not different_weights
        and float(magnitudes.mean()) <= LARGEST_MEAN_LSB,
        integer_only=report.integer_only,
        examples=len(arrays[0]),
        outputs=magnitudes.size,
        differing_from_deployable=differing,
        different_weights=different_weights,
        differing_from_model=float(np.mean(magnitudes > 0)),
        max_lsb=int(magnitudes.max()),
        mean_lsb=float(magnitudes.mean()),
        top1_agreement=_top1_agreement(got[0], trained[0]),
        layers=_layer_differences(q_model, lowering, arrays) if per_layer else (),
    )


def _float_step(output: np.ndarray) -> float:
    """What counts as a step of an output on no grid: a 255th of its range."""
    return float(np.ptp(output)) / 255 or 1.0


def lowering_for(q_model: Any, report: FileReport, pixels: Mapping[str, Pixels]) -> Lowering:
    """The lowering with the rounding of the kernels that run each layer of a file, and the pixels that it takes."""
    return Lowering(q_model, builtin_layers(q_model, report), pixels=pixels)


def pixels_in(report: FileReport, q_model: Any) -> dict[str, Pixels]:
    """The inputs that a file takes as bytes of pixels, by their names in the model.

    They are those whose grid in the file is that of the bytes. Other converters keep the normalization as an operator,
    and the grid of their integers is that of the raw input.
    """
    inputs = report.inputs
    if len(inputs) != len(q_model.input_names):
        return {}
    places = places_of(signature_names(q_model.input_names), [tensor.name for tensor in inputs])
    of_model = {name: inputs[place] for name, place in zip(q_model.input_names, places, strict=True)}
    return {
        name: pixels
        for name, pixels in find_pixels(q_model).items()
        if of_model[name].is_integer and of_model[name].int8_grid == pixels.grid
    }


def builtin_layers(q_model: Any, report: FileReport) -> frozenset[str]:
    """The layers of a file whose kernels XNNPACK does not take."""
    builtin = [weight.name for weight in report.weights if weight.kernels == "builtin"]
    if not builtin:
        return frozenset()
    frozen = freeze(q_model)
    names = (layer_of(name, frozen) for name in builtin)
    return frozenset(name for name in names if name is not None)


def layer_of(tensor_name: str, layers: Any) -> str | None:
    """The layer that a tensor of a file belongs to: the converter joins name scopes by ';'.

    The first scope that names a layer counts, and in it the longest name.
    """
    for scope in tensor_name.split(";"):
        inner = f"/{scope.partition('/')[2]}/"
        found = [name for name in layers if f"/{name}/" in inner]
        if found:
            return max(found, key=len)
    return None


def find_different_weights(lowered: Any, q_model: Any, tflite: bytes) -> tuple[str, ...]:
    """The layers without a tensor in the file that has their codes and steps, or their values if they are in float."""
    frozen = freeze(q_model)
    integers, floats = read_weights(tflite), read_float_weights(tflite)
    different = []
    for layer in lowered.layers:
        if isinstance(layer, (IntegerLinear, IntegerPReLU)) and layer.name in frozen:
            same = any(_same_weights(layer, *weights) for weights in _candidates(layer.name, integers, frozen))
        elif isinstance(layer, FloatLinear):
            same = any(_same_values(layer, values) for values in _candidates(layer.name, floats, frozen))
        else:
            continue
        if not same:
            different.append(layer.name)
    return tuple(different)


def _candidates(layer: str, in_file: Mapping[str, Any], layers: Collection[str]) -> list[Any]:
    """What may be the weights of a layer: those that bear its name, else all.

    The converter merges equal constants, so that the tensor may bear another layer's name.
    """
    named = [weights for name, weights in in_file.items() if layer_of(name, layers) == layer]
    return named or list(in_file.values())


def _same_values(layer: FloatLinear, values: NDArray[np.float32]) -> bool:
    return values.size == layer.kernel.size and np.array_equal(values.reshape(-1), layer.kernel.reshape(-1))


def _same_weights(layer: IntegerLinear | IntegerPReLU, codes: NDArray[np.int8], steps: NDArray[np.float32]) -> bool:
    return (
        codes.size == layer.codes.size
        and np.array_equal(codes.reshape(-1), layer.codes.reshape(-1))
        # Integers that are all 0 have no step.
        and bool(np.all(np.broadcast_to(steps, layer.steps.shape) == layer.steps) or not np.any(codes))
    )


def _chunks(arrays: list[np.ndarray], size: int = _BATCH) -> list[list[np.ndarray]]:
    starts = range(0, len(arrays[0]), size)
    return [[array[start : start + size] for array in arrays] for start in starts]


def _run_file(tflite: bytes, report: FileReport, lowered: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The float outputs of a file for float inputs, whatever their types in the file, all in the model's order."""
    inputs, outputs = report.inputs, report.outputs
    if len(inputs) == len(arrays):  # If not, the runtime says what it takes.
        places = places_of(signature_names(lowered.input_names), [tensor.name for tensor in inputs])
        of_file = {place: inputs[place].integers(array) for place, array in zip(places, arrays, strict=True)}
        arrays = [of_file[place] for place in range(len(inputs))]
    parts = [runtime.run(tflite, chunk) for chunk in _chunks(arrays, runtime.fixed_batch(tflite) or _BATCH)]
    stored = [np.concatenate(output) for output in zip(*parts, strict=True)]
    in_file = [tensor.name for tensor in outputs]
    # Files that other converters make of the deployable model call its outputs after its layers.
    ours, of_layers = (signature_names(names) for names in (names_in_file(lowered), lowered.output_names))
    places = places_of(ours if set(ours) == set(in_file) else of_layers, in_file)
    return [outputs[place].values(stored[place]) for place in places]


def _predict(model: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    chunks = _chunks(arrays)
    run = functools.partial(model, training=False)
    if len(chunks) > _EAGER_CHUNKS and not model.run_eagerly:
        run = tf.function(run, autograph=False, reduce_retracing=True)
    parts = [_host.as_list(run(chunk if len(chunk) > 1 else chunk[0])) for chunk in chunks]
    return [np.concatenate([output.numpy() for output in outputs]) for outputs in zip(*parts, strict=True)]


def _count_differing(first: list[np.ndarray], second: list[np.ndarray]) -> int:
    return sum(int(np.count_nonzero(a != b)) for a, b in zip(first, second, strict=True))


def _top1_agreement(file: np.ndarray, model: np.ndarray) -> float:
    """Share of rows in which the file's largest output is also a largest one of the model."""
    chosen = np.take_along_axis(model, file.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    return float(np.mean(chosen >= model.max(axis=-1)))


def _layer_differences(q_model: Any, lowering: Lowering, arrays: list[np.ndarray]) -> tuple[LayerDifference, ...]:
    """Compares the tensor behind each quantizer with its lowered twin, on the first batch."""
    batch = _chunks(arrays)[0]
    trained = _tensors_of(q_model, batch)
    twins = lowering.settled_tensors(batch)
    differences = []
    for name, (values, scale) in twins.items():
        steps = np.abs(np.rint((values - trained[name]) / scale))
        differences.append(
            LayerDifference(layer=name, differing=float(np.mean(steps > 0)), largest=int(steps.max(initial=0)))
        )
    return tuple(differences)


def _tensors_of(q_model: Any, batch: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The tensor behind each quantizer of the trained model."""
    kept: dict[str, np.ndarray] = {}

    def call(node: _host.Node, tensors: list[Any]) -> Any:
        outputs = _host.run_as_before(node, node.layer, tensors)
        if isinstance(node.layer, QuantizeActivation):
            kept[tensor_name(node.layer, _host.keyword(node, "site", 0))] = outputs.numpy()
        return outputs

    _host.evaluate(q_model, [tf.constant(array) for array in batch], call)
    return kept
