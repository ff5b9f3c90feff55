from __future__ import annotations

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tests.cli.command_line import assert_refused, run_here, run_process
from tests.export import tiny_model
from tfqil.cli import benchmark
from tfqil.export import flatbuffer
from tfqil.export.operator_times import OperatorTime


@pytest.fixture(scope="module")
def mixed_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A QUANTIZE, which XNNPACK takes, and a convolution with weights of INT4, which it does not."""
    model = tiny_model.TinyModel()
    x = model.activation("x", (1, 8, 8, 2), scale=0.1, zero_point=-3)
    y = model.activation("y", (1, 8, 8, 2), scale=0.2, zero_point=5)
    z = model.activation("z", (1, 8, 8, 4), scale=0.5, zero_point=0)
    codes = np.arange(4 * 3 * 3 * 2).reshape(4, 3, 3, 2) % 15 - 7
    weights = model.constant("w", codes, scales=[0.1] * 4)
    bias = model.constant("b", np.zeros(4), scales=[0.02] * 4, stored="INT32")
    model.operator("QUANTIZE", [x], [y])
    model.operator("CONV_2D", [y, weights, bias], [z], tiny_model.convolution_options())
    tflite = flatbuffer.load(model.to_bytes([x], [z]))
    graph = tflite.subgraphs[0]
    tensor = graph.tensors[weights]
    tflite.buffers[tensor.buffer].data = flatbuffer.pack_integers(codes, 4)
    tensor.type = schema.TensorType.INT4
    flatbuffer.set_operator(tflite, graph.operators[1], "CONV_2D", flatbuffer.OPERATOR_VERSIONS["CONV_2D", "INT4"])
    path = tmp_path_factory.mktemp("files") / "mixed.tflite"
    path.write_bytes(flatbuffer.serialize(tflite))
    return path


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


def test_json_holds_the_operators_of_each_file(tiny_file, capsys):
    assert run_here("benchmark", tiny_file, tiny_file, "--runs=3", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [entry["file"] for entry in report["operators"]] == [str(tiny_file), f"{tiny_file} (2)"]
    entry = report["operators"][0]
    (operator,) = entry["operators"]
    assert (operator["name"], operator["result"], operator["kernels"]) == ("QUANTIZE", "y", "xnnpack")
    assert operator["seconds"] > 0
    assert (entry["delegated"], entry["partitions"]) == (1, 1)


def test_the_tables_say_who_runs_the_operators_and_how_long(mixed_file, capsys):
    assert run_here("benchmark", mixed_file, "--runs=2") == 0
    output = capsys.readouterr().out
    rows = {name: next(line for line in output.splitlines() if name in line) for name in ("QUANTIZE", "CONV_2D")}
    assert "XNNPACK" in rows["QUANTIZE"] and "built-in kernel" in rows["CONV_2D"]
    assert "XNNPACK runs 1 of 2 operators, in 1 part; built-in kernels run 1\n" in output
    assert re.search(r"all operators, each alone: [\d.]+ ms, with the start of each; the whole file: [\d.]+ ms", output)


def test_the_files_as_a_whole_are_timed_alone_on_request(tiny_file, capsys):
    assert run_here("benchmark", tiny_file, "--runs=2", "--no-operators", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["operators"] == [] and len(report["files"]) == 1


def test_an_operator_that_does_not_run_alone_has_no_time():
    loop = OperatorTime(name="WHILE", result="state", kernels="builtin", seconds=None)
    dense = OperatorTime(name="FULLY_CONNECTED", result="y;of what was fused", kernels="xnnpack", seconds=2e-6)
    entry = benchmark.Operators(file="a", operators=[loop, dense], partitions=1)
    table, *sentences = benchmark.render_operators(entry, whole=1e-6)
    first, second = zip(*([cell.plain for cell in column.cells] for column in table.columns), strict=True)
    assert first == ("WHILE", "state", "built-in kernel", "-", "-")
    assert second == ("FULLY_CONNECTED", "y", "XNNPACK", "2.0", "100.0%")
    assert [column.header.plain for column in table.columns] == [
        "operator", "output tensor", "run by", "time us", "share",
    ]  # fmt: skip
    assert sentences == [
        "XNNPACK runs 1 of 2 operators, in 1 part; built-in kernels run 1",
        "all operators, each alone: 0.002 ms, with the start of each; the whole file: 0.001 ms",
    ]
    (_, all_of_them, _) = benchmark.render_operators(dataclasses.replace(entry, operators=[dense]), whole=1e-6)
    assert all_of_them == "XNNPACK runs 1 of 1 operators, in 1 part"
