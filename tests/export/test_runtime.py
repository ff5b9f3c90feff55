"""Running and timing files, and finding out what XNNPACK takes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.export import tiny_model as tiny
from tfqil.export import runtime


def _two_inputs() -> bytes:
    return tiny.binary("SUB", (1, 4), (1, 4), (1.0, 0), (1.0, 0), (1.0, 0))


def _mixed() -> bytes:
    """LOGISTIC, AVERAGE_POOL_2D (which XNNPACK refuses), LOGISTIC, and a LOGISTIC beside them."""
    model = tiny.TinyModel()
    x = model.activation("x", (1, 4, 4, 2), scale=0.1)
    first = model.activation("first", (1, 4, 4, 2), scale=1 / 256, zero_point=-128)
    pooled = model.activation("pooled", (1, 2, 2, 2), scale=1 / 256, zero_point=-128)
    last = model.activation("last", (1, 2, 2, 2), scale=1 / 256, zero_point=-128)
    beside = model.activation("beside", (1, 4, 4, 2), scale=1 / 256, zero_point=-128)
    pool = tiny.options("Pool2DOptions", padding="VALID", strideH=2, strideW=2, filterHeight=2, filterWidth=2)
    model.operator("LOGISTIC", [x], [first])
    model.operator("AVERAGE_POOL_2D", [first], [pooled], pool)
    model.operator("LOGISTIC", [pooled], [last])
    model.operator("LOGISTIC", [first], [beside])
    return model.to_bytes([x], [last, beside])


@pytest.mark.parametrize("kernels", runtime.KERNELS)
def test_inputs_and_outputs_are_in_the_order_of_the_file(kernels):
    a, b = np.array([[1, 2, 3, 4]], np.int8), np.array([[4, 4, 4, 4]], np.int8)
    (difference,) = runtime.run(_two_inputs(), [a, b], kernels=kernels)
    assert difference.tolist() == [[-3, -2, -1, 0]]
    assert [y.shape for y in runtime.run(_mixed(), [np.zeros((1, 4, 4, 2), np.int8)])] == [
        (1, 2, 2, 2),
        (1, 4, 4, 2),
    ]


def test_the_batch_is_that_of_the_inputs():
    a = np.arange(12, dtype=np.int8).reshape(3, 4)
    assert runtime.run(_two_inputs(), [a, a])[0].shape == (3, 4)


def test_each_operator_is_told_apart():
    assert runtime.delegated_operators(_mixed()) == [True, False, True, True]
    assert runtime.delegate_partitions(_mixed()) == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([np.zeros((1, 4), np.int8)], "got 1 input arrays, expected 2"),
        ([np.zeros((1, 5), np.int8)] * 2, r"got shape \(1, 5\) for input 'a', expected \(any, 4\)"),
        ([np.zeros(4, np.int8)] * 2, r"got shape \(4,\) for input 'a'"),
        ([np.zeros((1, 4), np.float32)] * 2, "got float32 values for input 'a', expected int8"),
    ],
)
def test_wrong_inputs_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        runtime.run(_two_inputs(), inputs)


def test_unknown_kernels_threads_and_files_are_refused():
    with pytest.raises(ValueError, match="kernels='gpu', expected one of"):
        runtime.run(_two_inputs(), [], kernels="gpu")
    with pytest.raises(ValueError, match="threads=0"):
        runtime.run(_two_inputs(), [], threads=0)
    with pytest.raises(ValueError, match="xnnpack kernels refuse"):
        runtime.run(b"no model", [])
    with pytest.raises(ValueError, match="xnnpack kernels refuse"):
        runtime.delegate_partitions(b"no model")


def test_benchmark_gives_every_file_the_same_number_of_runs():
    times = runtime.benchmark({"a": _two_inputs(), "b": _mixed()}, repeats=5)
    assert {name: len(runs) for name, runs in times.items()} == {"a": 5, "b": 5}
    assert min(min(runs) for runs in times.values()) > 0


def test_benchmark_stops_at_its_time_limit():
    assert len(runtime.benchmark({"a": _mixed()}, repeats=1000, seconds=0)["a"]) == 1


def test_benchmark_refuses_nothing_to_do():
    with pytest.raises(ValueError, match="got no file"):
        runtime.benchmark({})
    with pytest.raises(ValueError, match="repeats=0"):
        runtime.benchmark({"a": _mixed()}, repeats=0)
