from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.command_line import ROOT, assert_refused, run_here, run_process
from tfqil import _tables
from tfqil.cli import console, main


def test_no_command_is_refused_with_the_list_of_commands():
    assert_refused(run_process(), "inspect, verify, benchmark or summary")


def test_an_unknown_command_suggests_the_nearest():
    assert_refused(run_process("inspekt", "model.tflite"), "'inspekt'", "did you mean 'inspect'?")


def test_a_command_that_resembles_none_points_to_the_help():
    assert_refused(run_process("train"), "'train'", "--help")


def test_an_option_before_the_command_is_refused():
    assert_refused(run_process("--json", "inspect", "model.tflite"), "'--json'")


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect"],
        ["inspect", "a.tflite", "b.tflite"],
        ["inspect", "a.tflite", "--jsn"],
        ["verify", "model.keras", "a.tflite"],
        ["summary"],
        ["summary", "model.keras", "--bits"],
        ["benchmark"],
        ["benchmark", "a.tflite", "--runs=many"],
        ["benchmark", "a.tflite", "--verbosity=loud"],
        ["benchmark", "a.tflite", "--flagfile=missing.cfg"],
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_here(*arguments)
    output, error = capsys.readouterr()
    assert output == ""
    assert error.count("\n") == 1
    assert error.startswith(f"python -m tfqil {arguments[0]}: got ")
    assert f"`python -m tfqil {arguments[0]} --help`" in error


@pytest.mark.parametrize(
    "arguments", [["--help"], ["inspect", "--help"], ["verify", "-h"], ["benchmark", "--help"], ["summary", "-h"]]
)
def test_help_is_printed_and_is_no_failure(arguments, capsys):
    with pytest.raises(SystemExit, match="0"):
        run_here(*arguments)
    output, error = capsys.readouterr()
    assert "python -m tfqil" in output
    assert error == ""


@pytest.mark.parametrize("command", ["inspect", "benchmark"])
def test_a_missing_a_text_and_an_empty_file_are_refused(command, tmp_path, text_file, empty_file):
    for path, reason in [
        (tmp_path / "missing.tflite", "does not exist"),
        (text_file, ""),
        (empty_file, "empty"),
    ]:
        assert_refused(run_process(command, path), str(path), reason)


def test_a_folder_is_refused(tmp_path):
    assert_refused(run_process("inspect", tmp_path), str(tmp_path), "directory")


@pytest.mark.parametrize("command", ["inspect", "benchmark"])
def test_commands_on_files_do_not_load_tensorflow(command, tiny_file):
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tfqil", command, str(tiny_file)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "numpy" in imported
    assert not {"tensorflow", "tf_keras", "tensorflow_model_optimization"} & imported


def test_a_fault_of_the_program_is_not_dressed_up_as_wrong_input(tiny_file):
    def fail(arguments):
        raise KeyError("a defect")

    parsed = main.parse(["tfqil", "inspect", str(tiny_file)])
    parsed.run = fail
    with pytest.raises(KeyError):
        main.execute(parsed)


def test_native_logs_are_hidden_but_come_back_with_an_unexpected_error(capfd, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    with console.native_logs_hidden():
        os.write(2, b"noise\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(console.InputError), console.native_logs_hidden():
        os.write(2, b"noise\n")
        raise console.InputError("got this, expected that: do so")
    assert capfd.readouterr().err == ""
    with pytest.raises(ZeroDivisionError), console.native_logs_hidden():
        os.write(2, b"the cause\n")
        raise ZeroDivisionError
    assert capfd.readouterr().err == "the cause\n"


def test_native_logs_are_shown_to_who_asks_for_them(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with console.native_logs_hidden():
        os.write(2, b"asked for\n")
    assert capfd.readouterr().err == "asked for\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB")],
)
def test_sizes_read_well(number, text):
    assert _tables.size(number) == text


def test_tables_show_brackets_in_names_as_they_are(capsys):
    table = _tables.empty_table({"tensor": "left", "bytes": "right"}, "weights [of one file]")
    _tables.add_row(table, ("model/[red]conv[/red]/kernel;" + 60 * "x", 12))
    console.print_blocks(table, "[done]")
    output = capsys.readouterr().out
    assert "weights [of one file]" in output
    assert "model/[red]conv[/red]/kernel;" + 60 * "x" in output
    assert "[done]" in output
