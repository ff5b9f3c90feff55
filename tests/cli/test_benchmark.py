from __future__ import annotations

import json

import pytest

from tests.cli.command_line import assert_refused, run_here, run_process
from tfqil.cli import benchmark


def test_timings_are_summarised_against_the_first_file():
    contents = {"a": b"12", "b": b"1234"}
    first, second = benchmark.timings_of(contents, {"a": [2.0, 4.0, 3.0], "b": [6.0, 4.0, 20.0]})
    assert (first.file, first.bytes, first.runs, first.ratio) == ("a", 2, 3, 1.0)
    assert (first.median, first.minimum, first.maximum) == (3.0, 2.0, 4.0)
    assert (second.median, second.minimum, second.maximum, second.ratio) == (6.0, 4.0, 20.0, 2.0)


def test_json_holds_one_object_with_the_files_in_order(tiny_file, capsys):
    assert run_here("benchmark", tiny_file, tiny_file, "--runs=3", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [entry["file"] for entry in report["files"]] == [str(tiny_file), f"{tiny_file} (2)"]
    assert report["files"][0]["ratio"] == 1.0
    assert report["threads"] == 1
    for entry in report["files"]:
        assert entry["runs"] == 3
        assert 0 < entry["minimum"] <= entry["median"] <= entry["maximum"]
        assert entry["bytes"] == tiny_file.stat().st_size


def test_the_table_has_a_row_per_file(tiny_file, capsys):
    assert run_here("benchmark", tiny_file, "--runs=2", "--threads=2") == 0
    output = capsys.readouterr().out
    assert "tiny.tflite" in output
    assert "2 threads" in output
    assert "1.000" in output


@pytest.mark.parametrize("option", ["--runs=0", "--threads=0", "--runs=-3"])
def test_counts_below_one_are_refused(tiny_file, option):
    assert_refused(run_process("benchmark", tiny_file, option), option.partition("=")[2])


def test_the_message_names_the_file_that_does_not_run(tiny_file, text_file):
    assert_refused(run_process("benchmark", tiny_file, text_file), str(text_file))
