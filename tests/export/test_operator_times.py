"""Each operator of a file is timed alone, and who runs it in the whole file is what the runtime says."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter

import tfqil
from tests import networks
from tests.export import tiny_model
from tfqil.export.operator_times import operator_times

layers = keras.layers


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Files that XNNPACK takes as a whole, and in part, and one with weights of float16."""
    plain, residual = (networks.calibrated(networks.FAMILIES[name](), 2, 2) for name in ("plain", "residual"))
    wide = networks.quantized(networks.dense(), edge_bits=None)
    tfqil.calibrate(wide, networks.digits(64)[0])
    return {
        "plain": tfqil.convert(plain, check=False),
        "residual": tfqil.convert(residual, check=False),
        "smallest": tfqil.convert(residual, "smallest", check=False),
        "float edges": tfqil.convert(wide, allow_float=True, check=False),
    }


def taken_one_by_one(tflite: bytes) -> int:
    """How many operators XNNPACK takes, as the runtime counts them if it makes a part of each."""
    interpreter = Interpreter(model_content=tflite, experimental_disable_delegate_node_fusion=True)
    interpreter.allocate_tensors()
    return sum("DELEGATE" in details["op_name"].upper() for details in interpreter._get_ops_details())


@pytest.mark.parametrize("name", ["plain", "residual", "smallest", "float edges"])
def test_what_the_delegate_took_is_what_the_runtime_counts(files, name):
    times = operator_times(files[name], repeats=2)
    assert sum(entry.kernels == "xnnpack" for entry in times) == taken_one_by_one(files[name])
    assert [entry.name for entry in times] == [operator.name for operator in tfqil.inspect(files[name]).operators]
    assert [entry.kernels for entry in times] == [operator.kernels for operator in tfqil.inspect(files[name]).operators]


@pytest.mark.parametrize("name", ["plain", "residual", "smallest", "float edges"])
def test_every_operator_runs_alone(files, name):
    times = operator_times(files[name], repeats=2)
    assert len({entry.result for entry in times}) == len(times)
    for entry in times:
        assert entry.seconds is not None and 0 < entry.seconds < 1, entry


def test_the_operators_that_compute_more_take_longer():
    """A dense layer of 1024 x 1024 weights next to one of 1024 x 2."""
    model = keras.Sequential(
        [keras.Input((1024,)), layers.Dense(1024, activation="relu", name="large"), layers.Dense(2, name="small")]
    )
    data = np.random.default_rng(0).normal(size=(16, 1024)).astype(np.float32)
    tflite = tfqil.convert(networks.calibrated_on(model, data, 8, 8), check=False)
    times = {entry.result: entry.seconds or 0.0 for entry in operator_times(tflite, repeats=20)}
    large, small = (next(s for name, s in times.items() if part in name) for part in ("large", "small"))
    # 512 times the products; starting an operator costs some microseconds.
    assert large > 2 * small


@pytest.mark.parametrize(
    ("recurrent", "operator"), [(layers.LSTM, "UNIDIRECTIONAL_SEQUENCE_LSTM"), (layers.GRU, "WHILE")]
)
def test_states_and_loops_do_not_run_alone_and_what_is_beside_them_does(recurrent, operator):
    inputs = keras.Input((5, 3), name="sequence")
    x = recurrent(4, name="recurrent")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="last")(layers.Dense(8, activation="relu", name="hidden")(x)))
    data = np.random.default_rng(0).normal(size=(8, 5, 3)).astype(np.float32)
    tflite = tfqil.convert(networks.calibrated_on(model, data, 4, 8), check=False)
    times = operator_times(tflite, repeats=2)
    assert [(entry.name, entry.kernels) for entry in times if entry.seconds is None] == [(operator, "builtin")]
    assert [entry.kernels for entry in times if entry.name == "FULLY_CONNECTED"] == ["xnnpack", "xnnpack"]


def test_the_operators_are_named_by_what_they_write():
    model = tiny_model.TinyModel()
    image = model.activation("x", (1, 4), scale=0.1, zero_point=0)
    doubled = model.activation("y", (1, 4), scale=0.2, zero_point=3)
    again = model.activation("z", (4,), scale=0.2, zero_point=3)
    model.operator("QUANTIZE", [image], [doubled])
    shape = model.constant("shape", np.array([4], np.int32), stored="INT32")
    model.operator("RESHAPE", [doubled, shape], [again])
    times = operator_times(model.to_bytes([image], [again]), repeats=2)
    assert [(entry.name, entry.result) for entry in times] == [("QUANTIZE", "y"), ("RESHAPE", "z")]


def test_open_sizes_and_fixed_batches_run():
    inputs = keras.Input((None, None, 1), name="image")
    x = layers.Conv2D(4, 3, strides=2, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="last")(layers.GlobalAveragePooling2D()(x)))
    data = np.random.default_rng(0).random((8, 16, 16, 1)).astype(np.float32)
    tflite = tfqil.convert(networks.calibrated_on(model, data, 4, 8), check=False)
    assert all(entry.seconds for entry in operator_times(tflite, repeats=2))


def test_wrong_arguments_are_one_sentence(files):
    with pytest.raises(ValueError, match="got repeats=0, expected at least 1"):
        operator_times(files["plain"], repeats=0)
    with pytest.raises(ValueError, match="got 5 bytes|got a file that|truncated"):
        operator_times(b"TFL3?")
