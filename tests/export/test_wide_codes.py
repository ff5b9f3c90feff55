"""Integers that do not fit INT8: reduced where that is exact, else refused or stored as exact float16 constants."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tests.cli.command_line import run_here
from tests.export import wide_weights
from tfqil.export import check as module
from tfqil.export import flatbuffer, runtime
from tfqil.export.float_constants import is_exact_in_float16
from tfqil.export.inspect import read_float_weights, read_weights
from tfqil.export.verify import layer_of
from tfqil.numerics.int8 import int8_divisors

INNER = ("spatial", "depthwise", "pointwise", "dilated", "positions", "hidden")


def model_of(build: Any, images: np.ndarray, octaves: int, kept: int, *, per_channel: bool = False) -> Any:
    """A quantized network with levels over `octaves`, of which the weights take the largest `kept + 1`."""
    keras.utils.set_random_seed(0)
    model = wide_weights.with_powers(networks.randomize_norms(build()), kept, per_channel=per_channel)
    return wide_weights.quantized(model, images[:64], octaves, per_channel=per_channel)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A network with wide codes, its float16 file, and what `verify` says."""

    q_model: Any
    tflite: bytes
    report: Any


@pytest.fixture(scope="module", params=[(7, False), (15, True)], ids=["7 octaves", "15 octaves per channel"])
def exported(request: pytest.FixtureRequest, images: np.ndarray) -> Exported:
    octaves, per_channel = request.param
    q_model = model_of(wide_weights.every_kind, images, octaves, octaves, per_channel=per_channel)
    tflite = tfqil.convert(q_model, allow_float=True)
    return Exported(q_model, tflite, tfqil.verify(q_model, tflite, images, per_layer=True))


@pytest.fixture(scope="module")
def wide_model(images: np.ndarray) -> Any:
    return model_of(wide_weights.small, images, 7, 7)


@pytest.fixture(scope="module")
def float32_file() -> bytes:
    """What the converter makes of the network that nobody quantized."""
    return tf.lite.TFLiteConverter.from_keras_model(wide_weights.every_kind()).convert()


# Reduction


@pytest.mark.parametrize(
    ("codes", "reduced", "divisors"),
    [
        ([[127, 1], [-3, 0]], [[127, 1], [-3, 0]], [1, 1]),
        ([[128, 128], [-2, 64]], [[64, 64], [-1, 32]], [2, 2]),
        ([[256, 12], [4, 8]], [[64, 12], [1, 8]], [4, 1]),
        ([[2**15, 0], [2**9, 0]], [[64, 0], [1, 0]], [512, 1]),
        ([[128, 6], [1, 3]], [[128, 6], [1, 3]], [1, 1]),
        # One channel that does not fit puts the layer in float, where every channel keeps its codes.
        ([[256, 128], [4, 1]], [[256, 128], [4, 1]], [1, 1]),
    ],
)
def test_codes_are_divided_by_the_smallest_power_of_two_that_makes_them_fit(codes, reduced, divisors):
    got = int8_divisors(np.array(codes, np.float32), 1).numpy()
    np.testing.assert_array_equal(got, divisors)
    np.testing.assert_array_equal(np.array(codes) / got, reduced)


@pytest.mark.parametrize("per_channel", [False, True])
def test_codes_that_fit_int8_after_an_exact_reduction_are_integers_in_the_file(images, per_channel):
    q_model = model_of(wide_weights.small, images, 8, 6, per_channel=per_channel)
    codes = tfqil.freeze(q_model)["middle"].codes
    assert np.abs(codes).max() == 256 and not np.any(codes % 4)
    tflite = tfqil.convert(q_model)
    (stored,) = (integers for name, (integers, _) in read_weights(tflite).items() if layer_of(name, ["middle"]))
    signs = np.sign(q_model.get_layer("middle_bn").gamma)
    np.testing.assert_array_equal(stored.astype(np.int32) * 4, codes * signs)
    report = tfqil.verify(q_model, tflite, images)
    assert report.accepted and report.differing_from_deployable == 0 and report.different_weights == ()
    # The trained model rounds its bias in the unit of the file; a float next to a boundary moves an output by a step.
    assert report.max_lsb <= 1, f"{report.max_lsb} LSB, {report.differing_from_model:.1%} of the outputs"


# Refusals


def test_codes_that_do_not_fit_are_refused_with_the_layers_and_both_choices(wide_model, tmp_path):
    with pytest.raises(ValueError) as refused:
        tfqil.convert(wide_model, path=tmp_path / "none.tflite")
    assert str(refused.value) == (
        "Got weights whose integers do not fit INT8 (middle), expected at most 127: train these layers with "
        "int8_exact=True, as in LBWQuantizeConfig(..., int8_exact=True), which keeps the seven largest powers of two, "
        "or pass allow_float=True, which computes them in float with float16 constants."
    )
    assert list(tmp_path.iterdir()) == []


def test_values_that_float16_would_round_are_refused(images):
    model = wide_weights.with_powers(networks.randomize_norms(wide_weights.small()), 7, largest=0.3)
    with pytest.raises(ValueError, match=r"values float16 would round \(middle\), expected values such as powers"):
        tfqil.convert(wide_weights.quantized(model, images[:64], 7), allow_float=True)


@pytest.mark.parametrize(
    ("values", "exact"),
    [
        ([0.0, 2.0**-24, -(2.0**15), 0.625], True),
        ([2.0**-25], False),
        ([2.0**16], False),
        ([0.3], False),
        ([1 + 2.0**-11], False),
    ],
)
def test_float16_holds_eleven_significant_bits_of_a_limited_range(values, exact):
    assert is_exact_in_float16(np.array(values, np.float32)) is exact


