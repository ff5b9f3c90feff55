"""The accuracy benchmark: the quantizers of its baselines, a run on few images that goes on, its table and picture."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tests import scripts

sys.path.append(str(scripts.ROOT / "benchmarks"))
import accuracy_cells
import accuracy_peers
import accuracy_table

FEWER = 'import data; data._GLYPHS = {"train": 256, "test": 128}'
# One cell that converts, one that does not, and one of a package that is not there.
CELLS = "tfmot_8-bit,lsq_2-2,qil_progressive_4-4"
SMALL = ["--seeds=0", "--width=0.0625", "--float_epochs=1", "--epochs=1"]


def command(folder, cells=CELLS):
    return [
        "benchmarks/accuracy.py", f"--records={folder / 'records'}", f"--directory={folder / 'work'}",
        f"--data_dir={folder}", f"--cells={cells}", *SMALL,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accuracy")
    outputs = [f"--markdown={folder / 'accuracy.md'}", f"--plot={folder / 'accuracy.png'}"]
    return folder, scripts.run(*command(folder), *outputs, before=FEWER)


@pytest.mark.recipe
class TestRun:
    def test_every_cell_has_a_record(self, finished):
        folder, printed = finished
        records = json.loads((folder / "records" / "seed0.json").read_text())["records"]
        assert sorted(records) == ["baseline_lsq_2-2", "tfmot_8-bit_8-8", "tfqil_qil_progressive_4-4"]
        for record in records.values():
            assert 0 <= record["float_accuracy"] <= 100
            assert f"{record['keras_accuracy']:.2f}" in printed
        assert records["tfqil_qil_progressive_4-4"]["integer_only"]
        assert records["tfmot_8-bit_8-8"]["integer_only"]
        assert "file_accuracy" not in records["baseline_lsq_2-2"]
        assert [records[name]["epochs"] for name in sorted(records)] == [4, 2, 2]
        assert "no integer file" in (folder / "accuracy.md").read_text()
        assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    def test_it_goes_on_with_what_is_missing(self, finished):
        folder, _ = finished
        path = folder / "records" / "seed0.json"
        before = json.loads(path.read_text())["records"]
        again = scripts.run(*command(folder, CELLS + ",pact_2-2"), before=FEWER)
        assert again.count("seed 0, ") == 1
        assert "seed 0, baseline_pact_2-2" in again
        after = json.loads(path.read_text())["records"]
        assert {name: after[name] for name in before} == before

    def test_records_of_other_settings_are_refused(self, finished):
        folder, _ = finished
        sentence = scripts.refused(*command(folder), "--epochs=2", before=FEWER)
        assert "Got the settings {'width': 0.0625, 'float_epochs': 1, 'epochs': 2" in sentence
        assert sentence.endswith("expected the same: choose other --records, and another --directory.")
        sentence = scripts.refused(*command(folder), "--epochs=2", f"--records={folder / 'others'}", before=FEWER)
        assert "Got --epochs=2 for the run in" in sentence, "models of other settings are not taken for these"
        assert not (folder / "others").exists()

    @pytest.mark.parametrize(
        ("argument", "sentence"),
        [
            ("--seeds=0,first", "Got --seeds=0,first, expected numbers such as 0,1,2."),
            ("--examples=10", "Got --examples=10, expected a batch of 128 at least."),
        ],
    )
    def test_a_mistake_is_one_sentence(self, tmp_path, finished, argument, sentence):
        arguments = [*command(tmp_path), f"--data_dir={finished[0]}", argument]
        assert scripts.refused(*arguments, before=FEWER) == sentence

    def test_a_table_of_what_is_there_trains_nothing(self, finished, tmp_path):
        folder, _ = finished
        printed = scripts.run(*command(folder, "direct_2-2"), "--notrain", f"--markdown={tmp_path / 'table.md'}")
        assert "seed 0, " not in printed
        assert "| tfqil | QIL progressive |" in (tmp_path / "table.md").read_text()
        sentence = scripts.refused(*command(tmp_path), "--notrain")
        assert "expected some for --notrain" in sentence

    def test_an_unknown_cell_is_refused(self, tmp_path):
        assert "Got --cells=hqq, expected a part of one of " in scripts.refused(*command(tmp_path, "hqq"))


def test_the_cells_have_names_of_their_own():
    names = [cell.name for cell in accuracy_cells.CELLS]
    assert len(set(names)) == len(names)


def test_lsq_has_the_gradients_of_its_paper():
    """Equation 3: round(v) - v within the range, the bounds outside, times g; equation 5: 1 within, else 0."""
    values = np.array([-2.7, -0.9, 0.2, 0.6, 3.1], np.float32)
    v, step = tf.constant(values), tf.constant(0.5)
    with tf.GradientTape() as tape:
        tape.watch([v, step])
        quantized = accuracy_peers._lsq(v, step, -2.0, 1.0, 5)
    scaled = values / 0.5
    np.testing.assert_allclose(quantized, np.rint(np.clip(scaled, -2, 1)) * 0.5)
    of_v, of_step = tape.gradient(quantized, [v, step])
    inside = (scaled > -2) & (scaled < 1)
    np.testing.assert_allclose(of_v, inside)
    expected = np.where(inside, np.rint(scaled) - scaled, np.clip(scaled, -2, 1)).sum() / np.sqrt(5)
    np.testing.assert_allclose(of_step, expected, rtol=1e-6)


def test_pact_has_the_gradients_of_its_paper():
    layer = accuracy_peers.PACTReLU(2, 1.5, name="pact")
    x = tf.constant([[-1.0, 0.3, 0.8, 1.4, 2.0, 7.0]])
    layer.build(x.shape)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = layer(x)
    np.testing.assert_allclose(y[0], [0, 0.5, 1, 1.5, 1.5, 1.5])
    np.testing.assert_allclose(tape.gradient(y, x)[0], [0, 1, 1, 1, 0, 0])
    clipped = np.array([0, 0.3, 0.8, 1.4, 1.5, 1.5])
    # Of alpha: 1 where it clips; within, what rounding to alpha / 3 adds.
    rounding = np.where(clipped < 1.5, (np.rint(clipped * 2) - clipped * 2) / 3, 0)
    np.testing.assert_allclose(tape.gradient(y, layer.alpha), 2 + rounding.sum(), rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 4])
def test_weights_of_dorefa_are_on_its_grid(bits):
    layer = accuracy_peers.DoReFaConv2D(bits, filters=4, kernel_size=1, use_bias=False)
    images = tf.eye(5)[None, :, None, :]
    weights = layer(images).numpy()[0, :, 0]
    codes = 2**bits - 1
    np.testing.assert_allclose((weights + 1) / 2 * codes, np.rint((weights + 1) / 2 * codes), atol=1e-5)
    squashed = np.tanh(layer.kernel.numpy()[0, 0])
    expected = 2 * np.rint((squashed / (2 * np.abs(squashed).max()) + 0.5) * codes) / codes - 1
    np.testing.assert_allclose(weights, expected, atol=1e-5)


@pytest.mark.parametrize("quantize", [accuracy_peers.lsq, accuracy_peers.pact])
def test_a_network_is_rebuilt_with_its_weights_but_for_the_first_and_last_layer(quantize):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.ReLU(name="relu1")(keras.layers.Conv2D(4, 3, name="conv1")(inputs))
    x = keras.layers.ReLU(name="relu2")(keras.layers.Conv2D(4, 3, name="conv2")(x))
    network = keras.Model(inputs, keras.layers.Dense(2, name="logits")(keras.layers.GlobalAveragePooling2D()(x)))
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    rebuilt = quantize(network, images, weight_bits=8, activation_bits=8)
    changed = [layer.name for layer in rebuilt.layers if type(layer).__module__ == "accuracy_peers"]
    assert changed == ["relu1", "conv2", "relu2"]
    for layer in network.layers:
        for value, found in zip(layer.get_weights(), rebuilt.get_layer(layer.name).get_weights(), strict=False):
            np.testing.assert_array_equal(value, found)


def record(bits, gap, package="tfqil", **others):
    return {
        "package": package, "method": "m", "bits": bits, "epochs": 2, "seconds": 1.0, "float_accuracy": 90.0,
        "keras_accuracy": 90 + gap, **others,
    }  # fmt: skip


class TestTable:
    def test_rows_are_ordered_by_bits_and_then_by_what_they_lose(self):
        seed = {"a": record("2/2", -3.0), "b": record("4/4", -0.5), "c": record("2/2", -1.0), "d": record("1/4", -2.0)}
        rows = accuracy_table.rows([seed])
        assert [row.records[0]["keras_accuracy"] for row in rows] == [89.5, 89.0, 87.0, 88.0]

    def test_the_file_counts_where_there_is_one(self):
        seeds = [{"a": record("2/2", 1.0, file_accuracy=88.0)}, {"a": record("2/2", 0.0, file_accuracy=91.0)}]
        (row,) = accuracy_table.rows(seeds)
        assert row.gaps == [-2.0, 1.0]
        (line,) = [line for line in accuracy_table.document([row], SETTINGS).splitlines() if line.startswith("| 2/2")]
        assert "| 90.50 | 89.50 | -0.50 | -2.00 +1.00 |" in line

    def test_a_cell_that_fails_says_why(self):
        failed = {name: value for name, value in record("2/2", 0, package="other").items() if name != "keras_accuracy"}
        rows = accuracy_table.rows([{"a": {**failed, "reason": "ValueError: no"}, "b": record("2/2", 1.0)}])
        text = accuracy_table.document(rows, SETTINGS)
        assert "- other m: ValueError: no." in text
        assert "| fails | - | - | - |" in text

    def test_the_picture_has_every_row(self, tmp_path):
        rows = accuracy_table.rows([{"a": record("2/2", -3.0), "b": record("4/4", 0.5)}])
        accuracy_table.plot(rows, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 5_000


SETTINGS = {"width": 0.25, "float_epochs": 15, "epochs": 3, "examples": None}
