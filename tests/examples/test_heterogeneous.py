"""Quantizing without the training data: the command on few images, what it writes, and what it refuses."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
import pytest
import tf_keras as keras

from tests import networks, scripts

sys.path.append(str(scripts.ROOT / "examples"))
import data
import norm_matching

# Few images, since those of the whole sets take minutes to draw.
FEWER = 'import data; data._GLYPHS = {"train": 512, "test": 128}'
SMALL = ["--width=0.0625", "--examples=256", "--float_epochs=1", "--epochs=2", "--deterministic"]


def command(folder: pathlib.Path, run: str = "run") -> list[str]:
    """The script and its arguments."""
    return ["examples/heterogeneous.py", f"--directory={folder / run}", f"--data_dir={folder}", *SMALL]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heterogeneous")
    return folder, scripts.run(*command(folder), before=FEWER)


def read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.mark.recipe
def test_every_source_leaves_a_record_of_an_integer_file(finished):
    folder, printed = finished
    records = [found for path in (folder / "run").glob("*/record.json") if "name" in (found := read(path))]
    names = {record["name"] for record in records}
    others = {"glyphs of other families", "handwritten digits", "matched noise", "noise"}
    assert names == {"training images and classes", "training images", *others}
    for record in records:
        assert record["integer_only"]
        assert abs(record["file_accuracy"] - record["keras_accuracy"]) <= 100 / 128  # At most one of the images.
        assert record["name"] in printed


@pytest.mark.recipe
def test_a_finished_run_is_not_trained_again(finished):
    folder, printed = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").glob("*/*")}
    assert scripts.run(*command(folder), before=FEWER) == printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.recipe
def test_a_killed_copy_goes_on_to_the_same_end(finished):
    """Killed while the float network teaches, after the first epoch of two."""
    folder, _ = finished
    killed, taught = folder / "killed", "training_images"
    shutil.copytree(folder / "run", killed, ignore=shutil.ignore_patterns(taught))
    scripts.kill_when((killed / taught / "history.json").is_file, *command(folder, "killed"), before=FEWER)
    assert not (killed / taught / "record.json").is_file()
    scripts.run(*command(folder, "killed"), before=FEWER)
    for name in ("history.json", "record.json"):
        assert read(killed / taught / name) == read(folder / "run" / taught / name)


@pytest.mark.recipe
def test_other_settings_are_refused(finished):
    folder, _ = finished
    assert "Got --bits=2 for the run in" in scripts.refused(*command(folder), "--bits=2", before=FEWER)


def test_matched_noise_has_the_statistics_that_the_network_expects():
    random = np.random.default_rng(0)
    model = networks.trained("residual")
    images = random.uniform(-1, 1, (64, 12, 12, 1)).astype(np.float32)
    before = model.get_weights()

    def distance(images):
        norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        found = keras.Model(model.input, [layer.input for layer in norms])(images)
        means = [np.abs(x.numpy().mean((0, 1, 2)) - norm.moving_mean) for x, norm in zip(found, norms, strict=True)]
        return float(np.mean(np.concatenate(means)))

    matched = norm_matching.matched(model, images, steps=60, batch=32)
    assert matched.shape == images.shape and np.abs(matched).max() <= 1
    assert distance(matched[:32]) < 0.5 * distance(images[:32])
    assert distance(matched[32:]) < 0.5 * distance(images[32:])
    assert all(np.array_equal(one, other) for one, other in zip(model.get_weights(), before, strict=True))


def test_sets_of_other_faces_do_not_take_each_others_place(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_GLYPHS", {"train": 8, "test": 4})
    first = data.glyph_arrays(tmp_path, name="some", train_faces=["cmr10"], test_faces=["cmb10"])
    again = data.glyph_arrays(tmp_path, name="some", train_faces=["cmr10"], test_faces=["cmb10"])
    np.testing.assert_array_equal(first[0], again[0])
    with pytest.raises(ValueError, match="choose another folder"):
        data.glyph_arrays(tmp_path, name="some", train_faces=["cmtt10"], test_faces=["cmb10"])
