"""Widths within a budget: the least loss that any choice has, and a scheme that quantizes as it says."""

from __future__ import annotations

import itertools
import json
import math
import time

import numpy as np
import pytest
import tf_keras as keras

import tfqil
from tests import networks
from tfqil.report.bits import suggest_bits
from tfqil.report.sensitivity import LayerSensitivity, Sensitivity

STORED = {1: 2, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 8: 8}


def layer(name, weights, losses, *, is_edge=False):
    """A row of a report, from width -> loss."""
    losses = {**losses, 8: losses.get(8, 0.0)}
    return LayerSensitivity(
        layer=name, weights=weights, is_edge=is_edge, metrics=losses, losses=losses, stored_bits=STORED
    )


def report(rows, bits=(2, 3, 4, 8), config=None, other_bytes=0):
    return Sensitivity(
        rows=tuple(rows),
        bits=bits,
        metric="loss",
        larger_is_better=False,
        float_metric=None,
        metric_at_8_bits=0.0,
        other_bytes=other_bytes,
        config=config or tfqil.QILQuantizeConfig(),
    )


def random_report(random, layers, bits=(2, 3, 4, 8)):
    return report(
        [
            layer(f"layer{i}", (int(random.integers(1, 200)),), dict(zip(bits, random.normal(size=4), strict=True)))
            for i in range(layers)
        ],
        bits,
    )


@pytest.mark.parametrize("count", ["stored", "packed"])
def test_no_choice_within_the_budget_loses_less(count):
    random = np.random.default_rng(0)
    for _ in range(40):
        measured = random_report(random, layers=5)
        lowest, highest = (
            sum(pick(row.bytes(bits, count) for bits in measured.bits) for row in measured) for pick in (min, max)
        )
        budget = int(random.integers(lowest, highest + 1))
        suggested = suggest_bits(measured, max_bytes=budget, count=count)
        best = min(
            sum(row.losses[bits] for row, bits in zip(measured, widths, strict=True))
            for widths in itertools.product(measured.bits, repeat=5)
            if sum(row.bytes(bits, count) for row, bits in zip(measured, widths, strict=True)) <= budget
        )
        assert suggested.loss == pytest.approx(best, abs=1e-12)  # Sums of five numbers near 1, in another order.
        assert suggested.bytes <= budget


def test_of_equal_losses_the_fewest_bytes_are_taken():
    measured = report([layer("one", (100,), {2: 0.0, 3: 0.0, 4: 0.0}), layer("two", (100,), {2: 1.0, 3: 0.5, 4: 0.5})])
    suggested = suggest_bits(measured, max_bytes=10_000, count="packed")
    assert [row.bits for row in suggested.rows] == [2, 8]
    measured = report([layer("two", (100,), {2: 1.0, 3: 0.5, 4: 0.5, 8: 0.5})])
    assert suggest_bits(measured, max_bytes=10_000, count="packed")["two"].bits == 3


def test_a_deep_network_takes_seconds():
    random = np.random.default_rng(1)
    rows = []
    for number in range(160):
        falling = np.sort(random.exponential(size=3))[::-1]
        size = int(random.integers(200, 2_000_000))
        rows.append(layer(f"layer{number}", (size,), dict(zip((2, 3, 4), falling, strict=True))))
    measured = report(rows)
    started = time.perf_counter()
    suggested = suggest_bits(measured, max_bytes=measured.uniform_bytes(3, "packed"), count="packed")
    assert time.perf_counter() - started < 20
    assert suggested.bytes <= measured.uniform_bytes(3, "packed")
    assert suggested.loss < sum(row.losses[3] for row in measured)


def test_the_least_budget_is_named():
    measured = report([layer("one", (100,), {2: 1.0, 3: 0.5, 4: 0.1}), layer("end", (8,), {}, is_edge=True)], (2, 3, 4))
    assert suggest_bits(measured, max_bytes=25 + 8).bytes == 33
    with pytest.raises(ValueError, match="Got max_bytes=32, expected at least 33, the fewest") as error:
        suggest_bits(measured, max_bytes=32)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="expected at least 43"):
        suggest_bits(report(measured.rows, (2, 3, 4), other_bytes=10), max_bytes=42)


def test_three_bits_cost_four_unless_packed():
    measured = report([layer("one", (100,), {2: 1.0, 3: 0.5, 4: 0.1}), layer("two", (100,), {2: 1.0, 3: 0.5, 4: 0.1})])
    stored = suggest_bits(measured, max_bytes=measured.uniform_bytes(3))
    packed = suggest_bits(measured, max_bytes=measured.uniform_bytes(3, "packed"), count="packed")
    assert [row.bits for row in stored.rows] == [4, 4] and stored.bytes == 100
    assert [row.bits for row in packed.rows] == [3, 3] and packed.bytes == 76


