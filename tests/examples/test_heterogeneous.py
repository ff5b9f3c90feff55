"""Quantizing without the training data: the command on few images, what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))
import data  # noqa: E402

# Few images, since those of the whole sets take minutes to draw.
FEWER = """
import runpy, sys
sys.path.insert(0, {folder!r})
import data
data._GLYPHS = {{"train": 512, "test": 128}}
sys.argv[0] = {script!r}
runpy.run_path({script!r}, run_name="__main__")
"""
SMALL = ["--width=0.0625", "--examples=256", "--float_epochs=1", "--epochs=1"]


def run(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    program = FEWER.format(folder=str(EXAMPLES), script=str(EXAMPLES / "heterogeneous.py"))
    command = [sys.executable, "-c", program, f"--directory={folder / 'run'}", f"--data_dir={folder}", *SMALL]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heterogeneous")
    process = run(folder)
    assert process.returncode == 0, process.stderr[-3000:]
    return folder, process.stdout


def test_every_source_leaves_a_record_of_an_integer_file(finished):
    folder, printed = finished
    records = [json.loads(path.read_text()) for path in (folder / "run").glob("*.json") if path.stem != "run"]
    names = {record["name"] for record in records}
    others = {"glyphs of other families", "handwritten digits", "noise"}
    assert names == {"training images and classes", "training images", *others}
    for record in records:
        assert record["integer_only"]
        assert abs(record["file_accuracy"] - record["keras_accuracy"]) <= 100 / 128  # At most one of the images.
        assert record["name"] in printed


def test_a_finished_run_is_not_trained_again(finished):
    folder, printed = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*.json") if path.stem != "run"}
    assert run(folder).stdout == printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_settings_are_refused(finished):
    folder, _ = finished
    process = run(folder, "--bits=2")
    assert process.returncode == 1
    assert "Got --bits=2 for the run in" in process.stderr.splitlines()[-1]


def test_sets_of_other_faces_do_not_take_each_others_place(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_GLYPHS", {"train": 8, "test": 4})
    first = data.glyph_arrays(tmp_path, name="some", train_faces=["cmr10"], test_faces=["cmb10"])
    again = data.glyph_arrays(tmp_path, name="some", train_faces=["cmr10"], test_faces=["cmb10"])
    np.testing.assert_array_equal(first[0], again[0])
    with pytest.raises(ValueError, match="choose another folder"):
        data.glyph_arrays(tmp_path, name="some", train_faces=["cmtt10"], test_faces=["cmb10"])
