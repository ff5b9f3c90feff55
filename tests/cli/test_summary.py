from __future__ import annotations

import json
import pathlib

import pytest

from tests.cli.command_line import assert_refused, run_here, run_process


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """A quantized model and a float one."""
    import tfqil
    from tests import three_layers

    folder = tmp_path_factory.mktemp("models")
    three_layers.calibrated(tfqil.QILQuantizeConfig(4, 3)).save(folder / "quantized.keras")
    three_layers.float_model().save(folder / "float.keras")
    return folder / "quantized.keras", folder / "float.keras"


def test_the_table_has_kernels_tensors_and_totals(model_files, capsys):
    assert run_here("summary", model_files[0]) == 0
    output = capsys.readouterr().out
    for text in (
        "second",
        "QIL",
        "of 15",
        "quantize_first_activation",
        "4x3",
        "bytes of kernels",
        "MACs of an example",
    ):
        assert text in output
    assert "flatten" not in output


def test_all_layers_are_shown_with_reasons_on_request(model_files, capsys):
    assert run_here("summary", model_files[0], "--all") == 0
    output = capsys.readouterr().out
    assert "flatten" in output and "config of the scheme" in output


def test_json_holds_rows_and_totals_and_nothing_is_logged(model_files):
    result = run_process("summary", model_files[0], "--json")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    report = json.loads(result.stdout)
    rows = {row["layer"]: row for row in report["layers"]}
    assert rows["second"]["bits"] == 4 and rows["second"]["codes_possible"] == 15
    assert report["totals"]["macs_by_precision"]["4x3"] == 16 * 16
    assert report["totals"]["bytes"] == sum(row["bytes"] or 0 for row in report["layers"])


def test_a_float_model_is_refused(model_files, capsys):
    assert run_here("summary", model_files[1]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Got the float model 'three_layers', expected a quantized one" in error


def test_what_is_no_model_is_refused(tmp_path, text_file, capsys):
    assert_refused(run_process("summary", tmp_path / "missing.keras"), "missing.keras", "does not exist")
    assert run_here("summary", text_file) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(text_file) in error and "does not load" in error
