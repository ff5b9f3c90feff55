"""The formulas of `tfqil.export.arithmetic_elementwise` against the runtime itself: 0 differences, ties included.

No tolerance anywhere: stored integers either agree or the formula is wrong. Power-of-two scales make ties common,
generic scales make float32 rounding matter; every test draws both. Below them: operators that need no formula of their
own, because they move integers or end with `arithmetic.requantize`.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.export import tiny_model as tiny
from tfqil.export import arithmetic, arithmetic_elementwise, runtime
from tfqil.export.arithmetic import Int8Grid

EVERY_VALUE = np.arange(-128, 128, dtype=np.int8)
PAIRS = tuple(values.reshape(1, -1) for values in np.meshgrid(EVERY_VALUE, EVERY_VALUE))
ONE = Int8Grid(scale=1.0, zero_point=0)
# Of operators that are not among tiny_model.VERSIONS, as the TensorFlow converter writes them.
VERSIONS = {
    "LEAKY_RELU": 2, "PRELU": 1, "GELU": 2, "ELU": 1, "HARD_SWISH": 1, "RESIZE_BILINEAR": 3,
    "RESIZE_NEAREST_NEIGHBOR": 3, "REDUCE_MAX": 2, "MAXIMUM": 2, "MINIMUM": 2, "CONCATENATION": 2,
}  # fmt: skip

kinds = pytest.mark.parametrize("kind", ["power of two", "generic"])


def _scale(random, kind, lowest, highest):
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


def _integers(random, shape):
    return random.integers(-128, 128, shape).astype(np.int8)


def _neighbours(value):
    """The float32 below, the value itself, and the float32 above."""
    exact = np.float32(value)
    return [float(np.nextafter(exact, np.float32(-1e9))), float(exact), float(np.nextafter(exact, np.float32(1e9)))]


def _unary(operator, x_grid, output, chosen=None):
    return tiny.unary(operator, (1, 256), _pair(x_grid), _pair(output), chosen, version=VERSIONS[operator])


def _leaky_relu(x_grid, alpha, output):
    return _unary("LEAKY_RELU", x_grid, output, tiny.options("LeakyReluOptions", alpha=alpha))


def _many(operator, operands, output, y_shape, chosen=None):
    """A file with one operator; each operand is (shape or int8 constant, grid), and constants are no inputs."""
    model = tiny.TinyModel()
    tensors, inputs = [], []
    for index, (operand, grid) in enumerate(operands):
        if isinstance(operand, np.ndarray):
            name = f"c{index}"
            tensors.append(model.constant(name, operand, scales=[grid.scale], zero_point=grid.zero_point))
        else:
            tensors.append(model.activation(f"x{index}", operand, scale=grid.scale, zero_point=grid.zero_point))
            inputs.append(tensors[-1])
    y = model.activation("y", y_shape, scale=output.scale, zero_point=output.zero_point)
    model.operator(operator, tensors, [y], chosen, version=VERSIONS.get(operator))
    return model.to_bytes(inputs, [y])


def _multiply(a, a_grid, b, b_grid, output, fused="NONE"):
    shapes = [operand.shape if isinstance(operand, np.ndarray) else operand for operand in (a, b)]
    chosen = tiny.options("MulOptions", fusedActivationFunction=fused)
    return _many("MUL", [(a, a_grid), (b, b_grid)], output, np.broadcast_shapes(*shapes), chosen)


@kinds
def test_multiply_equals_xnnpack_for_every_pair_of_inputs(kind):
    random = np.random.default_rng(1)
    for _ in range(12):
        a_grid, b_grid, output = (_grid(random, kind, -4, 1) for _ in range(3))
        tflite = _multiply(PAIRS[0].shape, a_grid, PAIRS[1].shape, b_grid, output)
        assert runtime.delegated_operators(tflite) == [True]
        predicted = arithmetic_elementwise.multiply(PAIRS[0], a_grid, PAIRS[1], b_grid, output)
        _assert_same(predicted, runtime.run(tflite, PAIRS)[0])


@kinds
@pytest.mark.parametrize("fused", ["NONE", "RELU", "RELU6", "RELU_N1_TO_1"])
@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((2, 1, 1, 8), (2, 5, 7, 8)),
        ((2, 5, 7, 8), (2, 1, 1, 8)),
        ((2, 5, 7, 8), (2, 5, 7, 1)),
        ((2, 8), (8,)),
        ((9,), ()),
    ],
)
def test_multiply_broadcasts_and_clips_like_xnnpack_also_with_a_constant(a_shape, b_shape, fused, kind):
    random = np.random.default_rng(2)
    for _ in range(3):
        a_grid, b_grid, output = (_grid(random, kind, -4, 1) for _ in range(3))
        a, b = _integers(random, a_shape), np.asarray(_integers(random, b_shape))
        low, high = arithmetic.fused_range(output, fused.lower())
        predicted = arithmetic_elementwise.multiply(a, a_grid, b, b_grid, output, low, high)
        for operands, inputs in ([(a_shape, b_shape), (a, b)], [(a_shape, b), (a,)], [(a, b_shape), (b,)]):
            tflite = _multiply(operands[0], a_grid, operands[1], b_grid, output, fused)
            assert runtime.delegated_operators(tflite) == [True]
            _assert_same(predicted, runtime.run(tflite, inputs)[0])


@pytest.mark.parametrize("limit", arithmetic_elementwise.MULTIPLY_SCALE_LIMITS)
def test_multiply_is_defined_exactly_where_xnnpack_takes_it(limit):
    lowest, highest = arithmetic_elementwise.MULTIPLY_SCALE_LIMITS
    for scale in _neighbours(limit):
        taken = lowest <= scale < highest
        grid = Int8Grid(scale=scale, zero_point=0)
        assert runtime.delegated_operators(_multiply((1, 8), grid, (1, 8), ONE, ONE)) == [taken]
        if taken:
            arithmetic_elementwise.multiply([1], grid, [1], ONE, ONE)
        else:
            with pytest.raises(ValueError, match="XNNPACK refuses"):
                arithmetic_elementwise.multiply([1], grid, [1], ONE, ONE)


@kinds
@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.1, 0.2, 0.25, 0.3, 0.5, 1.0, 1.5, -0.5, -0.3])
def test_leaky_relu_equals_the_runtime_for_every_input(alpha, kernels, kind):
    random = np.random.default_rng(3)
    x, compared = EVERY_VALUE[None], 0
    for _ in range(60):
        x_grid, output = _grid(random, kind, -4, 1), _grid(random, kind, -4, 1)
        tflite = _leaky_relu(x_grid, alpha, output)
        try:
            predicted = arithmetic_elementwise.leaky_relu(x, x_grid, alpha, output, kernels=kernels)
        except ValueError:
            assert kernels == "xnnpack"
            assert runtime.delegated_operators(tflite) == [False]
            predicted = arithmetic_elementwise.leaky_relu(x, x_grid, alpha, output, kernels="builtin")
        else:
            assert runtime.delegated_operators(tflite) == [True] or kernels == "builtin"
            compared += 1
        _assert_same(predicted, runtime.run(tflite, [x], kernels=kernels)[0])
    assert compared > 20 or (alpha == 0 and kernels == "xnnpack")


@pytest.mark.parametrize("limit", arithmetic_elementwise.LEAKY_RELU_SCALE_LIMITS)
def test_leaky_relu_is_defined_exactly_where_xnnpack_takes_the_slope_above_0(limit):
    alpha = 1.0 if limit < 1 else 0.5
    for scale in _neighbours(limit):
        _assert_taken_where_defined(Int8Grid(scale=scale, zero_point=0), alpha)


@pytest.mark.parametrize(
    "limit",
    [*arithmetic_elementwise.LEAKY_RELU_SCALE_LIMITS, *arithmetic_elementwise.LEAKY_RELU_NEGATIVE_SCALE_LIMITS, 0.0],
)
def test_leaky_relu_is_defined_exactly_where_xnnpack_takes_the_slope_below_0(limit):
    for alpha in _neighbours(limit):
        _assert_taken_where_defined(ONE, alpha)


def _assert_taken_where_defined(x_grid, alpha):
    (taken,) = runtime.delegated_operators(_leaky_relu(x_grid, alpha, ONE))
    if taken:
        arithmetic_elementwise.leaky_relu([1], x_grid, alpha, ONE)
    else:
        with pytest.raises(ValueError, match="XNNPACK refuses"):
            arithmetic_elementwise.leaky_relu([1], x_grid, alpha, ONE)


@kinds
@pytest.mark.parametrize("alpha_shape", [(1, 1, 32), (1, 64, 32), (32,)])
def test_prelu_equals_the_builtin_kernels_for_every_input(alpha_shape, kind):
    random = np.random.default_rng(4)
    x = np.repeat(EVERY_VALUE.reshape(1, 4, 64, 1), 32, axis=-1)
    for _ in range(12):
        x_grid, alpha_grid, output = _grid(random, kind), _grid(random, kind, -8, 0), _grid(random, kind)
        alpha = _integers(random, alpha_shape)
        tflite = _many("PRELU", [(x.shape, x_grid), (alpha, alpha_grid)], output, x.shape)
        assert runtime.delegated_operators(tflite) == [False]
        predicted = arithmetic_elementwise.prelu(x, x_grid, alpha, alpha_grid, output)
        _assert_same(predicted, runtime.run(tflite, [x])[0])


@kinds
@pytest.mark.parametrize("approximate", [False, True])
def test_gelu_equals_the_builtin_kernels_for_every_input(approximate, kind):
    random = np.random.default_rng(5)
    for _ in range(150):
        x_grid, output = _grid(random, kind, -8, 1), _grid(random, kind, -8, 1)
        tflite = _unary("GELU", x_grid, output, tiny.options("GeluOptions", approximate=approximate))
        assert runtime.delegated_operators(tflite) == [False]
        predicted = arithmetic_elementwise.gelu(EVERY_VALUE[None], x_grid, output, approximate=approximate)
        _assert_same(predicted, runtime.run(tflite, [EVERY_VALUE[None]])[0])


@kinds
def test_elu_equals_xnnpack_for_every_input(kind):
    random = np.random.default_rng(6)
    for _ in range(150):
        x_grid, output = _grid(random, kind, -8, 1), _grid(random, kind, -8, 1)
        tflite = _unary("ELU", x_grid, output)
        assert runtime.delegated_operators(tflite) == [True]
        predicted = arithmetic_elementwise.elu(EVERY_VALUE[None], x_grid, output)
        _assert_same(predicted, runtime.run(tflite, [EVERY_VALUE[None]])[0])


@kinds
def test_hard_swish_equals_the_builtin_kernels_for_every_input(kind):
    random = np.random.default_rng(7)
    compared = 0
    while compared < 400:
        x_grid, output = _grid(random, kind, -9, 2), _grid(random, kind, -9, 2)
        lowest, highest = arithmetic_elementwise.HARD_SWISH_SCALE_LIMITS
        if not lowest <= x_grid.scale / output.scale < highest:
            continue
        tflite = _unary("HARD_SWISH", x_grid, output)
        assert runtime.delegated_operators(tflite) == [False]
        predicted = arithmetic_elementwise.hard_swish(EVERY_VALUE[None], x_grid, output)
        _assert_same(predicted, runtime.run(tflite, [EVERY_VALUE[None]])[0])
        compared += 1


@pytest.mark.parametrize("limit", arithmetic_elementwise.HARD_SWISH_SCALE_LIMITS)
def test_hard_swish_is_defined_exactly_where_the_runtime_computes_it(limit):
    lowest, highest = arithmetic_elementwise.HARD_SWISH_SCALE_LIMITS
    for scale in _neighbours(limit):
        grid = Int8Grid(scale=scale, zero_point=0)
        tflite = _unary("HARD_SWISH", grid, ONE)
        if lowest <= scale < highest:
            predicted = arithmetic_elementwise.hard_swish(EVERY_VALUE[None], grid, ONE)
            _assert_same(predicted, runtime.run(tflite, [EVERY_VALUE[None]])[0])
            continue
        with pytest.raises(ValueError, match="HARD_SWISH, expected"):
            arithmetic_elementwise.hard_swish(EVERY_VALUE[None], grid, ONE)
        if scale < lowest:
            # hard_swish of [-0.25, 0.25] in steps of 1 is 0 throughout.
            assert np.any(runtime.run(tflite, [EVERY_VALUE[None]])[0])
        else:
            with pytest.raises(ValueError, match="refuse"):
                runtime.run(tflite, [EVERY_VALUE[None]])


SIZES = [
    ((5, 7), (10, 14)), ((5, 7), (20, 21)), ((8, 8), (4, 4)), ((7, 9), (13, 5)), ((1, 1), (3, 3)), ((5, 5), (5, 5)),
    ((16, 16), (31, 33)), ((6, 5), (1, 1)), ((3, 3), (24, 24)), ((33, 20), (11, 7)),
]  # fmt: skip


def _resize(operator, shape, size, **chosen):
    kind = {"RESIZE_BILINEAR": "ResizeBilinearOptions", "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions"}
    return tiny.unary(
        operator, shape, (0.1, 3), (0.1, 3), tiny.options(kind[operator], **chosen),
        y_shape=(shape[0], *size, shape[3]), constants=[np.array(size)], version=VERSIONS[operator],
    )  # fmt: skip


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
@pytest.mark.parametrize(("align_corners", "half_pixel_centers"), [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize(("size", "wanted"), SIZES)
def test_resize_bilinear_equals_the_runtime(size, wanted, align_corners, half_pixel_centers, kernels):
    random = np.random.default_rng(8)
    for channels in (1, 8, 19):
        x = _integers(random, (2, *size, channels))
        tflite = _resize(
            "RESIZE_BILINEAR", x.shape, wanted, alignCorners=align_corners, halfPixelCenters=half_pixel_centers
        )
        assert runtime.delegated_operators(tflite) == [True]
        predicted = arithmetic_elementwise.resize_bilinear(
            x, wanted, align_corners=align_corners, half_pixel_centers=half_pixel_centers, kernels=kernels
        )
        _assert_same(predicted, runtime.run(tflite, [x], kernels=kernels)[0])


@pytest.mark.parametrize(("size", "wanted"), SIZES)
def test_resize_nearest_neighbor_moves_integers_as_tensorflow_does(size, wanted):
    x = _integers(np.random.default_rng(9), (2, *size, 8))
    tflite = _resize("RESIZE_NEAREST_NEIGHBOR", x.shape, wanted, halfPixelCenters=True)
    assert runtime.delegated_operators(tflite) == [False]
    _assert_same(tf.image.resize(x, wanted, method="nearest").numpy(), runtime.run(tflite, [x])[0])


@pytest.mark.parametrize("axes", [(1, 2), (1,), (3,)])
@pytest.mark.parametrize("keep", [True, False])
def test_reduce_max_moves_integers(axes, keep):
    x = _integers(np.random.default_rng(10), (2, 5, 7, 8))
    expected = x.max(axis=axes, keepdims=keep)
    tflite = tiny.unary(
        "REDUCE_MAX", x.shape, (0.1, 3), (0.1, 3), tiny.options("ReducerOptions", keepDims=keep),
        y_shape=expected.shape, constants=[np.array(axes)], version=VERSIONS["REDUCE_MAX"],
    )  # fmt: skip
    assert runtime.delegated_operators(tflite) == [True]
    _assert_same(expected, runtime.run(tflite, [x])[0])


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_max_pool_moves_integers(stride, padding):
    x = _integers(np.random.default_rng(11), (2, 11, 10, 8))
    expected = tf.nn.max_pool2d(x.astype(np.float32), 3, stride, padding).numpy()
    chosen = tiny.options(
        "Pool2DOptions", padding=padding, strideH=stride, strideW=stride, filterHeight=3, filterWidth=3,
        fusedActivationFunction="NONE",
    )  # fmt: skip
    tflite = tiny.unary("MAX_POOL_2D", x.shape, (0.1, 3), (0.1, 3), chosen, y_shape=expected.shape)
    assert runtime.delegated_operators(tflite) == [True]
    _assert_same(expected, runtime.run(tflite, [x])[0])


@pytest.mark.parametrize("operator", ["MAXIMUM", "MINIMUM"])
@pytest.mark.parametrize("b_shape", [(2, 5, 7, 8), (2, 1, 1, 8), (8,), ()])
def test_maximum_and_minimum_over_one_grid_move_integers(operator, b_shape):
    random = np.random.default_rng(12)
    a, b = _integers(random, (2, 5, 7, 8)), np.asarray(_integers(random, b_shape))
    grid = Int8Grid(scale=0.1, zero_point=3)
    tflite = _many(
        operator, [(a.shape, grid), (b_shape, grid)], grid, a.shape, tiny.options("MaximumMinimumOptions")
    )  # fmt: skip
    assert runtime.delegated_operators(tflite) == [False]
    expected = np.maximum(a, b) if operator == "MAXIMUM" else np.minimum(a, b)
    _assert_same(expected, runtime.run(tflite, [a, b])[0])


@pytest.mark.parametrize(("count", "taken"), [(2, True), (5, True), (6, False)])
def test_concatenation_over_one_grid_moves_integers(count, taken):
    random = np.random.default_rng(13)
    inputs = [_integers(random, (2, 5, 7, 8)) for _ in range(count)]
    grid = Int8Grid(scale=0.1, zero_point=3)
    tflite = _many(
        "CONCATENATION", [(x.shape, grid) for x in inputs], grid, (2, 5, 7, 8 * count),
        tiny.options("ConcatenationOptions", axis=3),
    )  # fmt: skip
    assert runtime.delegated_operators(tflite) == [taken]
    _assert_same(np.concatenate(inputs, axis=-1), runtime.run(tflite, inputs)[0])


def test_the_runtime_refuses_a_file_that_concatenates_different_grids():
    grids = [Int8Grid(scale=scale, zero_point=0) for scale in (0.1, 0.2)]
    tflite = _many(
        "CONCATENATION", [((2, 8), grid) for grid in grids], grids[0], (2, 16), tiny.options("ConcatenationOptions")
    )
    with pytest.raises(ValueError, match="refuse"):
        runtime.run(tflite, [np.zeros((2, 8), np.int8)] * 2)


def _convolution_with_bias(operator, kernel, chosen, x_grid, x_shape, output, y_shape, scales, bias, version):
    model = tiny.TinyModel()
    x = model.activation("x", x_shape, scale=x_grid.scale, zero_point=x_grid.zero_point)
    weights = model.constant("w", kernel, scales=scales, axis=3 if operator == "DEPTHWISE_CONV_2D" else 0)
    bias_scales = np.float32(x_grid.scale) * np.asarray(scales, np.float32)
    biases = model.constant("b", bias, scales=bias_scales, stored="INT32")
    y = model.activation("y", y_shape, scale=output.scale, zero_point=output.zero_point)
    inputs = [x, weights, biases]
    if operator == "TRANSPOSE_CONV":
        inputs = [model.constant("shape", np.array(y_shape), stored="INT32"), weights, x, biases]
    model.operator(operator, inputs, [y], chosen, version)
    return model.to_bytes([x], [y])


@kinds
@pytest.mark.parametrize("fused", ["NONE", "RELU"])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (2, 2), (3, 2), (4, 2), (1, 2)])
def test_transpose_conv_ends_with_requantize(size, stride, padding, fused, kind):
    random = np.random.default_rng(14)
    x_grid, output = _grid(random, kind, -6, -3), _grid(random, kind, -4, 0)
    kernel, bias = random.integers(-127, 128, (6, size, size, 5)), random.integers(-3000, 3000, 6)
    scales = [_scale(random, kind, -7, -4) for _ in range(6)]
    x = _integers(random, (2, 7, 8, 5))
    extra = max(size - stride, 0) if padding == "VALID" else 0
    y_shape = (2, 7 * stride + extra, 8 * stride + extra, 6)
    centered = x.astype(np.float64) - x_grid.zero_point
    filters = np.transpose(kernel, (1, 2, 0, 3)).astype(np.float64)
    accumulator = tf.nn.conv2d_transpose(centered, filters, y_shape, stride, padding).numpy() + bias
    chosen = tiny.options(
        "TransposeConvOptions", padding=padding, strideH=stride, strideW=stride, fusedActivationFunction=fused
    )
    tflite = _convolution_with_bias(
        "TRANSPOSE_CONV", kernel, chosen, x_grid, x.shape, output, y_shape, scales, bias, 3 if fused == "NONE" else 4
    )
    taken = padding == "VALID" or size >= stride
    assert runtime.delegated_operators(tflite) == [taken]
    if taken:
        _assert_requantized(tflite, x, accumulator, x_grid, scales, output, fused)
    for kernels in ("builtin",) if taken else ("xnnpack", "builtin"):
        _assert_rescaled(tflite, x, accumulator, x_grid, scales, output, fused, kernels=kernels)


@kinds
@pytest.mark.parametrize("fused", ["NONE", "RELU"])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("groups", "dilation", "stride"), [(2, 1, 1), (4, 1, 2), (8, 1, 1), (1, 2, 1), (1, 3, 1), (2, 2, 1)]
)
def test_grouped_and_dilated_convolutions_end_with_requantize(groups, dilation, stride, padding, fused, kind):
    random = np.random.default_rng(15)
    x_grid, output = _grid(random, kind, -6, -3), _grid(random, kind, -4, 0)
    kernel, bias = random.integers(-127, 128, (16, 3, 3, 8 // groups)), random.integers(-3000, 3000, 16)
    scales = [_scale(random, kind, -7, -4) for _ in range(16)]
    x = _integers(random, (2, 11, 10, 8))
    centered = np.split(x.astype(np.float64) - x_grid.zero_point, groups, axis=-1)
    filters = np.split(np.transpose(kernel, (1, 2, 3, 0)).astype(np.float64), groups, axis=-1)
    accumulator = bias + np.concatenate(
        [
            tf.nn.conv2d(part, weights, stride, padding, dilations=dilation).numpy()
            for part, weights in zip(centered, filters, strict=True)
        ],
        axis=-1,
    )
    chosen = tiny.options(
        "Conv2DOptions", fusedActivationFunction=fused, padding=padding, strideH=stride, strideW=stride,
        dilationHFactor=dilation, dilationWFactor=dilation,
    )  # fmt: skip
    tflite = _convolution_with_bias(
        "CONV_2D", kernel, chosen, x_grid, x.shape, output, accumulator.shape, scales, bias, 3 if groups == 1 else 6
    )
    assert runtime.delegated_operators(tflite) == [True]
    _assert_requantized(tflite, x, accumulator, x_grid, scales, output, fused)
    if groups > 1:
        _assert_rescaled(tflite, x, accumulator, x_grid, scales, output, fused, kernels="builtin")


@kinds
@pytest.mark.parametrize("fused", ["NONE", "RELU"])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("multiplier", "dilation"), [(1, 2), (1, 3), (2, 1), (2, 2)])
def test_dilated_depthwise_convolution_ends_with_requantize(multiplier, dilation, padding, fused, kind):
    random = np.random.default_rng(16)
    x_grid, output, channels = _grid(random, kind, -6, -3), _grid(random, kind, -4, 0), 8 * multiplier
    kernel, bias = random.integers(-127, 128, (1, 3, 3, channels)), random.integers(-3000, 3000, channels)
    scales = [_scale(random, kind, -7, -4) for _ in range(channels)]
    x = _integers(random, (2, 11, 10, 8))
    filters = kernel.reshape(3, 3, 8, multiplier).astype(np.float64)
    centered = x.astype(np.float64) - x_grid.zero_point
    accumulator = bias + tf.nn.depthwise_conv2d(
        centered, filters, (1, 1, 1, 1), padding, dilations=(dilation, dilation)
    ).numpy()  # fmt: skip
    chosen = tiny.options(
        "DepthwiseConv2DOptions", fusedActivationFunction=fused, padding=padding, strideH=1, strideW=1,
        depthMultiplier=multiplier, dilationHFactor=dilation, dilationWFactor=dilation,
    )  # fmt: skip
    tflite = _convolution_with_bias(
        "DEPTHWISE_CONV_2D", kernel, chosen, x_grid, x.shape, output, accumulator.shape, scales, bias, 3
    )
    assert runtime.delegated_operators(tflite) == [True]
    _assert_requantized(tflite, x, accumulator, x_grid, scales, output, fused)


def _assert_requantized(tflite, x, accumulator, x_grid, scales, output, fused):
    """XNNPACK ends with `requantize`."""
    low, high = arithmetic.fused_range(output, fused.lower())
    predicted = arithmetic.requantize(
        accumulator, input_scale=x_grid.scale, weight_scales=scales, output=output, low=low, high=high
    )
    _assert_same(predicted, runtime.run(tflite, [x])[0])


def _assert_rescaled(tflite, x, accumulator, x_grid, scales, output, fused, *, kernels):
    """Builtin kernels that are not matrix products end with `rescale`, channel by channel."""
    low, high = arithmetic.fused_range(output, fused.lower(), kernels="builtin")
    channels = [
        arithmetic_elementwise.rescale(
            values.astype(np.int64), x_grid.scale * np.float64(np.float32(scale)) / output.scale
        )
        for values, scale in zip(np.moveaxis(accumulator, -1, 0), scales, strict=True)
    ]
    predicted = np.clip(np.stack(channels, axis=-1) + output.zero_point, low, high)
    _assert_same(predicted, runtime.run(tflite, [x], kernels=kernels)[0])


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="kernels='gpu'"):
        arithmetic_elementwise.leaky_relu([1], ONE, 0.1, ONE, kernels="gpu")
    with pytest.raises(ValueError, match="kernels='gpu'"):
        arithmetic_elementwise.resize_bilinear(np.zeros((1, 2, 2, 1)), (4, 4), kernels="gpu")
    with pytest.raises(ValueError, match="align_corners and half_pixel_centers"):
        arithmetic_elementwise.resize_bilinear(np.zeros((1, 2, 2, 1)), (4, 4), align_corners=True)
