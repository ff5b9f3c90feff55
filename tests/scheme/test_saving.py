"""Every way of saving a quantized model brings it back to the last bit."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tf_keras as keras

import tfqil
from tests import networks

FORMATS = {"keras": "model.keras", "h5": "model.h5", "saved_model": "model"}


@pytest.fixture(scope="module")
def trained() -> Any:
    """A small network of every kind of layer, quantized with most options, after some steps of Adam."""
    model = networks.randomize_norms(networks.separable())
    q_model = networks.calibrated(model, 3, 2, per_channel=True, train_gamma=True)
    q_model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    q_model.fit(*networks.digits(64), batch_size=16, verbose=0)
    return q_model


def require_same(q_model: Any, again: Any) -> None:
    """Raises unless two models have the same outputs, variables, grids and report."""
    images = networks.digits(32)[0]
    assert np.abs(q_model.predict(images, verbose=0) - again.predict(images, verbose=0)).max() == 0.0
    # Trainable variables may be listed in another order after a reload; their names are unique.
    ours, theirs = ({v.name: v.numpy() for v in model.variables} for model in (q_model, again))
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    one, other = tfqil.freeze(q_model), tfqil.freeze(again)
    assert one.keys() == other.keys() and all(np.array_equal(one[n].codes, other[n].codes) for n in one)
    assert tfqil.placements(q_model).rows == tfqil.placements(again).rows


@pytest.mark.parametrize("kind", FORMATS)
def test_a_reloaded_model_computes_the_same(trained, kind, tmp_path):
    path = tmp_path / FORMATS[kind]
    trained.save(path)
    require_same(trained, keras.models.load_model(path))
    require_same(trained, tfqil.load_model(str(path)))


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_training_goes_on_where_it_stopped(trained, kind, tmp_path):
    path = tmp_path / FORMATS[kind]
    trained.save(path)
    again = keras.models.load_model(path)
    assert int(again.optimizer.iterations) == int(trained.optimizer.iterations) == 4
    ours, theirs = ({v.name: v.numpy() for v in m.optimizer.variables} for m in (trained, again))
    assert ours.keys() == theirs.keys() and len(ours) > 20
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert again.fit(*networks.digits(16), verbose=0).history["loss"]


@pytest.mark.parametrize("name", ["weights.h5", "model.weights.h5", "checkpoint"])
def test_saved_weights_return_to_a_new_model(trained, name, tmp_path):
    path = str(tmp_path / name)
    trained.save_weights(path)
    model = networks.separable()
    again = networks.quantized(model, 3, 2, per_channel=True, train_gamma=True)
    loaded = again.load_weights(path)
    if name == "checkpoint":
        loaded.assert_existing_objects_matched()
    require_same(trained, again)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_fresh_process_needs_only_the_import(trained, kind, tmp_path):
    path, inputs, outputs = tmp_path / FORMATS[kind], tmp_path / "inputs.npy", tmp_path / "outputs.npy"
    trained.save(path)
    np.save(inputs, networks.digits(8)[0])
    code = (
        "import sys, numpy, tfqil, tf_keras\n"
        "model = tf_keras.models.load_model(sys.argv[1])\n"
        "numpy.save(sys.argv[3], model.predict(numpy.load(sys.argv[2]), verbose=0))\n"
    )
    root = pathlib.Path(tfqil.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", code, str(path), str(inputs), str(outputs)],
        check=True, cwd=root, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, capture_output=True, timeout=120,
    )  # fmt: skip
    assert np.abs(np.load(outputs) - trained.predict(np.load(inputs), verbose=0)).max() == 0.0


def test_a_reloaded_model_converts_to_the_same_file(trained, tmp_path):
    trained.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert tfqil.convert(again, check=False) == tfqil.convert(trained, check=False)


def test_a_clone_computes_the_same(trained):
    again = keras.models.clone_model(trained)
    again.set_weights(trained.get_weights())
    require_same(trained, again)


def test_loading_from_nowhere_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="where nothing is; expected what model.save wrote"):
        tfqil.load_model(tmp_path / "none.keras")