# The float16 file


def test_the_file_holds_the_trained_values_bit_for_bit(exported):
    frozen = tfqil.freeze(exported.q_model)
    values = {layer_of(name, frozen): values for name, values in read_float_weights(exported.tflite).items()}
    assert set(values) == set(INNER)
    for name in INNER:
        np.testing.assert_array_equal(values[name].reshape(-1), frozen[name].values.reshape(-1), err_msg=name)
    weights = {layer_of(weight.name, frozen): weight for weight in tfqil.inspect(exported.tflite).weights}
    assert {weights[name].stored for name in INNER} == {"FLOAT16"} and weights["stem"].stored == "INT8"
    assert all(weights[name].powers_of_two and weights[name].kernels == "xnnpack" for name in INNER)


def test_the_float16_file_computes_what_was_trained(exported):
    report = exported.report
    assert not report.integer_only and not report.accepted and report.different_weights == ()
    # float32 sums in another order: what lies within 1e-6 of a rounding boundary may fall to its other side.
    assert report.differing_from_deployable <= 0.001 * report.outputs
    assert report.mean_lsb <= 0.001 and report.top1_agreement == 1
    for row in report.layers:
        assert row.differing <= 0.001 and row.largest <= 1, row


def test_the_float16_file_has_no_operator_beyond_those_of_its_layers(exported):
    operators = [operator.name for operator in tfqil.inspect(exported.tflite).operators]
    assert operators.count("CAST") == 0
    assert operators.count("MUL") == 3, "one for each batch normalization of an inner layer"
    assert operators.count("QUANTIZE") == 1 + len(INNER)


def test_the_float16_file_is_smaller_than_a_float32_file(exported, float32_file):
    weights = sum(np.prod(tfqil.freeze(exported.q_model)[name].codes.shape) for name in INNER)
    assert len(exported.tflite) < len(float32_file) - weights


def test_the_activations_of_a_report_are_no_kernels(exported):
    names = [activation.name for activation in tfqil.inspect(exported.tflite).activations]
    assert names and not any("float32" in name for name in names)


def test_the_command_line_names_float_constants_that_are_powers_of_two(exported, tmp_path, capsys):
    path = tmp_path / "powers.tflite"
    path.write_bytes(exported.tflite)
    assert run_here("inspect", path) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "FLOAT16 │" in line]
    assert len(rows) == len(INNER) and all("(2^k)" in row for row in rows)


def test_a_public_converter_keeps_the_values_in_float_too(wide_model, images):
    plain = tfqil.deployable(wide_model)
    converter = tf.lite.TFLiteConverter.from_keras_model(plain)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    tflite = converter.convert()
    values = {layer_of(name, ["middle"]): values for name, values in read_float_weights(tflite).items()}
    np.testing.assert_array_equal(values["middle"], tfqil.freeze(wide_model)["middle"].values)
    (got,) = runtime.run(tflite, [images])
    assert np.count_nonzero(got != plain(images).numpy()) <= 0.001 * got.size


def test_a_changed_float16_constant_is_named(exported, images):
    model = flatbuffer.load(exported.tflite)
    tensor = next(t for t in model.subgraphs[0].tensors if flatbuffer.type_name(t) == "FLOAT16")
    data = np.array(model.buffers[tensor.buffer].data, np.uint8)
    data[0] ^= 1
    model.buffers[tensor.buffer].data = data
    report = tfqil.verify(exported.q_model, flatbuffer.serialize(model), images[:8])
    assert report.different_weights == (layer_of(flatbuffer.tensor_name(tensor), INNER),)


def test_a_file_with_float_layers_that_computes_something_else_is_refused(wide_model, monkeypatch):
    compare = module.compare
    far = lambda *arguments: dataclasses.replace(compare(*arguments), mean_lsb=1.5)  # noqa: E731
    monkeypatch.setattr(module, "compare", far)
    with pytest.raises(RuntimeError, match="outputs of the file that are 1.50 steps from the model's on average"):
        tfqil.convert(wide_model, allow_float=True)


# Powers of two of LBW-Net


def test_lbw_weights_beyond_int8_are_float16_constants_or_refused(images):
    q_model = tfqil.quantize_model(wide_weights.small(), tfqil.LBWQuantizeConfig(5, 8))
    tfqil.calibrate(q_model, images)
    with pytest.raises(ValueError, match=r"do not fit INT8 \(middle\)"):
        tfqil.convert(q_model)
    tflite = tfqil.convert(q_model, allow_float=True)
    (weight,) = (weight for weight in tfqil.inspect(tflite).weights if weight.stored == "FLOAT16")
    assert weight.powers_of_two and layer_of(weight.name, ["middle"])
    report = tfqil.verify(q_model, tflite, images)
    # Float sums in another order, next to a rounding boundary.
    assert report.different_weights == () and report.max_lsb <= 1 and not report.integer_only


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("factor", [0.0, 1e-9, 1e-6])
def test_kernels_of_nothing_export(images, factor, use_bias, per_channel):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu", name="stem"),
            keras.layers.Dense(8, activation="relu", use_bias=use_bias, name="middle"),
            keras.layers.Dense(4, name="last"),
        ]
    )
    middle = model.get_layer("middle")
    middle.kernel.assign(factor * middle.kernel)
    if use_bias:
        middle.bias.assign(np.linspace(-1, 1, 8))
    q_model = tfqil.quantize_model(model, tfqil.BCGDQuantizeConfig(2, 4, per_channel=per_channel))
    tflite = tfqil.convert(tfqil.calibrate(q_model, images))
    assert tfqil.verify(q_model, tflite, images).accepted
