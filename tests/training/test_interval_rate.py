"""The share of the learning rate that intervals get, around any optimizer and however it runs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tf_keras as keras

import tfqil
from tests import networks
from tests.training.two_layers import same
from tfqil import _host
from tfqil.optimizers import BlendedOptimizer, IntervalRateOptimizer

optimizers = keras.optimizers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WAYS = {"eager": {"run_eagerly": True}, "graph": {}, "xla": {"jit_compile": True}}
RATE = 0.25


def _model(config=None):
    keras.utils.set_random_seed(1)
    q_model = tfqil.quantize_model(networks.plain(), config or tfqil.QILQuantizeConfig(3, 3, train_gamma=True))
    return tfqil.calibrate(q_model, networks.digits(64)[0])


def _values(q_model):
    return [variable.numpy() for variable in q_model.trainable_variables]


def _trained(optimizer, config=None, steps=1, **way):
    """The trainable values before and after some steps."""
    q_model = _model(config)
    before = _values(q_model)
    images, labels = networks.digits(32 * steps)
    q_model.compile(optimizer, LOSS, **way)
    q_model.optimizer.build(q_model.trainable_variables)  # Else Keras traces the step twice.
    q_model.fit(images, labels, batch_size=32, shuffle=False, verbose=0)
    return q_model, before, _values(q_model)


@pytest.mark.parametrize(
    ("make", "way"),
    [*((lambda: optimizers.SGD(0.01, momentum=0.9), way) for way in WAYS), (lambda: optimizers.Adam(0.01), "graph")],
)
def test_the_steps_of_intervals_are_shorter_and_those_of_weights_are_not(make, way):
    q_model, before, plain = _trained(make(), **WAYS[way])
    _, _, scaled = _trained(IntervalRateOptimizer(make(), RATE), **WAYS[way])
    intervals = [_host.is_interval(variable) for variable in q_model.trainable_variables]
    assert any(intervals)
    for variable, start, end, short in zip(q_model.trainable_variables, before, plain, scaled, strict=True):
        share = RATE if _host.is_interval(variable) else 1.0
        np.testing.assert_allclose(short - start, share * (end - start), rtol=1e-4, atol=1e-7, err_msg=variable.name)
    moved = [not np.array_equal(a, b) for a, b, is_one in zip(before, scaled, intervals, strict=True) if is_one]
    assert any(moved)


def test_centers_half_widths_exponents_and_resolutions_are_intervals():
    names = {v.name.rpartition("/")[2] for v in _model().trainable_variables if _host.is_interval(v)}
    assert {name.rpartition("_")[2] for name in names} == {"center:0", "width:0", "gamma:0"}
    names = {v.name for v in _model(tfqil.BCGDQuantizeConfig(1, 4)).trainable_variables if _host.is_interval(v)}
    assert names
    assert all(name.endswith("_step:0") for name in names)


def test_a_reloaded_model_knows_its_intervals_and_goes_on(tmp_path):
    q_model, _, _ = _trained(IntervalRateOptimizer(optimizers.SGD(0.01, momentum=0.9), RATE))
    q_model.save(tmp_path / "model.keras")
    loaded = tfqil.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, IntervalRateOptimizer)
    assert loaded.optimizer.rate == RATE
    images, labels = networks.digits(64)
    for model in (q_model, loaded):
        model.fit(images, labels, batch_size=32, shuffle=False, verbose=0)
    assert same(_values(loaded), _values(q_model))


def test_a_rate_of_1_is_the_inner_optimizer_bit_for_bit():
    _, _, plain = _trained(optimizers.SGD(0.01), steps=3)
    _, _, wrapped = _trained(IntervalRateOptimizer("sgd", 1), steps=3)
    assert same(wrapped, plain)


@pytest.mark.parametrize("outer", ["interval rate", "blended"])
def test_it_goes_with_blending_in_either_order(outer):
    config = tfqil.BCGDQuantizeConfig(1, 4)
    q_model = _model(config)
    inner = optimizers.SGD(0.01)
    if outer == "blended":
        optimizer = BlendedOptimizer(IntervalRateOptimizer(inner, RATE), q_model, 0.1)
    else:
        optimizer = IntervalRateOptimizer(BlendedOptimizer(inner, q_model, 0.1), RATE)
    q_model, before, both = _trained(optimizer, config)
    _, _, blended = _trained(BlendedOptimizer(optimizers.SGD(0.01), q_model, 0.1), config)
    for variable, start, end, short in zip(q_model.trainable_variables, before, blended, both, strict=True):
        share = RATE if _host.is_interval(variable) else 1.0
        np.testing.assert_allclose(short - start, share * (end - start), rtol=1e-4, atol=1e-7, err_msg=variable.name)


def test_two_replicas_take_the_steps_of_one():
    command = [sys.executable, "-m", "tests.training.interval_rate_replicas"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), True, "0.01", None])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=r"Got rate=.*expected a number above 0"):
        IntervalRateOptimizer("sgd", rate)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: IntervalRateOptimizer("sgd"), ValueError, "wrap it once"),
        (lambda: BlendedOptimizer(IntervalRateOptimizer("sgd"), None), ValueError, "wrap it once"),
        (lambda: keras.mixed_precision.LossScaleOptimizer(optimizers.SGD()), ValueError, "around the IntervalRate"),
        (lambda: optimizers.legacy.SGD(), TypeError, "legacy optimizer SGD"),
        (lambda: 0.1, TypeError, "Got float to wrap"),
    ],
)
def test_what_is_no_plain_optimizer_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        IntervalRateOptimizer(make())
