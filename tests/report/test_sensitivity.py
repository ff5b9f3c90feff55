"""One layer at a time at few bits: what is measured is what `quantize_model` gives, and stopping changes nothing."""

from __future__ import annotations

import gc
import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tensorflow_model_optimization.quantization.keras import quantize_annotate_layer

import tfqil
from tests import networks
from tfqil.quantizers import BinaryWeightQuantizer, MaxAbsWeightQuantizer, QILWeightQuantizer
from tfqil.report import scores
from tfqil.report.sensitivity import sensitivity

EXAMPLES = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
EYE = np.eye(4, dtype=np.float32)
LABELS = (EXAMPLES[:, 0] > EXAMPLES[:, 1]).astype(np.int64)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def small():
    """A float network of three kernels."""
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, activation="relu", name="one")(inputs)
    x = keras.layers.Dense(8, activation="relu", name="middle")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="two")(x), name="small")


def single():
    """A float network of one kernel, for what does not depend on their number: each is a model to quantize."""
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(8, name="one")(inputs), name="single")


def compiled(network=small):
    """A network with the loss and a metric of a classifier; with the same weights each time."""
    keras.utils.set_random_seed(1)
    model = network()
    model.compile("sgd", LOSS, metrics=["accuracy"])
    return model


def largest_output(model):
    return float(np.abs(model(EYE).numpy()).max())


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """What is there before stays there: `sensitivity` collects garbage for each model, and need not look at it."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def measured():
    return sensitivity(compiled(), (EXAMPLES, LABELS), "loss", (8, 2, 4))


def at_8_bits_but(layer=None, weights=None, network=small):
    """The network as `sensitivity` should measure it."""
    eight = tfqil.LowBitQuantizeConfig(weights=MaxAbsWeightQuantizer(bits=8))
    rules = {layer: tfqil.LowBitQuantizeConfig(weights=weights)} if layer else {}
    q_model = tfqil.quantize_model(compiled(network), tfqil.LowBitScheme(eight, rules=rules))
    return tfqil.calibrate(q_model, EXAMPLES)


def test_a_number_is_that_of_the_model_with_one_layer_at_few_bits(measured):
    def loss_of(model):
        return float(LOSS(LABELS, model(EXAMPLES)))

    # Keras adds up batches as it goes: some ulp of float32.
    assert measured["middle"].metrics[2] == pytest.approx(
        loss_of(at_8_bits_but("middle", QILWeightQuantizer(bits=2))), rel=1e-5
    )
    assert measured["one"].metrics[4] == pytest.approx(
        loss_of(at_8_bits_but("one", QILWeightQuantizer(bits=4))), rel=1e-5
    )
    assert measured.metric_at_8_bits == pytest.approx(loss_of(at_8_bits_but()), rel=1e-5)
    assert measured.float_metric == pytest.approx(loss_of(compiled()), rel=1e-5)
    assert len({metric for row in measured for metric in row.metrics.values()}) == 1 + 3 * 2


def test_there_is_a_row_per_kernel_and_eight_bits_lose_nothing(measured):
    assert [row.layer for row in measured] == ["one", "middle", "two"]
    assert [row.is_edge for row in measured] == [True, False, True]
    assert measured.bits == (2, 4, 8)
    for row in measured:
        assert row.metrics[8] == measured.metric_at_8_bits and row.losses[8] == 0
        assert row.losses[2] == row.metrics[2] - row.metrics[8]


def test_a_larger_accuracy_is_a_smaller_loss():
    report = sensitivity(compiled(single), (EXAMPLES, LABELS), "accuracy", (2,))
    q_model = at_8_bits_but("one", QILWeightQuantizer(bits=2), single)
    right = np.mean(q_model(EXAMPLES).numpy().argmax(axis=-1) == LABELS)
    assert report.larger_is_better and report["one"].metrics[2] == pytest.approx(right, rel=1e-6)  # It is float32.
    assert report["one"].losses[2] == report.metric_at_8_bits - report["one"].metrics[2]


def test_batches_with_labels_and_in_a_graph_are_the_same_as_arrays(measured, monkeypatch):
    monkeypatch.setattr(scores, "_UNTRACED_BATCHES", 1)
    batches = tf.data.Dataset.from_tensor_slices((EXAMPLES, LABELS)).batch(64)
    again = sensitivity(compiled(), batches, "loss", (8,))
    # A graph may add products in another order: some ulp of float32.
    assert again.metric_at_8_bits == pytest.approx(measured.metric_at_8_bits, rel=1e-5)
    assert again.float_metric == pytest.approx(measured.float_metric, rel=1e-5)


def test_a_model_of_several_inputs_is_measured_on_all_of_them():
    first, second = keras.Input((4,), name="left"), keras.Input((2,), name="right")
    x = keras.layers.Concatenate()([keras.layers.Dense(4, name="of_left")(first), second])
    model = keras.Model([first, second], keras.layers.Dense(3, name="of_both")(x))
    model.compile("sgd", LOSS)
    inputs = [EXAMPLES, EXAMPLES[:, :2]]
    report = sensitivity(model, (inputs, LABELS), "loss", (8,))
    named = {"left": EXAMPLES, "right": EXAMPLES[:, :2]}
    assert report.to_dict() == sensitivity(model, (named, LABELS), "loss", (8,)).to_dict()
    assert report.float_metric == pytest.approx(float(LOSS(LABELS, model(inputs))), rel=1e-5)
    assert len(sensitivity(model, inputs, lambda q_model: 0.0, (8,))) == 2


def test_a_function_may_be_better_smaller():
    seen = []

    def biggest(q_model):
        wrappers = [layer for layer in q_model.layers if hasattr(layer, "weight_quantizer")]
        seen.append({wrapper.layer.name: wrapper.weight_quantizer for wrapper in wrappers})
        return float(len(seen))

    report = sensitivity(small(), EYE, biggest, (2,), larger_is_better=False)
    eight = MaxAbsWeightQuantizer(bits=8)
    two = QILWeightQuantizer(bits=2)
    names = ("one", "middle", "two")
    assert seen == [{name: two if name == low else eight for name in names} for low in ("none", *names)]
    assert report["one"].losses == {2: 1.0, 8: 0.0} and report["two"].losses[2] == 3.0
    assert report.float_metric is None and "biggest" in report.metric


def test_bytes_are_those_of_the_summary(measured):
    for bits in (2, 4):
        assert measured.uniform_bytes(bits) == tfqil.summary(networks.quantized(compiled(), bits, 8)).bytes
    assert measured["middle"].bytes(2, "packed") == 8 * 8 // 4
    with pytest.raises(ValueError, match="Got bits=3, expected one of 2, 4, 8"):
        measured.uniform_bytes(3)
    with pytest.raises(ValueError, match="Got count='zip', expected 'stored' or 'packed'"):
        measured.uniform_bytes(4, "zip")


def test_three_bits_are_stored_in_four_and_packed_in_three():
    report = sensitivity(single(), EYE, largest_output, (3,))
    assert report["one"].bytes(3) == 16 and report["one"].bytes(3, "packed") == 12


def test_a_separable_layer_is_one_row_of_two_kernels():
    layers = [keras.Input((6, 6, 4)), keras.layers.SeparableConv2D(8, 3, name="separable")]
    (row,) = sensitivity(keras.Sequential(layers), np.ones((1, 6, 6, 4), np.float32), lambda q_model: 0.0, (2,))
    assert row.layer == "separable" and row.weights == (9 * 4, 4 * 8)
    assert row.bytes(2) == 9 + 8


def test_a_layer_with_a_config_of_its_own_keeps_it():
    inputs = keras.Input((4,))
    own = quantize_annotate_layer(keras.layers.Dense(8, name="own"), tfqil.QILQuantizeConfig(2, 8))
    model = keras.Model(inputs, keras.layers.Dense(3, name="two")(own(inputs)))
    report = sensitivity(model, EYE, largest_output, (4,))
    assert [row.layer for row in report] == ["two"] and report.other_bytes == 4 * 8 // 4


def test_other_methods_bring_their_own_widths():
    shifts = sensitivity(single(), EYE, largest_output, (4, 8), config=tfqil.LBWQuantizeConfig())
    assert shifts["one"].bytes(4) == 32, "4 bits of powers of two go up to 8, which INT4 does not hold"
    seen = []

    def quantizer_of_one(q_model):
        seen.append(next(layer for layer in q_model.layers if layer.name == "quant_one").weight_quantizer)
        return 0.0

    binary = sensitivity(single(), EYE, quantizer_of_one, (1,), config=tfqil.BCGDQuantizeConfig())
    assert binary.bits == (1,) and seen[1] == BinaryWeightQuantizer()
    assert binary["one"].bytes(1) == 8 and binary["one"].bytes(1, "packed") == 4


class StoppedError(Exception):
    """What stops a measurement."""


def counting(stop_after=None):
    calls = []

    def score(q_model):
        if len(calls) == stop_after:
            raise StoppedError
        calls.append(q_model.name)
        return largest_output(q_model)

    return score, calls


def test_a_stopped_measurement_goes_on_to_the_same_end(tmp_path):
    model, path = single(), tmp_path / "measured.json"
    score, calls = counting()
    whole = sensitivity(model, EYE, score, (2, 4, 8))
    assert len(calls) == 1 + 2
    stopping, calls = counting(stop_after=2)
    with pytest.raises(StoppedError):
        sensitivity(model, EYE, stopping, (2, 4, 8), resume=path)
    assert len(json.loads(path.read_text())["measured"]) == 2
    going_on, calls = counting()
    assert sensitivity(model, EYE, going_on, (2, 4, 8), resume=path).to_dict() == whole.to_dict()
    assert len(calls) == 1, "what was measured before is not measured again"
    assert [found.name for found in tmp_path.iterdir()] == ["measured.json"]


def test_a_file_of_something_else_is_refused(tmp_path):
    model, data, path = single(), EYE, tmp_path / "measured.json"
    score, _ = counting()
    sensitivity(model, data, score, (8,), resume=path)
    other = single()  # Of other weights.
    for arguments, what in (
        ((other, data, score, (8,)), "model"),
        ((model, 2 * data, score, (8,)), "data"),
        ((model, data, largest_output, (8,)), "metric"),
        ((model, data, score, (3,)), "config"),
    ):
        with pytest.raises(ValueError, match=f"was measured with another {what}, expected the same"):
            sensitivity(*arguments, resume=path)
    path.write_text("{")
    with pytest.raises(ValueError, match="which holds no measurements"):
        sensitivity(model, data, score, (8,), resume=path)
    with pytest.raises(ValueError, match="expected a path that can be written"):
        sensitivity(model, data, score, (8,), resume=tmp_path / "none" / "measured.json")


def test_bad_input_is_one_sentence_before_any_work():
    model, data = small(), EYE
    labelled = (data, np.zeros(4, np.int64))

    def refused(match, *arguments, kind=ValueError, **keywords):
        with pytest.raises(kind, match=match) as error:
            sensitivity(*arguments, **keywords)
        assert "\n" not in str(error.value)

    def never(q_model):
        raise AssertionError

    refused(
        "quantized already, expected a float model", tfqil.quantize_model(model, tfqil.QILQuantizeConfig()), data, never
    )
    refused("without a batch, expected at least one", model, data[:0], never)
    refused("without a batch, expected at least one", model, tf.data.Dataset.from_tensors(data).take(0), never)
    refused("without a batch, expected at least one", model, (data[:0], np.zeros(0)), "loss")
    refused("expected \\(None, 4\\)", model, np.zeros((3, 5), np.float32), never)
    refused("which can be read once", model, iter([data]), never, kind=TypeError)
    refused("4 and 5 examples", model, (data, np.zeros(5)), never)
    refused("Got bits=9, expected 2 to 8", model, data, never, (2, 9))
    refused("Got bits=1, expected 2 to 8", model, data, never, (1,))
    refused("Got bits=\\(\\), expected some widths", model, data, never, ())
    refused("Got bits=True, expected an integer", model, data, never, (True,), kind=TypeError)
    refused("expected a LowBitQuantizeConfig", model, data, never, config=tfqil.QILQuantizeConfig, kind=TypeError)
    refused("Got 3 as metric, expected the name", model, data, 3, kind=TypeError)
    refused("larger_is_better='yes', expected True", model, data, never, larger_is_better="yes", kind=TypeError)
    refused("which is not compiled", model, labelled, "accuracy")
    refused("Got batches=0", model, data, never, batches=0)
    model.compile("sgd", "mse", metrics=["mae"])
    refused("Got data without labels", model, data, "mae")
    refused("'accuracy', expected one that the model is compiled with: 'loss', 'mae'", model, labelled, "accuracy")
    flat = keras.Sequential([keras.Input((4,)), keras.layers.ReLU()])
    refused("without a layer that multiplies by a kernel", flat, data, never)


def test_a_name_that_does_not_say_what_is_better_is_refused():
    model, labelled = single(), (EYE, np.zeros((4, 8)))

    def wealth(y_true, y_pred):
        return tf.reduce_mean(y_pred)

    model.compile("sgd", "mse", metrics=[wealth])
    with pytest.raises(ValueError, match="'wealth', whose name does not say whether larger is better"):
        sensitivity(model, labelled, "wealth", (8,))
    assert sensitivity(model, labelled, "wealth", (8,), larger_is_better=True).larger_is_better


def test_a_metric_that_is_no_finite_number_is_named_with_its_layer():
    values = iter([1.0, float("nan")])
    with pytest.raises(ValueError, match="Got nan as the metric .* of one at 2 bits, expected a finite number"):
        sensitivity(single(), EYE, lambda q_model: next(values), (2,))
    with pytest.raises(TypeError, match="Got None as the metric .* of all layers at 8 bits, expected a number"):
        sensitivity(single(), EYE, lambda q_model: None, (2,))


def test_the_table_and_the_plain_values_show_everything(measured):
    lines = str(measured).splitlines()
    assert lines[0].split("  ")[0] == "layer" and "loss at 2" in lines[0] and "bytes" in lines[0]
    assert len(lines) == 1 + 3 + 1 and "one (edge)" in lines[1]
    assert f"{measured['middle'].metrics[2]:.4f}" in lines[2] and "smaller is better" in lines[-1]
    plain = json.loads(json.dumps(measured.to_dict()))
    assert plain["layers"][1]["metrics"]["2"] == measured["middle"].metrics[2]
    assert plain["layers"][1]["bytes"]["4"] == measured["middle"].bytes(4)
