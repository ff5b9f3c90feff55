"""What `convert` refuses, what it writes, and that nothing is ever half-written."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tfqil.export import convert as module


def test_an_unknown_storage_names_the_known_ones(small_model):
    with pytest.raises(ValueError, match="Got storage='int4', expected one of 'fastest', 'smallest', 'int8'"):
        tfqil.convert(small_model, "int4")


def test_a_float_model_is_refused():
    with pytest.raises(ValueError, match="Got the float model 'dense', expected a quantized one"):
        tfqil.convert(networks.dense())


def test_a_model_that_no_data_have_set_names_its_tensors():
    with pytest.raises(ValueError, match=r"never set \(quantize_image, .*quantize_last.*call tfqil.calibrate"):
        tfqil.convert(networks.quantized(networks.tiny()))


def test_no_model_is_refused():
    with pytest.raises(TypeError, match="Got str, expected a tf_keras Functional or Sequential model"):
        tfqil.convert("model.keras")


def test_a_path_is_written_with_what_is_returned_and_nothing_else(small_model, tmp_path):
    path = tmp_path / "new.tflite"
    content = tfqil.convert(small_model, path=path)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]
    assert tfqil.inspect(path).integer_only


def test_an_existing_path_is_refused_before_any_work_and_untouched(small_model, tmp_path, monkeypatch):
    path = tmp_path / "old.tflite"
    path.write_bytes(b"precious")
    monkeypatch.setattr(module, "Lowering", lambda _: pytest.fail("work was done"))
    with pytest.raises(FileExistsError, match="Got the existing path .*old.tflite'.*remove it first"):
        tfqil.convert(small_model, path=str(path))
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write_bytes", "rename"])
def test_a_failure_while_writing_leaves_nothing_behind(small_model, tmp_path, monkeypatch, step):
    write_bytes = pathlib.Path.write_bytes

    def full(path, *content):
        if content and step == "write_bytes":
            write_bytes(path, content[0][:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, step, full)
    with pytest.raises(OSError, match="No space left"):
        tfqil.convert(small_model, path=tmp_path / "new.tflite", check=False)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_refused_before_any_work(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Lowering", lambda _: pytest.fail("work was done"))
    with pytest.raises(OSError, match="nowhere"):
        tfqil.convert(small_model, path=tmp_path / "nowhere" / "new.tflite")


def test_a_written_file_can_be_read_by_others(small_model, tmp_path):
    path = tmp_path / "new.tflite"
    tfqil.convert(small_model, path=path)
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_float_edges_are_refused_unless_they_are_allowed(images, tmp_path):
    q_model = networks.calibrated_on(networks.randomize_norms(networks.tiny()), images, 4, 4, edge_bits=None)
    with pytest.raises(ValueError, match=r"computes in float \(.*pass allow_float=True"):
        tfqil.convert(q_model, path=tmp_path / "none.tflite")
    assert list(tmp_path.iterdir()) == []
    content = tfqil.convert(q_model, allow_float=True)
    report = tfqil.inspect(content)
    assert not report.integer_only and report.float_leftovers
    assert {"INT8"} & {weight.stored for weight in report.weights}, "the layers between the edges are integers"
    comparison = tfqil.verify(q_model, content, images)
    assert not comparison.accepted and not comparison.integer_only and comparison.top1_agreement >= 0.98


def test_a_named_float_layer_permits_no_other():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Lambda(tf.abs, name="wave")(keras.layers.Conv2D(4, 3, name="middle")(inputs))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="behind")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(keras.layers.Flatten()(x)))
    examples = np.random.default_rng(0).normal(0, 1, (32, 8, 8, 1)).astype(np.float32)
    report = tfqil.inspect(tfqil.convert(networks.calibrated_on(model, examples, 4, 4)))
    assert {w.stored for w in report.weights} <= {"INT8", "INT4"} and not report.integer_only
    q_model = networks.calibrated_on(model, examples, 4, 4, edge_bits=None)
    with pytest.raises(
        ValueError, match=r"computes in float \(.*(middle|last).*integers only but for wave: give those"
    ):
        tfqil.convert(q_model)
    assert not tfqil.inspect(tfqil.convert(q_model, allow_float=True)).integer_only


def test_float_outputs_are_compared_too(monkeypatch):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, name="first")(inputs))
    model = keras.Model(inputs, keras.layers.Lambda(tf.abs, name="wave")(keras.layers.Dense(3)(x)))
    examples = np.random.default_rng(0).normal(0, 1, (32, 8, 8, 1)).astype(np.float32)
    q_model = networks.calibrated_on(model, examples, 4, 4)
    plain_of_another = module.Lowering.model

    def other_wave(lowering):
        plain = plain_of_another(lowering)
        plain.get_layer("wave").function = tf.square
        return plain

    tfqil.convert(q_model)
    monkeypatch.setattr(module.Lowering, "model", other_wave)
    with pytest.raises(RuntimeError, match=r"outputs of the file that are .* steps from the model's on average"):
        tfqil.convert(q_model)


def test_a_file_that_computes_something_else_is_refused(small_model, small_file, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "pack", lambda *_: small_file)
    other = networks.calibrated_on(networks.randomize_norms(networks.tiny(), seed=9), networks.digits(64, 8)[0], 4, 4)
    with pytest.raises(RuntimeError, match="Got other integers or scales in the file than were trained"):
        tfqil.convert(other, path=tmp_path / "none.tflite")
    assert list(tmp_path.iterdir()) == []
    assert tfqil.convert(other, check=False) == small_file


@pytest.mark.parametrize("storage", ["fastest", "smallest", "int8"])
def test_converting_changes_nothing_and_gives_the_same_file_again(small_model, storage):
    before = small_model.get_weights()
    assert tfqil.convert(small_model, storage) == tfqil.convert(small_model, storage)
    assert all(np.array_equal(a, b) for a, b in zip(small_model.get_weights(), before, strict=True))


def test_storages_differ_in_what_they_store(small_model):
    stored = {s: {w.stored for w in tfqil.inspect(tfqil.convert(small_model, s)).weights} for s in module.STORAGES}
    assert stored["int8"] == {"INT8"} and "INT4" in stored["smallest"]
