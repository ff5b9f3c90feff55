"""The summary names every layer of the float model with its bits, grid and cost, or the reason why it has none."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest
import rich.console
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks, three_layers
from tfqil.report.summary import LayerSummary, Summary
from tfqil.scheme import Placement

layers = keras.layers
HEADINGS = [
    "layer", "role", "method", "bits", "grid", "codes", "zeros", "weights", "bytes", "MACs", "precision", "reason"
]  # fmt: skip


@pytest.fixture(scope="module")
def q_model():
    return networks.calibrated(networks.residual(), 3, 2)


def printed(report, width=160):
    """What rich prints."""
    console = rich.console.Console(width=width, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(report)
    return captured.get()


def test_every_layer_of_the_float_model_is_named(q_model):
    named = {row.placement.layer for row in tfqil.summary(q_model)}
    missing = {layer.name for layer in networks.residual().layers} - named
    assert not missing, f"no row for {missing}"
    assert all(row.placement.reason for row in tfqil.summary(q_model))


def test_a_kernel_has_its_codes_bytes_zeros_and_multiplications(q_model):
    row, grid = tfqil.summary(q_model)["one_a"], tfqil.freeze(q_model)["one_a"]
    assert row.placement.bits == 3 and row.weights == grid.codes.size == 9 * 8 * 8
    assert row.bytes == row.weights // 2, "3 bits are stored as 4"
    assert row.sparsity == np.mean(grid.codes == 0)
    assert row.macs == 12 * 12 * row.weights
    assert row.grid == f"{float(grid.step):.3g} x {grid.codes.min()} .. {grid.codes.max()}"
    assert row.steps == (float(grid.step), float(grid.step))
    assert (row.codes_used, row.codes_possible) == (np.unique(grid.codes).size, 7)


def test_steps_of_channels_are_a_range():
    q_model = three_layers.quantized(tfqil.QILQuantizeConfig(4, 8, per_channel=True))
    row, grid = tfqil.summary(q_model)["second"], tfqil.freeze(q_model)["second"]
    assert row.steps == (grid.step.min(), grid.step.max()) and row.steps[0] < row.steps[1]


def test_strided_and_dense_layers_are_counted_at_their_outputs(q_model):
    report = tfqil.summary(q_model)
    assert report["two_a"].macs == 6 * 6 * 9 * 8 * 12 and report["last"].macs == 12 * 10
    assert report.macs == sum(row.macs or 0 for row in report) and report.bytes == sum(row.bytes or 0 for row in report)


def test_the_inputs_of_a_kernel_have_the_bits_of_the_tensor_that_it_reads(q_model):
    report = tfqil.summary(q_model)
    assert report["stem"].precision == "8x8", "an edge"
    assert report["one_b"].precision == "3x2" and report["two_shortcut"].precision == "3x2"
    assert report["last"].precision == "8x8", "the average in front of it keeps 8 bits"
    assert report["image"].precision is None and report["image"].input_bits is None


def test_layers_that_keep_a_grid_hand_its_bits_on():
    q_model = networks.quantized(networks.plain(), 4, 3)
    report = tfqil.summary(q_model)
    assert report["pointwise"].precision == "4x3", "through a pooling"
    assert report["hidden"].precision == "4x3", "through a Flatten"


def test_multiplications_are_counted_by_precision(q_model):
    report = tfqil.summary(q_model)
    by_precision = report.macs_by_precision
    assert set(by_precision) == {"8x8", "3x2"} and sum(by_precision.values()) == report.macs
    assert by_precision["8x8"] == report["stem"].macs + report["last"].macs
    assert list(by_precision) == ["3x2", "8x8"], "most first"


def test_totals_compare_with_float_and_with_8_bits(q_model):
    report = tfqil.summary(q_model)
    weights = sum(grid.codes.size for grid in tfqil.freeze(q_model).values())
    assert report.weights == weights
    assert (report.float_bytes, report.eight_bit_bytes) == (4 * weights, weights)
    totals = report.totals()
    assert totals["bytes"] == report.bytes < totals["eight_bit_bytes"] < totals["float_bytes"]
    line, _ = report.totals_in_words()
    assert f"{report.bytes:,} bytes" in line and f"{4 * weights:,} ({4 * weights / report.bytes:.1f}x)" in line


def test_kernels_in_float_count_with_4_bytes_a_weight():
    scheme = tfqil.LowBitScheme(tfqil.QILQuantizeConfig(4, 4), edge_bits=None)
    report = tfqil.summary(three_layers.quantized(scheme))
    first, last = report["first"], report["last"]
    assert first.placement.bits is None and first.weights == 64 * 16 and first.bytes == 4 * first.weights
    assert first.macs == 64 * 16 and first.precision == "float" and first.codes_used is None
    assert (first.input_bits, last.precision) == (32, "float") and report["second"].precision == "4x4"
    assert report.macs_by_precision == {"float": first.macs + last.macs, "4x4": 16 * 16}
    assert report.bytes == sum(row.bytes or 0 for row in report)


def test_a_tensor_has_its_levels(q_model):
    row, grid = tfqil.summary(q_model)["quantize_one_a_relu"], q_model.get_layer("quantize_one_a_relu").grid()
    assert row.grid.startswith(f"{grid.step:.3g} x 0 .. 3")
    assert row.steps == (grid.step, grid.step) and row.codes_possible == 4 and row.codes_used is None
    fresh = tfqil.summary(networks.quantized(networks.tiny()))["quantize_stem_relu"]
    assert fresh.grid == "not set" and fresh.steps is None


def test_the_table_has_totals_and_reasons(q_model):
    report = tfqil.summary(q_model)
    lines = str(report).splitlines()
    assert lines[0].split() == HEADINGS
    assert lines[len(report) + 1].startswith("total") and f"{report.macs:,}" in lines[len(report) + 1]
    assert lines[len(report) + 2 :] == report.totals_in_words()
    (line,) = [line for line in lines if line.startswith("one_a ")]
    assert " QIL " in line and f"{report['one_a'].codes_used} of 7" in line and " 3x2 " in line


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (tfqil.QILQuantizeConfig(2, 8), "QIL"),
        (tfqil.LBWQuantizeConfig(4, 8), "LBW"),
        (tfqil.BCGDQuantizeConfig(1, 4), "Binary"),
        (tfqil.BCGDQuantizeConfig(2, 4, relax=True), "BinaryRelax(Ternary)"),
    ],
)
def test_methods_are_named_without_the_word_quantizer(config, method):
    report = tfqil.summary(three_layers.quantized(config))
    (line,) = [line for line in str(report).splitlines() if line.startswith("second ")]
    assert line.split()[2] == method


def test_rich_prints_kernels_tensors_and_totals(q_model):
    report = tfqil.summary(q_model)
    text = printed(report)
    for heading in ("layer", "method", "bits", "step", "codes used", "zeros", "bytes", "MACs", "weights x inputs"):
        assert heading in text, heading
    (line,) = [line for line in text.splitlines() if " one_a " in line]
    row = report["one_a"]
    for cell in ("QIL", "3", f"{row.steps[0]:.3g}", f"{row.codes_used} of 7", f"{row.bytes:,}", f"{row.macs:,}", "3x2"):
        assert f" {cell} " in line, cell
    assert "quantize_one_a_relu" in text and "one_a_bn" not in text
    assert "more layers have no grid of their own" in text
    assert "bytes: of the codes, at 2, 4 or 8 bits each; those of a file depend on its storage" in text
    for line in report.totals_in_words():
        assert line in text


def test_a_notebook_shows_the_table_as_wide_as_it_is_and_the_text_where_there_is_no_html(q_model):
    report = tfqil.summary(q_model)
    shown = report._repr_mimebundle_()
    assert shown["text/plain"] == str(report)
    lines = html.unescape(re.sub(r"<[^>]+>", "", shown["text/html"])).splitlines()
    assert [line.rstrip() for line in lines] == [line.rstrip() for line in printed(report, width=1000).splitlines()]
    assert "\x1b" not in shown["text/html"] and shown["text/html"].startswith("<pre style=")


def test_with_everything_the_table_has_all_layers_and_reasons(q_model):
    report = tfqil.summary(q_model)
    text = printed(report.table(everything=True), width=240)
    for row in report:
        (line,) = [line for line in text.splitlines() if line.startswith(f"│ {row.placement.layer} ")]
        assert row.placement.reason.split()[0] in line
    assert "more layers" not in text


def test_rules_that_matched_no_layer_are_named_in_every_form():
    config = tfqil.QILQuantizeConfig(4, 8)
    report = tfqil.summary(three_layers.quantized(tfqil.LowBitScheme(config, rules={"nobody": config})))
    for text in (str(report), printed(report)):
        assert "Rules that matched no layer: 'nobody'." in text


def test_names_with_brackets_are_shown_as_they_are():
    placement = Placement(layer="[red]dense", role="kernel", bits=4, quantizer="QILWeightQuantizer", reason="none")
    assert "[red]dense" in printed(Summary(rows=(LayerSummary(placement=placement),)))


def test_a_layer_in_float_is_named_with_its_reason():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4), layers.Lambda(tf.abs, name="own"), layers.Dense(2)])
    q_model = tfqil.quantize_model(model, tfqil.QILQuantizeConfig(4, 8))
    row = tfqil.summary(q_model)["own"]
    assert row.placement.role == "float" and "Lambda" in row.placement.reason and row.grid is None
    assert " in float " in next(line for line in printed(tfqil.summary(q_model)).splitlines() if " own " in line)


def test_plain_values_go_into_json(q_model):
    report = tfqil.summary(q_model)
    rows = json.loads(json.dumps(report.to_dict()))
    first = rows[0]
    assert {"layer", "role", "bits", "quantizer", "reason", "grid", "weights", "bytes", "sparsity", "macs"} <= set(
        first
    )
    one_a = next(row for row in rows if row["layer"] == "one_a")
    assert one_a["precision"] == "3x2" and one_a["input_bits"] == 2 and one_a["codes_possible"] == 7
    assert json.loads(json.dumps(report.totals()))["macs_by_precision"] == report.macs_by_precision


def test_a_float_model_is_refused():
    with pytest.raises(ValueError, match="Got the float model 'tiny', expected a quantized one"):
        tfqil.summary(networks.tiny())
    with pytest.raises(KeyError, match="Got the layer name 'nobody', expected one of"):
        tfqil.summary(networks.quantized(networks.tiny()))["nobody"]
