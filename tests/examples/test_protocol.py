"""The stages of the protocol: each method is resumed and converted, and what does not suit is refused."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tensorflow.python.framework import config as tf_config

import tfqil
from tests import scripts

sys.path.append(str(scripts.ROOT / "examples"))
import data as image_data
import protocol
import runs

FLOAT = protocol.Widths(weights=protocol.FLOAT, activations=protocol.FLOAT)
WIDTHS = protocol.Widths(weights=4, activations=4)


class KilledError(Exception):
    pass


def network() -> keras.Model:
    x = inputs = keras.Input((8, 8, 1))
    for number in (1, 2, 3):
        x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{number}")(x)
        x = keras.layers.ReLU(name=f"relu{number}")(x)
    outputs = keras.layers.Dense(10, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


def run(folder: pathlib.Path, float_folder: pathlib.Path, method: str, **changes) -> protocol.Run:
    settings = dataclasses.replace(protocol.SETTINGS["digits"], batch=32, float_epochs=1, epochs=4)
    data = image_data.load("digits", batch=32, examples=128)
    arguments = {"folder": folder, "data": data, "float_folder": float_folder, **changes}
    return protocol.Run(network=network, method=method, settings=settings, **arguments)


def killed_before(data: image_data.ImageSet, epoch: int) -> image_data.ImageSet:
    def train(number: int):
        if number == epoch:
            raise KilledError
        return data.train(number)

    return dataclasses.replace(data, train=train)


@pytest.fixture(scope="module")
def float_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("float")
    run(folder, folder / "float", "qil").stage(FLOAT, None)
    return folder / "float"


@pytest.fixture
def _deterministic():
    tf_config.enable_op_determinism()
    yield
    tf_config.disable_op_determinism()


# Of QIL, a command is killed and goes on in test_train_classifier.py; of LBW, a detector in test_train_detector.py.
@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize(("method", "widths"), [("bcgd", (1, 4)), ("binary_relax", (1, 4))])
def test_a_stage_that_was_killed_ends_as_one_that_was_not(tmp_path, float_folder, method, widths):
    """Killed after two of four epochs: BinaryRelax is in phase I then, and goes on to phase II."""
    stage = protocol.Widths(weights=widths[0], activations=widths[1])
    whole = run(tmp_path / "whole", float_folder, method)
    killed = dataclasses.replace(whole, folder=tmp_path / "killed", data=killed_before(whole.data, 2))
    records = []
    keras.utils.set_random_seed(0)
    records.append(whole.stage(stage, FLOAT))
    keras.utils.set_random_seed(0)
    with pytest.raises(KilledError):
        killed.stage(stage, FLOAT)
    keras.utils.set_random_seed(0)
    records.append(dataclasses.replace(killed, data=whole.data).stage(stage, FLOAT))
    one, other = (
        tfqil.load_model(tmp_path / name / stage.name / "model.keras", compile=False) for name in ("whole", "killed")
    )
    for variable, expected in zip(other.variables, one.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), expected.numpy(), err_msg=variable.name)
    for record in records:
        del record["seconds"]
    assert records[0] == records[1]
    assert records[0]["integer_only"]
    assert records[0]["differing_from_deployable"] == 0


@pytest.mark.parametrize(
    ("method", "weights"), [("qil", 2), ("qil", 8), ("lbw", 2), ("lbw", 3), ("lbw", 4), ("lbw", 6), ("bcgd", 2)]
)
def test_every_width_of_a_method_converts(float_folder, method, weights):
    made = run(float_folder, float_folder, method)
    widths = protocol.Widths(weights=weights, activations=4)
    assert tfqil.inspect(tfqil.convert(made._start(widths, FLOAT))).integer_only


def test_a_float_network_of_other_classes_is_refused(tmp_path, float_folder):
    made = run(tmp_path, float_folder, "qil")
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, classes=7))
    with pytest.raises(runs.UnusableError, match=r"of 10 classes for digits of 7, expected the same number"):
        made.stage(protocol.Widths(weights=4, activations=4), FLOAT)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory, float_folder):
    """A stage that was killed after an epoch."""
    made = run(tmp_path_factory.mktemp("unfinished"), float_folder, "qil")
    with pytest.raises(KilledError):
        dataclasses.replace(made, data=killed_before(made.data, 1)).stage(WIDTHS, FLOAT)
    return made


class TestDamaged:
    """A sentence, and nothing that was there is changed."""

    @pytest.fixture
    def killed(self, tmp_path, unfinished):
        """A copy of it."""
        shutil.copytree(unfinished.folder, tmp_path, dirs_exist_ok=True)
        return dataclasses.replace(unfinished, folder=tmp_path)

    @pytest.mark.parametrize("pattern", ["history.json", "checkpoint/*.index", "checkpoint/*.data*"])
    def test_an_unfinished_stage(self, tmp_path, killed, pattern):
        (path,) = (tmp_path / "4_4").glob(pattern)
        path.write_bytes(path.read_bytes()[:-7])
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(runs.UnusableError, match=r"Got .*4_4.*, which is damaged.*delete "):
            killed.stage(WIDTHS, FLOAT)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_a_checkpoint_of_other_layers(self, tmp_path, killed):
        def wider() -> keras.Model:
            inputs = keras.Input((8, 8, 1))
            x = keras.layers.ReLU()(keras.layers.Conv2D(16, 3, name="conv1")(inputs))
            return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))

        other = dataclasses.replace(killed, network=wider, folder=tmp_path / "other", float_folder=None)
        other.stage(FLOAT, None)
        (tmp_path / "4_4").rename(tmp_path / "other" / "4_4")
        with pytest.raises(runs.UnusableError, match=r"is damaged or of another network, expected the last epoch"):
            other.stage(WIDTHS, FLOAT)

    def test_a_record(self, tmp_path, float_folder):
        (tmp_path / "4_4").mkdir()
        (tmp_path / "4_4" / "record.json").write_text('{"stage": "4_')
        with pytest.raises(runs.UnusableError, match=r"record.json, which is damaged, expected what a run wrote"):
            run(tmp_path, float_folder, "qil").stage(WIDTHS, FLOAT)


class TestFolder:
    def test_a_schedule_that_was_longer_stays_so(self, tmp_path):
        """Else the last stage of 32,5,4 would be taken for that of 32,5,4,3 after a run of 32,5 in between."""
        for schedule in (["32", "5", "4"], ["32", "5"]):
            runs.require_same_run(tmp_path, {"schedule": schedule})
        with pytest.raises(ValueError, match=r"Got --schedule=.*, which has \['32', '5', '4'\]"):
            runs.require_same_run(tmp_path, {"schedule": ["32", "5", "3"]})
        runs.require_same_run(tmp_path, {"schedule": ["32", "5", "4", "3"]})

    @pytest.mark.parametrize("text", ['{"schedule": ["32"', "[]"])
    def test_a_damaged_note_is_refused(self, tmp_path, text):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run.json, which is damaged, .*: choose another --directory"):
            runs.require_same_run(tmp_path, {"schedule": ["32"]})
        assert (tmp_path / "run.json").read_text() == text

    def test_a_file_is_refused(self, tmp_path):
        (tmp_path / "run").write_text("")
        with pytest.raises(ValueError, match=r"Got the file .*run, expected a folder"):
            runs.require_same_run(tmp_path / "run", {"schedule": ["32"]})


def test_the_decay_is_that_of_a_penalty_in_the_gradient():
    """Weights without another gradient, after many steps of a small rate: as SGD with momentum on the penalty."""
    settings = dataclasses.replace(protocol.SETTINGS["cifar10"], weight_decay=0.01)
    decayed, penalized = tf.Variable([1.0], name="a"), tf.Variable([1.0], name="b")
    optimizers = settings.sgd(0.01, (), 10**9), keras.optimizers.SGD(0.01, momentum=0.9)
    for _ in range(300):
        optimizers[0].apply_gradients([(tf.zeros(1), decayed)])
        optimizers[1].apply_gradients([(0.01 * penalized, penalized)])
    assert float(penalized[0]) < 0.8
    np.testing.assert_allclose(decayed, penalized, rtol=0.01)
