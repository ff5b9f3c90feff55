"""Every architecture goes the whole way under every config: the cells of benchmarks/support.py.

Each runs in a process of its own, as there. The whole of it takes hours, so that all but a few cheap cells are marked.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import architectures
import support_runs
import support_table
from support_cell import CONFIGS, STORAGES, Cell

# Deeper networks are reported, not judged: the distances add up over the layers.
JUDGED_DEPTH = 50
# The bars for `int8`, in steps of the output.
MEDIAN_LSB = 1
HIGH_LSB = 2

CHEAP = {("alexnet_narrow", "QIL 2/2")}


def rows() -> list:
    pairs = itertools.product(architectures.ARCHITECTURES, CONFIGS)
    pairs = (pair for pair in pairs if pair in CHEAP or architectures.ARCHITECTURES[pair[0]].in_matrix)
    return [pytest.param(*pair, marks=pytest.mark.slow if pair in CHEAP else pytest.mark.matrix) for pair in pairs]


@functools.cache
def cells(architecture: str, config: str) -> dict[str, Cell]:
    """The cells of all storages; they share the training."""
    return {cell.storage: cell for cell in support_runs.run((architecture, config, storage) for storage in STORAGES)}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("architecture", "config"), rows())
def test_a_cell_ends_in_a_file_of_the_trained_integers_alone(architecture, config, storage):
    cell = cells(architecture, config)[storage]
    assert not cell.failed_in, f"{cell.failed_in}: {cell.reason}"
    assert cell.is_supported, support_table.reasons(cell)


@pytest.mark.parametrize(("architecture", "config"), rows())
def test_the_file_is_as_close_to_keras_as_the_bars_say(architecture, config):
    cell = cells(architecture, config)["int8"]
    assert not cell.failed_in, f"{cell.failed_in}: {cell.reason}"
    assert cell.median_lsb is not None, "an output is on no grid"
    if cell.depth <= JUDGED_DEPTH:
        assert (cell.median_lsb <= MEDIAN_LSB, cell.high_lsb <= HIGH_LSB) == (True, True), cell


def test_a_process_that_crashes_is_one_cell_with_its_reason():
    unknown = [("no such architecture", "QIL 4/4", storage) for storage in STORAGES]
    found = list(support_runs.run(unknown))
    assert [cell.key for cell in found] == unknown
    assert all(cell.failed_in == "build" and "no such architecture" in cell.reason for cell in found)


def test_cells_are_written_and_read_again(tmp_path):
    path = tmp_path / "support.json"
    assert support_runs.read(path) == {}
    written = {cell.key: cell for cell in (supported(), unsupported())}
    support_runs.write(written, path)
    assert support_runs.read(path) == written


def test_the_tables_give_every_unsupported_cell_its_reason():
    document = support_table.document([supported(), unsupported()])
    assert "| net | QIL 4/4 | 1,000 | 5 | 64 | **0 / 0 / 1, 2,000** | no [1] | not run |" in document
    assert "1. quantize: ValueError: Got a layer of no known kind (net QIL 4/4 smallest)" in document
    assert support_table.summary([supported()]).splitlines()[-1] == (
        "| net | not run | 0 / 1 LSB | not run | not run | not run | - |"
    )
    assert "| net | not run | 1 of 2 no |" in support_table.summary([supported(), unsupported()])


def supported() -> Cell:
    return Cell(
        architecture="net",
        config="QIL 4/4",
        storage="fastest",
        size=64,
        weights=1000,
        depth=5,
        bytes=2000,
        integer_only=True,
        differing_from_deployable=0,
        median_lsb=0.0,
        high_lsb=1.0,
        max_lsb=2.0,
        seconds={"build": 1.0, "convert": 2.0},
    )


def unsupported() -> Cell:
    reason = "ValueError: Got a layer of no known kind"
    return Cell(architecture="net", config="QIL 4/4", storage="smallest", failed_in="quantize", reason=reason)
