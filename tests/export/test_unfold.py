"""A spatial convolution as slices and FULLY_CONNECTED computes the same integers, with XNNPACK and without."""

import numpy as np
import pytest

from tests.export import tiny_model as tiny
from tfqil.export import flatbuffer, runtime
from tfqil.export.inspect import inspect
from tfqil.export.pack import pack


def convolution(*, kernel=(3, 3), stride=1, padding="SAME", inputs=32, outputs=32, highest=1, size=9, y_scale=0.3):
    """A CONV_2D with codes in [-highest, highest] and a border that SAME padding has to fill unevenly."""
    random = np.random.default_rng(0)
    codes = random.integers(-highest, highest + 1, (outputs, *kernel, inputs))
    scales = random.uniform(0.01, 0.02, outputs).astype(np.float32)
    model = tiny.TinyModel()
    x = model.activation("x", (1, size, size, inputs), scale=0.03, zero_point=-7)
    w = model.constant("w", codes, scales=scales)
    bias = random.integers(-500, 500, outputs)
    b = model.constant("b", bias, scales=np.float32(0.03) * scales, stored="INT32")
    shape = [-(-size // stride) if padding == "SAME" else (size - k) // stride + 1 for k in kernel]
    y = model.activation("y", (1, *shape, outputs), scale=y_scale, zero_point=112)
    options = tiny.convolution_options(fused="RELU", stride=stride)
    options.padding = getattr(tiny.schema.Padding, padding)
    model.operator("CONV_2D", [x, w, b], [y], options)
    return model.to_bytes([x], [y])


@pytest.mark.parametrize(("highest", "stored"), [(1, "INT2"), (7, "INT4")])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 2), (1, 3), (3, 1)])
def test_an_unfolded_convolution_computes_the_same_in_xnnpack(kernel, padding, stride, highest, stored):
    before = convolution(kernel=kernel, padding=padding, stride=stride, highest=highest, inputs=64)
    after = pack(before, "smallest")
    (weights,) = inspect(after).weights
    assert (weights.operator, weights.stored, weights.kernels) == ("FULLY_CONNECTED", stored, "xnnpack")
    x = np.random.default_rng(1).integers(-128, 128, (5, 9, 9, 64)).astype(np.int8)
    for kernels in ("xnnpack", "builtin"):
        expected, got = (runtime.run(tflite, [x], kernels=kernels)[0] for tflite in (before, after))
        assert expected.shape == got.shape
        differing = np.count_nonzero(expected != got)
        assert differing == 0, f"{differing} of {expected.size} outputs differ with the {kernels} kernels"


def test_it_unfolds_only_where_that_saves_bytes():
    small, large = convolution(inputs=4, outputs=8), convolution(inputs=64, outputs=64)
    assert [w.operator for w in inspect(pack(small, "smallest")).weights] == ["CONV_2D"]
    assert [w.operator for w in inspect(pack(large, "smallest")).weights] == ["FULLY_CONNECTED"]
    assert len(pack(large, "smallest")) < len(pack(large, "fastest"))


def test_other_storages_leave_spatial_convolutions_alone():
    for storage in ("fastest", "int8"):
        assert [w.operator for w in inspect(pack(convolution(), storage)).weights] == ["CONV_2D"]


@pytest.mark.parametrize(("y_scale", "stored"), [(0.3, "INT4"), (0.002, "INT8")])
def test_int4_goes_to_the_builtin_kernels_only_where_they_round_well(y_scale, stored):
    # The multiplier s_x s_w / s_y is 0.002 in the first case and up to 0.3 in the second.
    packed = pack(convolution(inputs=4, outputs=8, y_scale=y_scale), "smallest")
    assert [(w.operator, w.stored) for w in inspect(packed).weights] == [("CONV_2D", stored)]


def test_equal_constants_of_the_slices_are_stored_once():
    model = flatbuffer.load(pack(convolution(inputs=64), "smallest"))
    graph = model.subgraphs[0]
    slices = [n for n in graph.operators if flatbuffer.operator_name(model, n) == "STRIDED_SLICE"]
    strides = {int(node.inputs[3]) for node in slices}
    assert len(slices) == 6 and len(strides) == 1
