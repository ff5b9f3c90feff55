"""Verification notices every change of a file, and says how far the file is from the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tf_keras as keras
from ai_edge_litert import schema_py_generated as schema

import tfqil
from tests import networks
from tfqil.export import flatbuffer
from tfqil.scheme import QuantizeActivation


def tampered(tflite: bytes, change: Callable[[Any], None]) -> bytes:
    """The file after a change of its object form."""
    model = flatbuffer.load(tflite)
    change(model)
    return flatbuffer.serialize(model)


def weights_of(model: Any, operator: str = "CONV_2D") -> Any:
    """The weight tensor of the first operator of a kind."""
    graph = model.subgraphs[0]
    node = next(node for node in graph.operators if flatbuffer.operator_name(model, node) == operator)
    return graph.tensors[node.inputs[1]]


def flip_a_bit(model: Any) -> None:
    buffer = model.buffers[weights_of(model).buffer]
    data = np.array(buffer.data, np.uint8)
    data[len(data) // 2] ^= 1
    buffer.data = data


def change_a_scale(model: Any) -> None:
    scales = np.array(weights_of(model).quantization.scale, np.float32)
    scales[-1] = np.nextafter(scales[-1], np.float32(1))
    weights_of(model).quantization.scale = scales


def change_a_bias(model: Any) -> None:
    graph = model.subgraphs[0]
    node = next(node for node in graph.operators if flatbuffer.operator_name(model, node) == "FULLY_CONNECTED")
    buffer = model.buffers[graph.tensors[node.inputs[2]].buffer]
    buffer.data = (np.array(buffer.data, np.uint8).view(np.int32) + 3000).view(np.uint8)


def test_an_untouched_file_is_accepted(small_model, small_file, images):
    report = tfqil.verify(small_model, small_file, images)
    assert report.accepted and report.integer_only and report.different_weights == ()
    assert report.differing_from_deployable == 0 and report.layers == ()
    assert (report.examples, report.outputs) == (200, 2000)
    assert report.max_lsb <= 1 and 0 <= report.mean_lsb <= report.max_lsb and report.top1_agreement >= 0.995


@pytest.mark.parametrize("change", [flip_a_bit, change_a_scale], ids=lambda change: change.__name__)
def test_changed_weights_are_named(small_model, small_file, images, change):
    report = tfqil.verify(small_model, tampered(small_file, change), images)
    assert not report.accepted and len(report.different_weights) == 1
    assert report.different_weights[0] in tfqil.freeze(small_model)


def test_a_changed_bias_shows_in_the_outputs(small_model, small_file, images):
    report = tfqil.verify(small_model, tampered(small_file, change_a_bias), images)
    assert not report.accepted and report.differing_from_deployable > 0


def test_a_file_of_another_model_is_not_accepted(small_file, images):
    keras.utils.set_random_seed(5)  # Other kernels than the file's, whatever ran before.
    other = networks.calibrated_on(networks.randomize_norms(networks.tiny(), seed=5), images, 4, 4)
    report = tfqil.verify(other, small_file, images)
    assert not report.accepted and len(report.different_weights) >= 3


def test_every_quantized_tensor_is_compared_on_request(small_model, small_file, images):
    report = tfqil.verify(small_model, small_file, images, per_layer=True)
    names = [layer.name for layer in small_model.layers if isinstance(layer, QuantizeActivation)]
    assert [row.layer for row in report.layers] == names
    # float32 sums against integers: few values lie next to a rounding boundary.
    for row in report.layers:
        assert 0 <= row.differing <= 0.01 and row.largest <= 1, row


def test_a_report_is_plain_values_on_request(small_model, small_file, images):
    values = tfqil.verify(small_model, small_file, images[:8], per_layer=True).to_dict()
    assert (
        values["examples"] == 8
        and isinstance(values["layers"][0], dict)
        and isinstance(values["different_weights"], list)
    )


@pytest.mark.parametrize(
    "inputs",
    [np.zeros((2, 5, 5, 1)), [np.zeros((2, 8, 8, 1))] * 2, np.zeros((8, 8, 1))],
    ids=["shape", "number", "rank"],
)
def test_inputs_of_another_shape_are_refused(small_model, small_file, inputs):
    message = (
        r"Got (2 input arrays in a batch of inputs|inputs of shape .*), expected (1\.|\(None, 8, 8, 1\): pass batches)"
    )
    with pytest.raises(ValueError, match=message):
        tfqil.verify(small_model, small_file, inputs)


def test_no_examples_are_refused(small_model, small_file):
    with pytest.raises(ValueError, match="Got an empty batch of inputs, expected at least one example"):
        tfqil.verify(small_model, small_file, np.zeros((0, 8, 8, 1)))


def test_what_is_no_file_is_refused(small_model, images):
    with pytest.raises(ValueError, match=r"(?i)^got .*expected .*tflite"):
        tfqil.verify(small_model, b"not a flatbuffer, but long enough" * 9, images)


def test_a_float_model_is_refused(small_file, images):
    with pytest.raises(ValueError, match="Got the float model 'tiny', expected a quantized one"):
        tfqil.verify(networks.tiny(), small_file, images)


def test_the_schema_knows_the_stored_types(small_file):
    assert weights_of(flatbuffer.load(small_file)).type == schema.TensorType.INT8
