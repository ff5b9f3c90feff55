"""Interrupted trainings end as others do, and models of earlier versions still load."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import tfqil
from tests import networks, scripts

STORED = pathlib.Path(__file__).with_name("stored")
VERSIONS = sorted(path.name for path in STORED.iterdir())


@pytest.mark.recipe
def test_a_training_that_was_interrupted_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    assert scripts.run("tests/training/interrupted.py", str(tmp_path)).strip().endswith("equal")


def test_the_version_of_this_package_is_stored():
    assert tfqil.__version__ in VERSIONS, "python tests/training/store_models.py, and commit what it writes"


@pytest.mark.parametrize("method", ["qil", "lbw", "bcgd", "relu6"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_of_an_earlier_version_computes_and_converts_as_it_did_and_trains(version, method):
    expected = np.load(STORED / version / "expected.npz")
    images, labels = networks.digits(32, 8)
    q_model = tfqil.load_model(STORED / version / f"{method}.keras")
    found = q_model.predict(images, verbose=0)
    # One step of the 8-bit grid of a softmax, where machines round a sum to different sides.
    assert np.abs(found - expected[f"{method}_outputs"]).max() <= 1 / 256
    for name, grid in tfqil.freeze(q_model).items():
        np.testing.assert_array_equal(grid.codes, expected[f"{method}_codes_{name}"])
    assert tfqil.convert(q_model, check=False) == expected[f"{method}_file"].tobytes()
    assert int(q_model.optimizer.iterations) == 4 and np.isfinite(q_model.train_on_batch(images, labels))


def test_the_first_version_clips_before_quantizers_that_have_no_limit():
    q_model = tfqil.load_model(STORED / "0.1.0" / "relu6.keras")
    clipping = [layer for layer in q_model.layers if (0.0, 6.0) in getattr(layer, "clips", ())]
    assert len(clipping) == 2 and all(layer.quantizer.limit is None for layer in clipping)
