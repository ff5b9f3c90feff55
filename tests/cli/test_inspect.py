from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from tests.cli.command_line import assert_refused, run_here, run_process
from tests.export import tiny_model
from tfqil.export.metadata import Normalization, with_metadata


@pytest.fixture(scope="module")
def convolution_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """One convolution whose kernel holds the ternary codes -1, 0 and 1."""
    kernel = np.resize([1, 0, -1, 1], (4, 3, 3, 2))
    content = tiny_model.weighted(
        "CONV_2D",
        kernel,
        x_shape=(1, 5, 5, 2),
        y_shape=(1, 5, 5, 4),
        scales=[0.1, 0.2, 0.3, 0.4],
        bias=np.zeros(4),
        fused="RELU",
    )
    path = tmp_path_factory.mktemp("files") / "convolution.tflite"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What TFLiteConverter makes of a model that nobody quantized."""
    import tensorflow as tf
    import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.Input((6, 6, 1), name="image"), tf_keras.layers.Conv2D(2, 3)])
    path = tmp_path_factory.mktemp("files") / "float.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    return path


@pytest.fixture(scope="module")
def fake_quantized_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What TFLiteConverter makes of a model with fake-quants: integers, with codes in -7 to 7."""
    import tensorflow as tf
    import tf_keras

    class Convolution(tf_keras.layers.Layer):
        def build(self, input_shape):
            # A grid of step 0.1 that uses all of -7 .. 7.
            codes = np.arange(9 * 3 * 4).reshape(3, 3, 3, 4) % 15 - 7
            self.kernel = tf.constant(codes * 0.1, tf.float32)

        def call(self, inputs):
            x = tf.quantization.fake_quant_with_min_max_args(inputs, -1.0, 1.0)
            kernel = tf.quantization.fake_quant_with_min_max_vars(self.kernel, -12.7, 12.7, narrow_range=True)
            y = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME"))
            return tf.quantization.fake_quant_with_min_max_args(y, 0.0, 6.0)

    model = tf_keras.Sequential([tf_keras.layers.Input((6, 6, 3)), Convolution()])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    path = tmp_path_factory.mktemp("files") / "fake_quantized.tflite"
    path.write_bytes(converter.convert())
    return path


def test_json_holds_the_report_and_nothing_else_is_printed(convolution_file, capsys):
    assert run_here("inspect", convolution_file, "--json") == 0
    output, error = capsys.readouterr()
    report = json.loads(output)
    assert error == ""
    assert report["integer_only"] is True
    assert report["bytes"] == convolution_file.stat().st_size
    (weight,) = report["weights"]
    assert (weight["stored"], weight["bits_used"], weight["distinct_codes"]) == ("INT8", 2, 3)


def test_the_tables_name_weights_operators_and_the_verdict(convolution_file, capsys):
    assert run_here("inspect", convolution_file) == 0
    output = capsys.readouterr().out
    for text in ("CONV_2D", "4x3x3x2", "INT8", "3 (2^k)", "RELU", "XNNPACK", "integer only: yes"):
        assert text in output


def test_inputs_and_outputs_are_listed_of_every_file(convolution_file, float_file, capsys):
    assert run_here("inspect", convolution_file) == 0
    _, _, listed = capsys.readouterr().out.partition("Inputs and outputs")
    lines = [line for line in listed.splitlines() if line.startswith(("│ input", "│ output"))]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert rows == [
        ["input", "x", "(1, 5, 5, 2)", "INT8", "0.0299999993", "-7"],
        ["output", "y", "(1, 5, 5, 4)", "INT8", "0.0500000007", "0"],
    ]
    assert run_here("inspect", convolution_file, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metadata"] is None
    assert report["inputs"] == [
        {"name": "x", "shape": [1, 5, 5, 2], "stored": "INT8", "scale": float(np.float32(0.03)), "zero_point": -7}
    ]
    assert run_here("inspect", float_file, "--json") == 0
    (image,) = json.loads(capsys.readouterr().out)["inputs"]
    # As the signature calls it, and with the batch open.
    assert image == {"name": "image", "shape": [-1, 6, 6, 1], "stored": "FLOAT32", "scale": None, "zero_point": None}


def test_a_file_that_computes_in_float_is_shown_as_one_and_is_no_error(float_file, capsys):
    assert run_here("inspect", float_file) == 0
    output = capsys.readouterr().out
    assert "integer only: no" in output
    assert "CONV_2D reads the float32" in output


def test_the_bits_of_a_converted_model_are_those_of_its_grid(fake_quantized_file, capsys):
    assert run_here("inspect", fake_quantized_file, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    (weight,) = report["weights"]
    assert (weight["bits_used"], weight["distinct_codes"]) == (4, 15)
    assert report["integer_only"] is True


def test_the_process_prints_json_and_nothing_else(convolution_file):
    result = run_process("inspect", convolution_file, "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["integer_only"] is True
    assert result.stderr == ""


def test_a_truncated_file_is_refused_by_name(convolution_file, tmp_path):
    path = tmp_path / "half.tflite"
    path.write_bytes(convolution_file.read_bytes()[:200])
    assert_refused(run_process("inspect", path), str(path))


@pytest.fixture
def labelled_file(convolution_file, tmp_path):
    """The file of one convolution with labels of its two channels."""
    normalization = Normalization(mean=(128.0,), std=(64.0,))
    labels = [[f"channel {number}" for number in range(4)]]
    content = with_metadata(
        convolution_file.read_bytes(), name="filters", normalizations=[normalization], labels=labels
    )
    path = tmp_path / "labelled.tflite"
    path.write_bytes(content)
    return path


def test_labels_and_normalization_are_shown(labelled_file, capsys):
    assert run_here("inspect", labelled_file) == 0
    output = capsys.readouterr().out
    for text in ("Metadata of filters", "(pixel - 128) / 64", "4: channel 0, channel 1, channel 2, channel 3"):
        assert text in output
    assert run_here("inspect", labelled_file, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metadata"]["outputs"][0]["labels"][3] == "channel 3" and report["metadata_problem"] is None


def test_a_file_without_metadata_says_nothing_of_them(convolution_file, capsys):
    assert run_here("inspect", convolution_file) == 0
    assert "etadata" not in capsys.readouterr().out


def test_what_is_wrong_with_metadata_is_shown_and_is_no_error(labelled_file, capsys):
    content = labelled_file.read_bytes()
    labelled_file.write_bytes(content.replace(b"M001", b"M999"))
    assert run_here("inspect", labelled_file) == 0
    assert "metadata: Got metadata of another format (identifier b'M999'), expected b'M001'" in capsys.readouterr().out
    assert run_here("inspect", labelled_file, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metadata"] is None and "another format" in report["metadata_problem"]
