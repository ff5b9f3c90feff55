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
    model = networks.randomize_norms(networks.tiny())
    q_model = networks.calibrated_on(model, networks.digits(64, 8)[0], 3, 2, per_channel=True, train_gamma=True)
    q_model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    q_model.fit(*networks.digits(64, 8), batch_size=16, verbose=0)
    return q_model


def require_same(q_model: Any, again: Any) -> None:
    """Raises unless two models have the same outputs, variables, grids and report."""
    images = networks.digits(32, 8)[0]
    assert np.abs(q_model.predict(images, verbose=0) - again.predict(images, verbose=0)).max() == 0.0
    for ours, theirs in zip(q_model.layers, again.layers, strict=True):
        assert ours.name == theirs.name
        assert all(np.array_equal(a, b) for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True)), (
            ours.name
        )
    one, other = tfqil.freeze(q_model), tfqil.freeze(again)
    assert one.keys() == other.keys() and all(np.array_equal(one[n].codes, other[n].codes) for n in one)
    assert tfqil.placements(q_model).rows == tfqil.placements(again).rows


def copy_of(q_model: Any, folder: pathlib.Path, kind: str = "keras") -> Any:
    """The model after a round trip through a file."""
    path = folder / f"copy{FORMATS[kind]}"
    q_model.save(path)
    return keras.models.load_model(path)


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
    ours, theirs = ([v.numpy() for v in m.optimizer.variables] for m in (trained, again))
    assert len(ours) > 20 and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    images, labels = networks.digits(16, 8)
    assert np.isfinite(again.train_on_batch(images, labels))


def test_one_more_step_after_a_reload_is_the_step_without_it(trained, tmp_path):
    images, labels = networks.digits(16, 8)
    both = [copy_of(trained, tmp_path), copy_of(trained, tmp_path, "h5")]
    for model in both:
        model.train_on_batch(images, labels)
    for one, other in zip(*(model.get_weights() for model in both), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["weights.h5", "model.weights.h5", "checkpoint"])
def test_saved_weights_return_to_a_new_model(trained, name, tmp_path):
    path = str(tmp_path / name)
    trained.save_weights(path)
    again = networks.quantized(networks.tiny(), 3, 2, per_channel=True, train_gamma=True)
    loaded = again.load_weights(path)
    if name == "checkpoint":
        loaded.assert_existing_objects_matched()
    require_same(trained, again)


def test_a_checkpoint_of_another_method_is_not_taken_as_complete(trained, tmp_path):
    trained.save_weights(str(tmp_path / "checkpoint"))
    other = tfqil.quantize_model(networks.tiny(), tfqil.BCGDQuantizeConfig(3, 2))
    loaded = other.load_weights(str(tmp_path / "checkpoint"))
    with pytest.raises(AssertionError, match="activation_step"):  # Keras is silent about what it does not find.
        loaded.assert_existing_objects_matched()


def test_a_fresh_process_needs_only_the_import(trained, tmp_path):
    for name in FORMATS.values():
        trained.save(tmp_path / name)
    np.save(tmp_path / "inputs.npy", networks.digits(8, 8)[0])
    code = (
        "import sys, numpy, tfqil, tf_keras\n"
        "for name in sys.argv[2:]:\n"
        "    model = tf_keras.models.load_model(sys.argv[1] + name)\n"
        "    outputs = model.predict(numpy.load(sys.argv[1] + 'inputs.npy'), verbose=0)\n"
        "    numpy.save(sys.argv[1] + name + '.npy', outputs)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, f"{tmp_path}/", *FORMATS.values()],
        check=True,
        cwd=pathlib.Path(tfqil.__file__).parents[1],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        timeout=300,
    )
    expected = trained.predict(networks.digits(8, 8)[0], verbose=0)
    for name in FORMATS.values():
        assert np.abs(np.load(f"{tmp_path}/{name}.npy") - expected).max() == 0.0, name


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
