"""Packing: what narrows, what must not, and that no output changes.

"The same" is 0 differences: for one set of kernels, INT4 and INT2 compute what INT8 computes.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.export import tiny_model as tiny
from tfqil.export import flatbuffer, runtime
from tfqil.export.inspect import inspect
from tfqil.export.pack import STORAGES, pack

INT4, INT2, WIDE = (-8, 7), (-2, 1), (-9, 7)


def _integers(shape, limits, seed=0):
    """Random integers that reach both limits."""
    values = np.random.default_rng(seed).integers(limits[0], limits[1] + 1, shape)
    values.flat[0], values.flat[1] = limits
    return values


def _layer(operator, limits, inputs=8, kernel=3, scales=None):
    outputs = 8
    shape, x_shape = {
        "CONV_2D": ((outputs, kernel, kernel, inputs), (1, 6, 6, inputs)),
        "DEPTHWISE_CONV_2D": ((1, kernel, kernel, inputs), (1, 6, 6, inputs)),
        "FULLY_CONNECTED": ((outputs, inputs), (1, inputs)),
    }[operator]
    channels = inputs if operator == "DEPTHWISE_CONV_2D" else outputs
    scales = np.linspace(0.01, 0.025, channels) if scales is None else scales
    bias = np.arange(len(scales) if len(scales) > 1 else channels)
    if len(scales) == 1:
        bias = np.zeros(channels)
    tflite = tiny.weighted(
        operator, _integers(shape, limits), x_shape=x_shape, y_shape=(*x_shape[:-1], channels), scales=scales,
        bias=bias, fused="RELU",
    )  # fmt: skip
    return tflite, _input(x_shape)


def _input(shape, batch=4):
    return np.random.default_rng(1).integers(-128, 128, (batch, *shape[1:])).astype(np.int8)


def _stored(tflite):
    model = flatbuffer.load(tflite)
    graph = model.subgraphs[0]
    return [
        (flatbuffer.operator_name(model, node), flatbuffer.type_name(graph.tensors[node.inputs[1]]))
        for node in graph.operators
        if len(node.inputs) > 1
    ]


def _assert_same(before, after, inputs, kernels):
    for expected, actual in zip(
        *(runtime.run(tflite, inputs, kernels=kernels) for tflite in (before, after)), strict=True
    ):
        differences = np.count_nonzero(expected != actual)
        assert differences == 0, f"{differences} of {expected.size} outputs differ with the {kernels} kernels"


@pytest.mark.parametrize(
    ("operator", "kernel", "limits", "fastest", "smallest"),
    [
        ("CONV_2D", 3, INT4, "CONV_2D INT8", "CONV_2D INT4"),
        ("CONV_2D", 3, INT2, "CONV_2D INT8", "CONV_2D INT4"),
        ("CONV_2D", 3, WIDE, "CONV_2D INT8", "CONV_2D INT8"),
        ("CONV_2D", 1, INT4, "FULLY_CONNECTED INT4", "FULLY_CONNECTED INT4"),
        ("CONV_2D", 1, INT2, "FULLY_CONNECTED INT4", "FULLY_CONNECTED INT2"),
        ("CONV_2D", 1, WIDE, "CONV_2D INT8", "CONV_2D INT8"),
        ("DEPTHWISE_CONV_2D", 3, INT4, "DEPTHWISE_CONV_2D INT8", "DEPTHWISE_CONV_2D INT4"),
        ("DEPTHWISE_CONV_2D", 3, INT2, "DEPTHWISE_CONV_2D INT8", "DEPTHWISE_CONV_2D INT4"),
        ("FULLY_CONNECTED", 0, INT4, "FULLY_CONNECTED INT4", "FULLY_CONNECTED INT4"),
        ("FULLY_CONNECTED", 0, INT2, "FULLY_CONNECTED INT4", "FULLY_CONNECTED INT2"),
        ("FULLY_CONNECTED", 0, WIDE, "FULLY_CONNECTED INT8", "FULLY_CONNECTED INT8"),
    ],
)
def test_the_storage_decides_the_type_and_no_output_changes(operator, kernel, limits, fastest, smallest):
    tflite, x = _layer(operator, limits, kernel=kernel)
    for storage, expected in (("int8", f"{operator} INT8"), ("fastest", fastest), ("smallest", smallest)):
        packed = pack(tflite, storage)
        assert _stored(packed) == [tuple(expected.split())]
        _assert_same(tflite, packed, [x], "builtin")
        if storage != "smallest" or "FULLY" in expected:
            assert runtime.delegated_operators(packed) == [True]
            _assert_same(tflite, packed, [x], "xnnpack")


@pytest.mark.parametrize(("stored", "limits", "inputs"), [("INT2", INT2, 8), ("INT4", INT4, 8), ("INT4", INT2, 6)])
def test_one_scale_for_all_channels_is_replicated(stored, limits, inputs):
    tflite, x = _layer("FULLY_CONNECTED", limits, inputs=inputs, scales=[0.02])
    packed = pack(tflite, "smallest")
    assert _stored(packed) == [("FULLY_CONNECTED", stored)]
    assert runtime.delegated_operators(packed) == [True]
    for kernels in ("xnnpack", "builtin"):
        _assert_same(tflite, packed, [x], kernels)


@pytest.mark.parametrize("limits", [INT4, INT2])
@pytest.mark.parametrize(("operator", "fastest", "smallest"), [
    ("FULLY_CONNECTED", "FULLY_CONNECTED INT8", "FULLY_CONNECTED INT4"),
    ("CONV_2D", "CONV_2D INT8", "CONV_2D INT4"),
])  # fmt: skip
def test_rows_of_odd_length_are_left_to_the_builtin_kernels(operator, fastest, smallest, limits):
    tflite, x = _layer(operator, limits, inputs=7, kernel=1)
    assert _stored(pack(tflite, "fastest")) == [tuple(fastest.split())]
    packed = pack(tflite, "smallest")
    assert _stored(packed) == [tuple(smallest.split())]
    assert runtime.delegated_operators(packed) == [False]
    _assert_same(tflite, packed, [x], "builtin")


@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (1, 2), (1, 1)])
def test_strided_and_dilated_convolutions_keep_their_outputs(stride, dilation):
    model = tiny.TinyModel()
    x = model.activation("x", (1, 9, 9, 4), scale=0.03, zero_point=-7)
    w = model.constant("w", _integers((8, 3, 3, 4), INT4), scales=[0.02] * 8)
    b = model.constant("b", np.arange(8), scales=[np.float32(0.03) * np.float32(0.02)] * 8, stored="INT32")
    size = -(-9 // stride)
    y = model.activation("y", (1, size, size, 8), scale=0.05)
    chosen = tiny.convolution_options(stride=stride)
    chosen.dilationHFactor = chosen.dilationWFactor = dilation
    model.operator("CONV_2D", [x, w, b], [y], chosen)
    tflite = model.to_bytes([x], [y])
    packed = pack(tflite, "smallest")
    assert _stored(packed) == [("CONV_2D", "INT4")]
    _assert_same(tflite, packed, [_input((1, 9, 9, 4))], "builtin")


def _dense(model, x, inputs, outputs, name, *, zero_point=0, limits=INT2, stored="INT8"):
    w = model.constant(
        f"{name}/w", _integers((outputs, inputs), limits), scales=[0.02] * outputs, zero_point=zero_point
    )
    y = model.activation(name, (1, outputs), scale=0.05, stored=stored)
    model.operator("FULLY_CONNECTED", [x, w, -1], [y], tiny.options("FullyConnectedOptions"))
    return w, y


def test_weights_with_a_zero_point_stay_int8():
    model = tiny.TinyModel()
    x = model.activation("x", (1, 8), scale=0.1)
    _, y = _dense(model, x, 8, 8, "dense", zero_point=1)
    assert _stored(pack(model.to_bytes([x], [y]), "smallest")) == [("FULLY_CONNECTED", "INT8")]


def test_shared_weights_stay_int8():
    model = tiny.TinyModel()
    x = model.activation("x", (1, 8), scale=0.1)
    w, first = _dense(model, x, 8, 8, "first")
    second = model.activation("second", (1, 8), scale=0.05)
    model.operator("FULLY_CONNECTED", [first, w, -1], [second], tiny.options("FullyConnectedOptions"))
    assert {stored for _, stored in _stored(pack(model.to_bytes([x], [second]), "smallest"))} == {"INT8"}


def test_weights_in_a_shared_buffer_stay_int8():
    model = tiny.TinyModel()
    x = model.activation("x", (1, 8), scale=0.1)
    w, first = _dense(model, x, 8, 8, "first")
    v, second = _dense(model, first, 8, 8, "second")
    model.graph.tensors[v].buffer = model.graph.tensors[w].buffer
    assert {stored for _, stored in _stored(pack(model.to_bytes([x], [second]), "smallest"))} == {"INT8"}


def test_int16_and_float_activations_keep_int8_weights():
    for stored in ("INT16", "FLOAT32"):
        model = tiny.TinyModel()
        x = model.activation("x", (1, 8), scale=None if stored == "FLOAT32" else 0.1, stored=stored)
        _, y = _dense(model, x, 8, 8, "dense", stored=stored)
        assert _stored(pack(model.to_bytes([x], [y]), "smallest")) == [("FULLY_CONNECTED", "INT8")]


def test_grouped_and_transposed_convolutions_stay_int8():
    model = tiny.TinyModel()
    x = model.activation("x", (1, 4, 4, 8), scale=0.1)
    w = model.constant("w", _integers((8, 1, 1, 4), INT2), scales=[0.02] * 8)
    y = model.activation("y", (1, 4, 4, 8), scale=0.05)
    model.operator("CONV_2D", [x, w, -1], [y], tiny.convolution_options())
    shape = model.constant("shape", np.array([1, 8, 8, 8]), stored="INT32")
    v = model.constant("v", _integers((8, 2, 2, 8), INT2), scales=[0.02] * 8)
    z = model.activation("z", (1, 8, 8, 8), scale=0.05)
    chosen = tiny.options("TransposeConvOptions", padding="SAME", strideH=2, strideW=2)
    model.operator("TRANSPOSE_CONV", [shape, v, y], [z], chosen)
    packed = pack(model.to_bytes([x], [z]), "smallest")
    assert _stored(packed) == [("CONV_2D", "INT8"), ("TRANSPOSE_CONV", "INT8")]


class _DenseAsConvolution:
    """x (1, 2, 2, 4) -> RESHAPE (1, 1, 1, 16) -> CONV_2D -> RESHAPE to `shape`, with an open batch."""

    def __init__(self, shape=(1, 8)):
        self.model = model = tiny.TinyModel()
        self.x = self._tensor("x", (1, 2, 2, 4), 0.1)
        self.before = self._tensor("before", (1, 1, 1, 16), 0.1)
        self.conv = self._tensor("conv", (1, 1, 1, 8), 0.05)
        self.y = self._tensor("y", shape, 0.05)
        self.w = model.constant("w", _integers((8, 1, 1, 16), WIDE), scales=[0.02] * 8)
        self._reshape(self.x, self.before)
        self.convolve(self.before, self.w, self.conv)
        self._reshape(self.conv, self.y)

    def _tensor(self, name, shape, scale):
        return self.model.activation(name, shape, scale=scale, signature=(-1, *shape[1:]))

    def _reshape(self, x, y):
        shape = np.array([-1, *self.model.graph.tensors[y].shape[1:]])
        target = self.model.constant(f"{y}/shape", shape, stored="INT32")
        self.model.operator("RESHAPE", [x, target], [y], tiny.options("ReshapeOptions", newShape=shape))

    def convolve(self, x, w, y):
        scale = self.model.graph.tensors[x].quantization.scale[0] * np.float32(0.02)
        b = self.model.constant(f"{y}/bias", np.arange(8), scales=[scale] * 8, stored="INT32")
        self.model.operator("CONV_2D", [x, w, b], [y], tiny.convolution_options(fused="RELU"))

    def check(self, outputs, expected):
        tflite = self.model.to_bytes([self.x], outputs)
        for storage in STORAGES:
            packed = pack(tflite, storage)
            assert [operator.name for operator in inspect(packed).operators] == expected
            for batch in (1, 3):
                for kernels in ("xnnpack", "builtin"):
                    _assert_same(tflite, packed, [_input((1, 2, 2, 4), batch)], kernels)
        return packed


def test_a_dense_layer_becomes_one_operator_and_nothing_is_left_over():
    dense = _DenseAsConvolution()
    model = flatbuffer.load(dense.check([dense.y], ["FULLY_CONNECTED"]))
    assert sorted(map(flatbuffer.tensor_name, model.subgraphs[0].tensors)) == [
        f"{dense.conv}/bias",
        "w",
        "x",
        "y",
    ]
    assert len(model.buffers) == 3
    assert len(model.operatorCodes) == 1


def test_an_intermediate_tensor_that_is_an_output_stays():
    dense = _DenseAsConvolution()
    dense.check([dense.y, dense.conv], ["RESHAPE", "CONV_2D", "RESHAPE"])
    dense.check([dense.y, dense.before], ["RESHAPE", "FULLY_CONNECTED"])


def test_an_intermediate_tensor_that_another_operator_reads_stays():
    dense = _DenseAsConvolution()
    beside = dense._tensor("beside", (1, 1, 1, 8), 1 / 256)
    dense.model.graph.tensors[beside].quantization.zeroPoint = np.array([-128], np.int64)
    dense.model.operator("LOGISTIC", [dense.conv], [beside])
    dense.check([dense.y, beside], ["RESHAPE", "CONV_2D", "RESHAPE", "LOGISTIC"])


def test_two_layers_that_share_a_reshape_and_weights_both_fold():
    dense = _DenseAsConvolution()
    conv, y = dense._tensor("conv2", (1, 1, 1, 8), 0.07), dense._tensor("y2", (1, 8), 0.07)
    dense.convolve(dense.before, dense.w, conv)
    dense._reshape(conv, y)
    dense.check([dense.y, y], ["FULLY_CONNECTED", "FULLY_CONNECTED"])


def test_a_following_reshape_to_another_shape_stays():
    dense = _DenseAsConvolution(shape=(1, 2, 4))
    dense.check([dense.y], ["FULLY_CONNECTED", "RESHAPE"])


def test_a_chain_of_dense_layers_without_reshapes_between_folds():
    dense = _DenseAsConvolution()
    model = dense.model
    w = model.constant("w2", _integers((8, 1, 1, 8), WIDE), scales=[0.02] * 8)
    hidden = dense._tensor("hidden", (1, 1, 1, 8), 0.05)
    model.graph.operators.insert(2, None)
    dense.convolve(dense.conv, w, hidden)
    model.graph.operators[2] = model.graph.operators.pop()
    model.graph.operators[3].inputs[0] = hidden
    dense.check([dense.y], ["FULLY_CONNECTED", "FULLY_CONNECTED"])


def test_signatures_and_metadata_survive_the_renumbering():
    dense = _DenseAsConvolution()
    schema, model = tiny.schema, dense.model.model
    signature, source, target = schema.SignatureDefT(), schema.TensorMapT(), schema.TensorMapT()
    source.name, source.tensorIndex, target.name, target.tensorIndex = b"in", dense.x, b"out", dense.y
    signature.inputs, signature.outputs, signature.signatureKey = [source], [target], b"serving_default"
    model.signatureDefs = [signature]
    note, content = schema.MetadataT(), schema.BufferT()
    content.data = np.frombuffer(b"a note", np.uint8)
    model.buffers.append(content)
    note.name, note.buffer = b"note", len(model.buffers) - 1
    model.metadata = [note]
    packed = flatbuffer.load(dense.check([dense.y], ["FULLY_CONNECTED"]))
    tensors, (loaded,) = packed.subgraphs[0].tensors, packed.signatureDefs
    assert tensors[loaded.inputs[0].tensorIndex].name == b"x"
    assert tensors[loaded.outputs[0].tensorIndex].name == b"y"
    assert bytes(packed.buffers[packed.metadata[0].buffer].data) == b"a note"


def test_buffers_are_aligned_as_the_schema_demands():
    tflite, _ = _layer("CONV_2D", INT4)
    packed = pack(tflite, "smallest")
    model = tiny.schema.Model.GetRootAs(packed, 0)
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    starts = [buffer._tab.Vector(buffer._tab.Offset(4)) for buffer in buffers if buffer.DataLength()]
    assert len(starts) == 2
    assert all(start % 16 == 0 for start in starts)


def test_packing_twice_changes_nothing():
    for storage in STORAGES:
        packed = pack(_layer("CONV_2D", INT2, kernel=1)[0], storage)
        assert pack(packed, storage) == packed


def test_a_packed_file_cut_at_any_byte_is_refused():
    packed = pack(_layer("CONV_2D", INT2)[0], "smallest")
    for size in range(len(packed)):
        with pytest.raises(ValueError, match="^got "):
            flatbuffer.load(packed[:size])


def test_another_storage_is_refused_before_any_work():
    with pytest.raises(ValueError, match=r"storage='tiny', expected one of \('fastest', 'smallest', 'int8'\)"):
        pack(b"", "tiny")
