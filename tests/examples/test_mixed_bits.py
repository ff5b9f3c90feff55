"""Widths chosen layer by layer: the command on few images, what it writes, and what it refuses."""

from __future__ import annotations

import json
import math
import pathlib
import sys

import pytest

import tfqil
from tests import scripts

sys.path.append(str(scripts.ROOT / "examples"))

# Few images, since those of the whole sets take minutes to draw; and few widths.
FEWER = 'import data; data._GLYPHS = {"train": 512, "test": 128}'
SMALL = [
    *("--network=vgg11", "--width=0.0625", "--examples=256", "--float_epochs=1", "--epochs=1", "--seeds=0"),
    *("--widths=3,4", "--measured=64", "--deterministic"),
]


def command(folder: pathlib.Path, run: str = "run") -> list[str]:
    """The script and its arguments."""
    return ["examples/mixed_bits.py", f"--directory={folder / run}", f"--data_dir={folder}", *SMALL]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed_bits")
    return folder, scripts.run(*command(folder), before=FEWER)


def read(path: pathlib.Path):
    return json.loads(path.read_text())


def code_bytes(folder: pathlib.Path) -> tuple[int, int]:
    """The bytes of the codes of a copy, stored and packed."""
    rows = [row for row in tfqil.summary(tfqil.load_model(folder / "model.keras", compile=False)) if row.weights]
    return sum(row.bytes for row in rows), sum(math.ceil(row.weights * row.placement.bits / 8) for row in rows)


@pytest.mark.recipe
def test_mixed_copies_take_no_more_bytes_than_the_uniform_one(finished):
    folder, printed = finished
    copies = {name: folder / "run" / "seed0" / name / "3_3" for name in ("uniform_3_3", "mixed_stored", "mixed_packed")}
    found = {name: code_bytes(copy) for name, copy in copies.items()}
    assert found["mixed_stored"][0] <= found["uniform_3_3"][0]
    assert found["mixed_packed"][1] <= found["uniform_3_3"][1]
    assert found["mixed_stored"] != found["uniform_3_3"]
    for copy in copies.values():
        record = read(copy / "record.json")
        assert record["integer_only"] and record["differing_from_deployable"] == 0
    assert f"{found['mixed_packed'][0]:,} / {found['mixed_packed'][1]:,}" in printed


@pytest.mark.recipe
def test_a_finished_run_is_not_trained_again(finished):
    folder, printed = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").glob("seed*/**/*.json")}
    assert scripts.run(*command(folder), before=FEWER) == printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.recipe
def test_other_settings_are_refused(finished):
    folder, _ = finished
    assert "Got --epochs=2 for the run in" in scripts.refused(*command(folder), "--epochs=2", before=FEWER)
    assert "Got --widths=3,4 without the 2 bits" in scripts.refused(*command(folder), "--bits=2", before=FEWER)
