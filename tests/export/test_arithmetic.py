"""The formulas of `tfqil.export.arithmetic` against the runtime itself: 0 differences, ties included.

No tolerance anywhere: stored integers either agree or the formula is wrong. Power-of-two scales make ties
common, generic scales make float32 rounding matter; every test draws both.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.export import tiny_model as tiny
from tfqil.export import arithmetic, arithmetic_tables, runtime
from tfqil.export.arithmetic import Int8Grid

EVERY_VALUE = np.arange(-128, 128, dtype=np.int8)
PAIRS = tuple(values.reshape(1, -1) for values in np.meshgrid(EVERY_VALUE, EVERY_VALUE))


def _scale(random, kind, lowest=-5, highest=2):
    if kind == "power of two":
        return 2.0 ** int(random.integers(lowest, highest + 1))
    return float(np.float32(2.0 ** random.uniform(lowest, highest)))


def _grid(random, kind, lowest=-5, highest=2):
    return Int8Grid(scale=_scale(random, kind, lowest, highest), zero_point=int(random.integers(-128, 128)))


def _pair(grid):
    return grid.scale, grid.zero_point


def _assert_same(actual, expected):
    differences = np.count_nonzero(np.asarray(actual, np.int64) != np.asarray(expected, np.int64))
    assert differences == 0, f"{differences} of {np.size(actual)} stored values differ"


kinds = pytest.mark.parametrize("kind", ["power of two", "generic"])


@kinds
def test_quantize_equals_xnnpack(kind):
    random = np.random.default_rng(1)
    for _ in range(12):
        grid = _grid(random, kind, -12, 6)
        halves = random.integers(-600, 600, 2048) / 2 * grid.scale
        spread = random.uniform(-200, 200, 2046) * grid.scale
        x = np.concatenate([halves, spread, [1e30, -1e30]]).astype(np.float32)[None]
        tflite = tiny.unary("QUANTIZE", x.shape, None, _pair(grid))
        assert runtime.delegated_operators(tflite) == [True]
        _assert_same(arithmetic.quantize(x, grid), runtime.run(tflite, [x])[0])


@kinds
def test_requantize_int8_equals_xnnpack_for_every_input(kind):
    random = np.random.default_rng(2)
    compared = 0
    while compared < 40:
        x_grid, output = _grid(random, kind), _grid(random, kind)
        if not 2.0**-8 <= np.float32(x_grid.scale) / np.float32(output.scale) <= 2.0**7:
            continue
        tflite = tiny.unary("QUANTIZE", (1, 256), _pair(x_grid), _pair(output))
        assert runtime.delegated_operators(tflite) == [True]
        expected = runtime.run(tflite, [EVERY_VALUE[None]])[0]
        _assert_same(arithmetic.requantize_int8(EVERY_VALUE[None], x_grid, output), expected)
        compared += 1


@pytest.mark.parametrize("ratio", [2.0**-8, 2.0**7])
def test_requantize_int8_is_defined_exactly_where_xnnpack_takes_it(ratio):
    beyond = float(np.nextafter(np.float32(ratio), np.float32(0 if ratio < 1 else 1e9)))
    one = Int8Grid(scale=1.0, zero_point=0)
    for scale, taken in ((ratio, True), (beyond, False)):
        tflite = tiny.unary("QUANTIZE", (1, 8), (scale, 0), (1.0, 0))
        assert runtime.delegated_operators(tflite) == [taken]
        if taken:
            arithmetic.requantize_int8([1], Int8Grid(scale=scale, zero_point=0), one)
        else:
            with pytest.raises(ValueError, match="XNNPACK refuses"):
                arithmetic.requantize_int8([1], Int8Grid(scale=scale, zero_point=0), one)


@kinds
@pytest.mark.parametrize("operator", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
@pytest.mark.parametrize("fused", ["NONE", "RELU", "RELU6"])
def test_requantize_equals_the_runtime(operator, fused, kind):
    random = np.random.default_rng(3)
    for _ in range(4):
        x_grid, output = _grid(random, kind, -6, -2), _grid(random, kind, -5, 0)
        channels, outputs = 8, 8
        shape, kernel, axis_size = {
            "CONV_2D": ((2, 9, 9, channels), (outputs, 1, 1, channels), outputs),
            "DEPTHWISE_CONV_2D": ((2, 9, 9, channels), (1, 1, 1, channels), channels),
            "FULLY_CONNECTED": ((128, channels), (outputs, channels), outputs),
        }[operator]
        integers = random.integers(-8, 8, kernel)
        bias = random.integers(-300, 300, axis_size)
        scales = [_scale(random, kind, -6, -2) for _ in range(axis_size)]
        x = random.integers(-128, 128, shape).astype(np.int8)
        centered = x.astype(np.int64) - x_grid.zero_point
        flat = integers.reshape(-1, channels)
        accumulator = (centered * flat[0] if operator == "DEPTHWISE_CONV_2D" else centered @ flat.T) + bias
        tflite = tiny.weighted(
            operator, integers, x_shape=shape, y_shape=(*shape[:-1], axis_size), x_grid=_pair(x_grid),
            y_grid=_pair(output), scales=scales, bias=bias, fused=fused,
        )  # fmt: skip
        assert runtime.delegated_operators(tflite) == [True]
        for kernels in ("xnnpack", "builtin"):
            low, high = arithmetic.fused_range(output, fused.lower(), kernels=kernels)
            predicted = arithmetic.requantize(
                accumulator.astype(np.float64 if kernels == "xnnpack" else np.int64),
                input_scale=x_grid.scale, weight_scales=scales, output=output, low=low, high=high,
                kernels=kernels,
            )  # fmt: skip
            _assert_same(predicted, runtime.run(tflite, [x], kernels=kernels)[0])


def test_xnnpack_refuses_a_file_from_the_stated_requantization_scale_on():
    kernel, shape = np.ones((8, 8), np.int8), (1, 8)
    for scale, taken in ((np.nextafter(np.float32(256), np.float32(0)), True), (np.float32(256), False)):
        tflite = tiny.weighted(
            "FULLY_CONNECTED", kernel, x_shape=shape, y_shape=shape, x_grid=(1.0, 0), y_grid=(1.0, 0),
            scales=[scale] * 8, bias=np.zeros(8),
        )  # fmt: skip
        arguments = {
            "input_scale": 1.0,
            "weight_scales": [scale],
            "output": Int8Grid(scale=1.0, zero_point=0),
        }
        if taken:
            runtime.run(tflite, [np.zeros(shape, np.int8)])
            arithmetic.requantize(np.array([1]), **arguments)
        else:
            with pytest.raises(ValueError, match="refuse"):
                runtime.run(tflite, [np.zeros(shape, np.int8)])
            with pytest.raises(ValueError, match="XNNPACK refuses the file"):
                arithmetic.requantize(np.array([1]), **arguments)


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
@pytest.mark.parametrize("fused", ["NONE", "RELU", "RELU6", "RELU_N1_TO_1"])
@pytest.mark.parametrize("zero_point", [-20, -21])
# 6 lies between two steps of 12 / (2 n + 1), and 1 between two of 2 and 0.4.
@pytest.mark.parametrize("scale", [12.0, 4.0, 2.4, 12 / 7, 12 / 9, 2.0, 0.4, 0.05, 6 / 255, 0.01])
def test_fused_range_is_what_the_outputs_reach(scale, zero_point, fused, kernels):
    output = Int8Grid(scale=scale, zero_point=zero_point)
    tflite = tiny.weighted(
        "FULLY_CONNECTED", np.array([[127]]), x_shape=(256, 1), y_shape=(256, 1), x_grid=(scale, 0),
        y_grid=_pair(output), scales=[1.0], bias=np.zeros(1), fused=fused,
    )  # fmt: skip
    stored = runtime.run(tflite, [EVERY_VALUE[:, None]], kernels=kernels)[0]
    assert (stored.min(), stored.max()) == arithmetic.fused_range(output, fused.lower(), kernels=kernels)


@kinds
@pytest.mark.parametrize("operator", ["ADD", "SUB"])
def test_add_and_subtract_equal_xnnpack_for_every_pair_of_inputs(operator, kind):
    random = np.random.default_rng(4)
    formula = {"ADD": arithmetic.add, "SUB": arithmetic.subtract}[operator]
    for _ in range(12):
        a_grid, b_grid, output = (_grid(random, kind, -4, 3) for _ in range(3))
        tflite = tiny.binary(operator, PAIRS[0].shape, PAIRS[1].shape, _pair(a_grid), _pair(b_grid), _pair(output))
        assert runtime.delegated_operators(tflite) == [True]
        predicted = formula(PAIRS[0], a_grid, PAIRS[1], b_grid, output)
        _assert_same(predicted, runtime.run(tflite, PAIRS)[0])


@kinds
@pytest.mark.parametrize("operator", ["ADD", "SUB"])
@pytest.mark.parametrize("shape", [(), (1,), (4,)])
def test_add_and_subtract_of_a_constant_with_fused_relu_equal_xnnpack(operator, shape, kind):
    random = np.random.default_rng(5)
    formula = {"ADD": arithmetic.add, "SUB": arithmetic.subtract}[operator]
    x = EVERY_VALUE.reshape(1, 64, 4)
    for _ in range(20):
        x_grid, constant_grid, output = (_grid(random, kind, -4, 3) for _ in range(3))
        constant = np.asarray(random.integers(-128, 128, shape), np.int8)
        tflite = tiny.binary(
            operator, x.shape, constant, _pair(x_grid), _pair(constant_grid), _pair(output), fused="RELU"
        )
        assert runtime.delegated_operators(tflite) == [True]
        low, high = arithmetic.fused_range(output, "relu")
        predicted = formula(x, x_grid, constant, constant_grid, output, low, high)
        _assert_same(predicted, runtime.run(tflite, [x])[0])


@pytest.mark.parametrize("operator", ["ADD", "SUB"])
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("limit", arithmetic.ADD_SCALE_LIMITS)
def test_add_is_defined_exactly_where_xnnpack_takes_it(operator, position, limit):
    inside = limit if limit < 1 else float(np.nextafter(np.float32(limit), np.float32(0)))
    outside = float(np.nextafter(np.float32(limit), np.float32(0))) if limit < 1 else limit
    formula = {"ADD": arithmetic.add, "SUB": arithmetic.subtract}[operator]
    one = Int8Grid(scale=1.0, zero_point=0)
    for scale, taken in ((inside, True), (outside, False)):
        grids = [one, one]
        grids[position] = Int8Grid(scale=scale, zero_point=0)
        tflite = tiny.binary(operator, (1, 8), (1, 8), _pair(grids[0]), _pair(grids[1]), _pair(one))
        assert runtime.delegated_operators(tflite) == [taken]
        if taken:
            formula([1], grids[0], [1], grids[1], one)
        else:
            with pytest.raises(ValueError, match="XNNPACK refuses"):
                formula([1], grids[0], [1], grids[1], one)


@kinds
@pytest.mark.parametrize("keep", [True, False])
def test_mean_equals_xnnpack(keep, kind):
    random = np.random.default_rng(6)
    for case in range(60):
        x_grid, output = _grid(random, kind), _grid(random, kind)
        if case % 2:  # Rational ratios of scales put ties where float32 rounding decides.
            ratio = random.integers(1, 9) / random.integers(1, 9)
            output = Int8Grid(scale=x_grid.scale * ratio, zero_point=output.zero_point)
        height, width = (int(size) for size in random.integers(1, 15, 2))
        reach = int(random.integers(2, 128))
        x = random.integers(-reach, reach, (8, height, width, 16)).astype(np.int8)
        tflite = tiny.unary(
            "MEAN", x.shape, _pair(x_grid), _pair(output), tiny.options("ReducerOptions", keepDims=keep),
            y_shape=(8, 1, 1, 16) if keep else (8, 16), constants=[np.array([1, 2])],
        )  # fmt: skip
        assert runtime.delegated_operators(tflite) == [True]
        _assert_same(arithmetic.mean(x, x_grid, output), runtime.run(tflite, [x])[0].reshape(8, 16))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("pool", "strides"), [((2, 2), (2, 2)), ((3, 3), (1, 1)), ((3, 2), (2, 1)), ((4, 5), (3, 2))])
def test_average_pool_equals_the_builtin_kernels(pool, strides, padding):
    random = np.random.default_rng(7)
    for height, width in ((5, 5), (6, 9), (11, 8)):
        x = random.integers(-128, 128, (2, height, width, 8)).astype(np.int8)
        expected = arithmetic_tables.average_pool(x, pool, strides, padding)
        chosen = tiny.options(
            "Pool2DOptions", padding=padding.upper(), strideH=strides[0], strideW=strides[1],
            filterHeight=pool[0], filterWidth=pool[1], fusedActivationFunction="NONE",
        )  # fmt: skip
        tflite = tiny.unary("AVERAGE_POOL_2D", x.shape, (0.1, 3), (0.1, 3), chosen, y_shape=expected.shape)
        assert runtime.delegated_operators(tflite) == [False]
        for kernels in runtime.KERNELS:
            _assert_same(expected, runtime.run(tflite, [x], kernels=kernels)[0])


@kinds
@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
@pytest.mark.parametrize("operator", ["LOGISTIC", "TANH"])
def test_tables_equal_the_runtime_for_every_input(operator, kernels, kind):
    random = np.random.default_rng(8)
    output = {"LOGISTIC": arithmetic.LOGISTIC_OUTPUT, "TANH": arithmetic.TANH_OUTPUT}[operator]
    for _ in range(250):
        x_grid = _grid(random, kind, -9, 3)
        tflite = tiny.unary(operator, (1, 256), _pair(x_grid), _pair(output))
        assert runtime.delegated_operators(tflite) == [True]
        if operator == "LOGISTIC":
            predicted = arithmetic_tables.logistic(EVERY_VALUE[None], x_grid, kernels=kernels)
        else:
            predicted = arithmetic_tables.tanh(EVERY_VALUE[None], x_grid)
        _assert_same(predicted, runtime.run(tflite, [EVERY_VALUE[None]], kernels=kernels)[0])


@pytest.mark.parametrize("operator", ["LOGISTIC", "TANH"])
def test_tables_equal_the_runtime_beside_ties(operator):
    random = np.random.default_rng(12)
    output = {"LOGISTIC": arithmetic.LOGISTIC_OUTPUT, "TANH": arithmetic.TANH_OUTPUT}[operator]
    for _ in range(300):
        # Ties in the lower half, where adding the zero point of the sigmoid rounds most.
        level, code = int(random.integers(-127, -1)), int(random.integers(-128, 0))
        inverses = {"LOGISTIC": -np.log(256 / (level // 2 + 64.5) - 1), "TANH": np.arctanh((level + 0.5) / 128)}
        ulps = int(random.integers(-4, 5) * random.choice([1, 10]))
        x_grid = Int8Grid(scale=float(np.float32(inverses[operator] / code * (1 + ulps * 2.0**-24))), zero_point=0)
        tflite = tiny.unary(operator, (1, 256), _pair(x_grid), _pair(output))
        predicted = getattr(arithmetic_tables, operator.lower())(EVERY_VALUE[None], x_grid)
        _assert_same(predicted, runtime.run(tflite, [EVERY_VALUE[None]])[0])


@kinds
@pytest.mark.parametrize("classes", [2, 10, 37, 1000])
def test_softmax_equals_the_builtin_kernels(classes, kind):
    random = np.random.default_rng(9)
    for _ in range(12):
        x_grid = _grid(random, kind, -9, 2)
        x = random.integers(-128, 128, (32, classes)).astype(np.int8)
        tflite = tiny.unary(
            "SOFTMAX",
            x.shape,
            _pair(x_grid),
            _pair(arithmetic.SOFTMAX_OUTPUT),
            tiny.options("SoftmaxOptions", beta=1.0),
        )
        assert runtime.delegated_operators(tflite) == [False]
        _assert_same(arithmetic_tables.softmax(x, x_grid), runtime.run(tflite, [x])[0])


@pytest.mark.parametrize("classes", [512, 171, 103])
def test_softmax_sends_ties_up(classes):
    x_grid = Int8Grid(scale=1.0, zero_point=0)
    # Equal classes get 256 / classes steps each: 512 of them half a step.
    x = np.zeros((1, classes), np.int8)
    chosen = tiny.options("SoftmaxOptions", beta=1.0)
    tflite = tiny.unary("SOFTMAX", x.shape, _pair(x_grid), _pair(arithmetic.SOFTMAX_OUTPUT), chosen)
    stored = runtime.run(tflite, [x])[0]
    _assert_same(arithmetic_tables.softmax(x, x_grid), stored)
    assert stored[0, 0] == -128 + int(256 / classes + 0.5)


@pytest.mark.parametrize(
    ("scale", "zero_point"), [(0.0, 0), (-1.0, 0), (np.inf, 0), (1e-60, 0), (1.0, 128), (1.0, -129)]
)
def test_a_grid_that_no_file_can_hold_is_refused(scale, zero_point):
    with pytest.raises(ValueError, match="^got .* expected .*: "):
        Int8Grid(scale=scale, zero_point=zero_point)


def test_unknown_names_are_refused():
    grid = Int8Grid(scale=1.0, zero_point=0)
    with pytest.raises(ValueError, match="activation 'gelu'"):
        arithmetic.fused_range(grid, "gelu")
    with pytest.raises(ValueError, match="kernels='gpu'"):
        arithmetic.requantize([1], input_scale=1, weight_scales=[1], output=grid, kernels="gpu")
    with pytest.raises(ValueError, match="padding 'full'"):
        arithmetic_tables.average_pool(np.zeros((1, 4, 4, 1)), (2, 2), (2, 2), "full")
    with pytest.raises(ValueError, match="a window of 5 over 4"):
        arithmetic_tables.average_pool(np.zeros((1, 4, 4, 1)), (5, 5), (2, 2), "valid")