def network_report(config=None):
    """A report of the plain network with made-up losses: the first hidden layers lose most."""
    names = {"first": 72, "second": 864, "pointwise": 192, "hidden": 3456, "last": 240}
    losses = {"first": 5.0, "second": 3.0, "pointwise": 2.0, "hidden": 0.1, "last": 4.0}
    rows = [
        layer(
            name,
            (size,),
            {2: losses[name], 3: losses[name] / 4, 4: losses[name] / 16},
            is_edge=name in ("first", "last"),
        )
        for name, size in names.items()
    ]
    return report(rows, config=config)


def test_the_suggestion_goes_straight_into_quantize_model():
    measured = network_report()
    suggested = suggest_bits(measured, max_bytes=measured.uniform_bytes(3), activation_bits=3)
    q_model = tfqil.quantize_model(networks.plain(), suggested)
    summary = tfqil.summary(q_model)
    assert {row.placement.layer: row.placement.bits for row in summary if row.placement.role == "kernel"} == {
        row.layer: row.bits for row in suggested.rows
    }
    assert len({row.bits for row in suggested.rows}) > 1
    assert summary.bytes == suggested.bytes <= measured.uniform_bytes(3)
    assert not suggested.unmatched_rules and not tfqil.placements(q_model).unmatched_rules
    tensors = [row.placement for row in summary if row.placement.role == "tensor"]
    assert {placement.bits for placement in tensors} == {3, 8}
    assert sum(placement.bits == 3 for placement in tensors) == 3, "the inputs of second, pointwise and hidden"


def test_a_suggestion_trains_converts_and_keeps_its_bytes():
    measured = network_report()
    suggested = suggest_bits(measured, max_bytes=measured.uniform_bytes(3))
    images, labels = networks.digits(128)
    q_model = tfqil.calibrate(tfqil.quantize_model(networks.plain(), suggested), images)
    q_model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    q_model.fit(images, labels, epochs=1, verbose=0)
    tflite = tfqil.convert(q_model, "smallest")
    assert tfqil.verify(q_model, tflite, images).accepted
    in_file = {math.prod(weights.shape): weights for weights in tfqil.inspect(tflite).weights}
    for row in suggested.rows:
        assert in_file[row.weights].bits_used <= row.bits
    for name in ("pointwise", "hidden"):
        assert in_file[suggested[name].weights].bytes == suggested[name].bytes


def test_edges_keep_eight_bits_unless_they_are_chosen():
    measured = network_report()
    kept = suggest_bits(measured, max_bytes=measured.uniform_bytes(2))
    assert kept["first"].bits == kept["last"].bits == 8 and set(kept.rules) == {"second", "pointwise", "hidden"}
    chosen = suggest_bits(measured, max_bytes=measured.uniform_bytes(2), choose_edges=True, activation_bits=2)
    assert chosen["last"].bits < 8 and chosen.loss < kept.loss
    q_model = tfqil.quantize_model(networks.plain(), chosen)
    assert tfqil.summary(q_model)["last"].placement.bits == chosen["last"].bits
    assert tfqil.summary(q_model)["quantize_image"].placement.bits == 8, "the input keeps 8 bits"


@pytest.mark.parametrize("config", [tfqil.LBWQuantizeConfig(), tfqil.BCGDQuantizeConfig()], ids=["lbw", "bcgd"])
def test_the_configs_are_those_of_the_method(config):
    suggested = suggest_bits(network_report(config), max_bytes=2_500, activation_bits=4)
    for name, rule in suggested.rules.items():
        bits = suggested[name].bits
        assert rule.activations == config.activations.with_bits(4)
        assert rule.weights.bits == bits and (bits == 8 or rule.weights == config.weights.with_bits(bits))


def test_other_input_is_refused_in_one_sentence():
    measured = network_report()
    for kind, match, arguments in (
        (TypeError, "Got str, expected what tfqil.sensitivity returns", {"sensitivity": "loss", "max_bytes": 9_999}),
        (TypeError, "Got max_bytes=2.5, expected a whole number", {"sensitivity": measured, "max_bytes": 2.5}),
        (ValueError, "expected 2 to 8", {"sensitivity": measured, "max_bytes": 9_999, "activation_bits": 9}),
        (ValueError, "Got count='zip'", {"sensitivity": measured, "max_bytes": 9_999, "count": "zip"}),
    ):
        with pytest.raises(kind, match=match) as error:
            suggest_bits(**arguments)
        assert "\n" not in str(error.value)


def test_the_table_has_totals_and_the_plain_values_go_into_json():
    measured = network_report()
    suggested = suggest_bits(measured, max_bytes=2_500)
    lines = str(suggested).splitlines()
    assert lines[0].split() == ["layer", "weights", "bits", "bytes,", "stored", "loss"]
    assert len(lines) == 1 + 5 + 1 and lines[-1].startswith("total of at most 2,500")
    assert f"{suggested.bytes:,}" in lines[-1]
    plain = json.loads(json.dumps(suggested.to_dict()))
    assert plain["bytes"] == suggested.bytes and plain["layers"][1]["bits"] == suggested["second"].bits
