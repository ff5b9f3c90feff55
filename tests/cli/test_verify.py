from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

import tfqil
from tests.cli.command_line import assert_refused, run_here, run_process
from tfqil.cli import console, verify


@dataclasses.dataclass(frozen=True)
class Report:
    """Stands in for the library's report where only the command is under test."""

    accepted: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "accepted": self.accepted,
            "largest_difference": 0.25,
            "layers": [{"name": "conv", "largest_difference": 0}],
        }


@dataclasses.dataclass(frozen=True)
class Trained:
    """Files of a small quantized model."""

    model: pathlib.Path
    other_model: pathlib.Path
    tflite: pathlib.Path
    inputs: pathlib.Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model, its file, a batch of inputs, and the same model after one more change of a kernel."""
    import tf_keras

    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.ReLU(), layers.Flatten(), layers.Dense(5)]
    )
    inputs = np.random.default_rng(0).uniform(-1, 1, (16, 8, 8, 3)).astype(np.float32)
    quantized = tfqil.quantize_model(model, tfqil.QILQuantizeConfig(weight_bits=4, activation_bits=8))
    tfqil.calibrate(quantized, [inputs])
    folder = tmp_path_factory.mktemp("trained")
    files = Trained(*(folder / name for name in ("model.keras", "other.keras", "model.tflite", "inputs.npy")))
    np.save(files.inputs, inputs)
    files.tflite.write_bytes(tfqil.convert(quantized))
    quantized.save(files.model)
    kernel = next(variable for variable in quantized.trainable_variables if "kernel" in variable.name)
    kernel.assign(-kernel)
    quantized.save(files.other_model)
    return files


def test_a_converted_file_is_accepted_and_nothing_is_logged(trained):
    result = run_process("verify", trained.model, trained.tflite, f"--inputs={trained.inputs}", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["accepted"] is True
    assert result.stderr == ""


def test_the_file_of_another_model_is_rejected(trained, capsys):
    assert run_here("verify", trained.other_model, trained.tflite, f"--inputs={trained.inputs}") == 1
    assert "accepted: no" in capsys.readouterr().out


def test_inputs_of_another_shape_are_refused(trained, inputs_file, capsys):
    assert run_here("verify", trained.model, trained.tflite, f"--inputs={inputs_file}") == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.count("\n") == 1 and "(2, 8)" in error


@pytest.fixture
def inputs_file(tmp_path):
    path = tmp_path / "inputs.npy"
    np.save(path, np.zeros((2, 8), np.float32))
    return path


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("content is up to the stand-in")
    return path


@pytest.fixture(params=[True, False], ids=["accepted", "rejected"])
def accepted(request, monkeypatch):
    """Makes the library accept or reject whatever it is given."""
    monkeypatch.setattr("tfqil.scheme.load_model", lambda path: path)
    monkeypatch.setattr(
        "tfqil.export.verify.verify", lambda model, tflite, inputs, per_layer: Report(accepted=request.param)
    )
    return request.param


def test_the_exit_status_is_the_verdict(accepted, model_file, tiny_file, inputs_file, capsys):
    assert run_here("verify", model_file, tiny_file, f"--inputs={inputs_file}") == (0 if accepted else 1)
    output = capsys.readouterr().out
    assert f"accepted: {'yes' if accepted else 'no'}" in output
    assert "largest difference" in output
    assert "conv" in output


def test_json_holds_the_report(accepted, model_file, tiny_file, inputs_file, capsys):
    status = run_here("verify", model_file, tiny_file, f"--inputs={inputs_file}", "--json")
    assert status == (0 if accepted else 1)
    assert json.loads(capsys.readouterr().out)["accepted"] is accepted


def test_an_error_of_the_library_becomes_one_sentence(model_file, tiny_file, inputs_file, monkeypatch, capsys):
    def refuse(model, tflite, inputs, per_layer):
        raise ValueError("got shape (2, 8),\n expected (any, 9): pass a batch of that shape")

    monkeypatch.setattr("tfqil.scheme.load_model", lambda path: path)
    monkeypatch.setattr("tfqil.export.verify.verify", refuse)
    assert run_here("verify", model_file, tiny_file, f"--inputs={inputs_file}") == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error == ("python -m tfqil verify: got shape (2, 8), expected (any, 9): pass a batch of that shape\n")


def test_missing_files_are_refused(tmp_path, model_file, tiny_file, inputs_file):
    missing = tmp_path / "missing"
    for arguments in (
        (missing, tiny_file, f"--inputs={inputs_file}"),
        (model_file, missing, f"--inputs={inputs_file}"),
        (model_file, tiny_file, f"--inputs={missing}"),
    ):
        assert_refused(run_process("verify", *arguments), str(missing), "does not exist")


@pytest.mark.parametrize(
    "save",
    [
        lambda path: path.write_text("1, 2, 3"),
        lambda path: path.write_bytes(b"\x93NUMPY\x01"),
        lambda path: np.savez(path, a=np.zeros(3)),
        lambda path: np.save(path, np.array(["text"])),
        lambda path: np.save(path, np.array([{}]), allow_pickle=True),
        lambda path: np.save(path, np.float32(1)),
        lambda path: np.save(path, np.zeros((0, 8))),
    ],
    ids=["text", "truncated", "archive", "strings", "pickle", "scalar", "empty"],
)
def test_inputs_that_are_no_batch_are_refused(save, model_file, tiny_file, tmp_path, accepted, capsys):
    path = tmp_path / "inputs.npz"
    save(path)
    for written in tmp_path.glob("inputs.np*"):
        written.rename(tmp_path / "written.npy")
    assert run_here("verify", model_file, tiny_file, f"--inputs={tmp_path / 'written.npy'}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "got " in error
    assert "numpy.save" in error


def test_a_model_that_does_not_load_is_refused(text_file, tiny_file, inputs_file):
    assert_refused(run_process("verify", text_file, tiny_file, f"--inputs={inputs_file}"), str(text_file))


def test_the_table_holds_mappings_too(capsys):
    report = {
        "agreement": 1.0,
        "per_layer": {"conv": {"difference": 1}},
        "by_name": {"dense": 3},
        "notes": ["a", "b"],
    }
    console.print_blocks(*verify.render(report, accepted=True))
    output = capsys.readouterr().out
    for text in ("agreement", "per layer", "conv", "dense", "notes: a, b", "accepted: yes"):
        assert text in output
