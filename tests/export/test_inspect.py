"""What the report says about small files whose content is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.export import tiny_model as tiny
from tfqil.export.inspect import inspect, read_weights
from tfqil.export.pack import pack


def _dense(codes, *, fused="NONE", y_grid=(0.05, 0)):
    codes = np.asarray(codes)
    outputs, inputs = codes.shape
    return tiny.weighted(
        "FULLY_CONNECTED", codes, x_shape=(1, inputs), y_shape=(1, outputs),
        scales=np.linspace(0.01, 0.02, outputs), bias=np.zeros(outputs), fused=fused, y_grid=y_grid,
    )  # fmt: skip


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_bits_used_are_the_fewest_that_hold_the_codes(bits):
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    for codes in ([[low, high]], [[low, 0]], [[high, -1]]):
        (weight,) = inspect(_dense(codes)).weights
        assert (weight.stored, weight.bits_used) == ("INT8", bits)


@pytest.mark.parametrize(
    ("codes", "distinct", "powers", "sparsity"),
    [
        ([[0, 1, -2, 64], [0, 4, -8, -128]], 7, True, 0.25),
        ([[1, -1], [1, -1]], 2, True, 0.0),
        ([[0, 3], [0, 1]], 3, False, 0.5),
    ],
)
def test_codes_are_counted(codes, distinct, powers, sparsity):
    (weight,) = inspect(_dense(codes)).weights
    assert (weight.distinct_codes, weight.powers_of_two, weight.sparsity) == (distinct, powers, sparsity)
    assert (weight.name, weight.operator, weight.shape) == ("w", "FULLY_CONNECTED", np.shape(codes))
    assert weight.bytes == np.size(codes)


@pytest.mark.parametrize(
    ("storage", "stored", "size"), [("int8", "INT8", 64), ("fastest", "INT4", 32), ("smallest", "INT2", 16)]
)
def test_packing_shows_in_the_stored_type_and_the_bytes_and_nowhere_else(storage, stored, size):
    codes = np.random.default_rng(0).integers(-2, 2, (8, 8))
    tflite = pack(_dense(codes), storage)
    report = inspect(tflite)
    (weight,) = report.weights
    assert (weight.stored, weight.bytes, weight.bits_used, weight.distinct_codes) == (stored, size, 2, 4)
    assert report.constant_bytes[stored] == size
    assert report.constant_bytes["INT32"] == 32
    assert report.bytes == len(tflite)
    assert 0 < report.gzipped_bytes < report.bytes


def test_operators_name_their_version_activation_and_kernels():
    (operator,) = inspect(pack(_dense(np.eye(8, dtype=int), fused="RELU"), "smallest")).operators
    assert (operator.name, operator.version, operator.fused_activation) == ("FULLY_CONNECTED", 14, "RELU")
    assert operator.kernels == "xnnpack"
    pool = tiny.options("Pool2DOptions", padding="VALID", strideH=2, strideW=2, filterHeight=2, filterWidth=2)
    tflite = tiny.unary("AVERAGE_POOL_2D", (1, 4, 4, 1), (0.1, 0), (0.1, 0), pool, y_shape=(1, 2, 2, 1))
    assert [operator.kernels for operator in inspect(tflite).operators] == ["builtin"]


@pytest.mark.parametrize(
    ("fused", "grid", "levels"),
    [
        ("RELU", (0.09, 112), 16),
        ("RELU", (0.09, 120), 8),
        ("RELU", (0.09, 124), 4),
        ("RELU6", (6 / 15, -128), 16),
        ("NONE", (0.09, 112), None),
    ],
)
def test_levels_are_what_a_fused_activation_leaves(fused, grid, levels):
    x, y = inspect(_dense(np.eye(4, dtype=int), fused=fused, y_grid=grid)).activations
    assert (x.name, x.stored, x.zero_point, x.levels) == ("x", "INT8", -7, None)
    assert (y.name, y.stored, y.scale, y.zero_point, y.levels) == (
        "y",
        "INT8",
        float(np.float32(grid[0])),
        grid[1],
        levels,
    )


def test_levels_pass_through_operators_that_move_values():
    model = tiny.TinyModel()
    x = model.activation("x", (1, 4, 4, 2), scale=0.1)
    y = model.activation("y", (1, 4, 4, 2), scale=0.1, zero_point=112)
    pooled = model.activation("pooled", (1, 2, 2, 2), scale=0.1, zero_point=112)
    add = tiny.options("AddOptions", fusedActivationFunction="RELU")
    pool = tiny.options("Pool2DOptions", padding="VALID", strideH=2, strideW=2, filterHeight=2, filterWidth=2)
    model.operator("ADD", [x, x], [y], add)
    model.operator("MAX_POOL_2D", [y], [pooled], pool)
    report = inspect(model.to_bytes([x], [pooled]))
    assert {entry.name: entry.levels for entry in report.activations} == {"x": None, "y": 16, "pooled": 16}


def _edges(*, hidden_float):
    """QUANTIZE, LOGISTIC, DEQUANTIZE; with a LOGISTIC in float behind, if `hidden_float`."""
    model = tiny.TinyModel()
    x = model.activation("x", (1, 4), stored="FLOAT32")
    q = model.activation("q", (1, 4), scale=0.1)
    y = model.activation("y", (1, 4), scale=1 / 256, zero_point=-128)
    z = model.activation("z", (1, 4), stored="FLOAT32")
    model.operator("QUANTIZE", [x], [q])
    model.operator("LOGISTIC", [q], [y])
    model.operator("DEQUANTIZE", [y], [z])
    if hidden_float:
        last = model.activation("last", (1, 4), stored="FLOAT32")
        model.operator("LOGISTIC", [z], [last])
        return model.to_bytes([x], [last])
    return model.to_bytes([x], [z])


def test_float_at_the_edges_is_integer_only():
    report = inspect(_edges(hidden_float=False))
    assert report.integer_only
    assert report.float_leftovers == ()


def test_float_inside_is_named_with_its_tensor():
    report = inspect(_edges(hidden_float=True))
    assert not report.integer_only
    dequantize, logistic = report.float_leftovers
    assert dequantize.startswith("DEQUANTIZE writes the float32 tensor 'z' inside the graph")
    assert (
        logistic == "LOGISTIC reads the float32 tensor 'z' and writes the float32 tensor 'last': neither is quantized"
    )


def test_float_weights_are_reported_as_such():
    model = tiny.TinyModel()
    x, y = (model.activation(name, (1, 4), stored="FLOAT32") for name in "xy")
    w = model.constant("w", np.eye(4, dtype=np.float32), stored="FLOAT32")
    model.operator("FULLY_CONNECTED", [x, w, -1], [y], tiny.options("FullyConnectedOptions"), version=1)
    report = inspect(model.to_bytes([x], [y]))
    assert (report.weights[0].stored, report.weights[0].bits_used, report.weights[0].sparsity) == (
        "FLOAT32",
        32,
        0.75,
    )
    assert not report.integer_only
    assert read_weights(model.to_bytes([x], [y])) == {}


def test_the_report_is_plain_json():
    report = inspect(_dense(np.eye(4, dtype=int), fused="RELU"))
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


@pytest.mark.parametrize(
    ("operator", "shape", "keras"),
    [
        ("CONV_2D", (8, 3, 2, 4), (3, 2, 4, 8)),
        ("DEPTHWISE_CONV_2D", (1, 3, 2, 8), (3, 2, 8)),
        ("FULLY_CONNECTED", (8, 4), (4, 8)),
    ],
)
@pytest.mark.parametrize("storage", ["int8", "smallest"])
def test_weights_are_read_in_the_layout_of_keras(operator, shape, keras, storage):
    codes = np.random.default_rng(0).integers(-8, 8, shape)
    x_shape = (1, shape[-1]) if len(shape) == 2 else (1, 5, 5, shape[-1])
    scales = np.linspace(0.01, 0.02, 8).astype(np.float32)
    tflite = pack(
        tiny.weighted(
            operator, codes, x_shape=x_shape, y_shape=(*x_shape[:-1], 8), scales=scales, bias=np.zeros(8)
        ),
        storage,
    )  # fmt: skip
    ((name, (integers, read_scales)),) = read_weights(tflite).items()
    expected = codes[0] if operator == "DEPTHWISE_CONV_2D" else np.moveaxis(codes, 0, -1)
    assert name == "w"
    assert integers.shape == keras
    assert integers.dtype == np.int8
    assert np.array_equal(integers, expected)
    assert np.array_equal(read_scales, scales)
    assert read_scales.dtype == np.float32


def test_weights_of_the_same_name_are_told_apart():
    model = tiny.TinyModel()
    x, y, z = (model.activation(name, (1, 4), scale=0.1) for name in "xyz")
    for source, target, value in ((x, y, 1), (y, z, 2)):
        w = model.constant("w", np.full((4, 4), value), scales=[0.1] * 4)
        model.operator("FULLY_CONNECTED", [source, w, -1], [target], tiny.options("FullyConnectedOptions"))
    weights = read_weights(model.to_bytes([x], [z]))
    assert {name: integers[0, 0] for name, (integers, _) in weights.items()} == {"w": 1, "w#2": 2}


def test_a_path_is_read_and_a_missing_one_refused(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(_dense(np.eye(4, dtype=int)))
    assert inspect(path) == inspect(str(path)) == inspect(path.read_bytes())
    with pytest.raises(ValueError, match=r"missing\.tflite', expected an existing"):
        inspect(tmp_path / "missing.tflite")
