"""The three named configs: what they build, how they are stored, and what they refuse."""

from __future__ import annotations

import inspect
import json

import pytest
import tf_keras as keras

import tfqil
from tfqil import quantizers

CONFIGS = [
    tfqil.QILQuantizeConfig(),
    tfqil.QILQuantizeConfig(2, 3, per_channel=True, train_gamma=True),
    tfqil.QILQuantizeConfig(3, 4, normalized=True),
    tfqil.QILQuantizeConfig(4, 8, relax=True),
    tfqil.LBWQuantizeConfig(),
    tfqil.LBWQuantizeConfig(2, 8),
    tfqil.LBWQuantizeConfig(3, 4, mu=0.75),
    tfqil.LBWQuantizeConfig(6, 8, relax=True, int8_exact=True, per_channel=True),
    tfqil.BCGDQuantizeConfig(),
    tfqil.BCGDQuantizeConfig(2, 4, ste="relu", per_channel=True),
    tfqil.BCGDQuantizeConfig(4, 1, "identity", relax=True),
]
CLASSES = (tfqil.QILQuantizeConfig, tfqil.LBWQuantizeConfig, tfqil.BCGDQuantizeConfig)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{type(config).__name__} {config.get_config()}")
class TestEveryConfig:
    def test_its_arguments_round_trip_through_keras(self, config):
        stored = json.loads(json.dumps(keras.utils.legacy.serialize_keras_object(config)))
        again = keras.utils.legacy.deserialize_keras_object(stored)
        assert type(again) is type(config) and again.get_config() == config.get_config()
        assert again == config and hash(again) == hash(config) and repr(again) == repr(config)

    def test_it_is_stored_as_all_the_arguments_of_its_constructor(self, config):
        assert set(config.get_config()) == set(inspect.signature(type(config)).parameters)
        config.get_config().clear()
        assert config.get_config(), "a caller can change what is stored"

    def test_relax_wraps_the_quantizer_of_the_weights_and_nothing_else(self, config):
        arguments = config.get_config()
        if arguments.get("normalized"):
            return
        plain, relaxed = (type(config).from_config({**arguments, "relax": relax}) for relax in (False, True))
        assert not isinstance(plain.weights, quantizers.BinaryRelax)
        assert relaxed.weights == quantizers.BinaryRelax(plain.weights)
        assert relaxed.activations == plain.activations
        assert relaxed != plain and hash(relaxed) != hash(plain)

    def test_it_equals_the_general_config_of_its_quantizers_and_no_other(self, config):
        assert config == tfqil.LowBitQuantizeConfig(config.weights, config.activations)
        assert [other for other in CONFIGS if other == config] == [config]
        assert config != "config"


@pytest.mark.parametrize(
    ("config", "weights", "activations"),
    [
        (
            tfqil.QILQuantizeConfig(2, 3, True, True, True),
            quantizers.QILWeightQuantizer(bits=2, per_channel=True, train_gamma=True, normalized=True),
            quantizers.QILActivationQuantizer(bits=3, normalized=True),
        ),
        (
            tfqil.LBWQuantizeConfig(6, 4, 0.75, True, True, True),
            quantizers.BinaryRelax(quantizers.LBWWeightQuantizer(bits=6, mu=0.75, int8_exact=True, per_channel=True)),
            quantizers.QILActivationQuantizer(bits=4),
        ),
        (
            tfqil.BCGDQuantizeConfig(1, 2, "relu"),
            quantizers.BinaryWeightQuantizer(),
            quantizers.AdaptiveActivationQuantizer(bits=2, ste="relu"),
        ),
        (
            tfqil.BCGDQuantizeConfig(2, 1, per_channel=True),
            quantizers.TernaryWeightQuantizer(per_channel=True),
            quantizers.AdaptiveActivationQuantizer(bits=1),
        ),
        (
            tfqil.BCGDQuantizeConfig(3, 8, per_channel=True),
            quantizers.UniformWeightQuantizer(bits=3, per_channel=True),
            quantizers.AdaptiveActivationQuantizer(bits=8),
        ),
    ],
)
def test_arguments_reach_the_quantizers(config, weights, activations):
    assert (config.weights, config.activations) == (weights, activations)


def test_defaults_are_the_documented_ones():
    assert tfqil.QILQuantizeConfig() == tfqil.QILQuantizeConfig(4, 8, False, False, False, False)
    assert tfqil.LBWQuantizeConfig() == tfqil.LBWQuantizeConfig(4, 8, None, False)
    assert tfqil.BCGDQuantizeConfig() == tfqil.BCGDQuantizeConfig(1, 4, "clipped_relu", False)


@pytest.mark.parametrize(
    ("cls", "name", "lowest", "highest"),
    [
        (tfqil.QILQuantizeConfig, "weight_bits", 2, 8),
        (tfqil.QILQuantizeConfig, "activation_bits", 2, 8),
        (tfqil.LBWQuantizeConfig, "weight_bits", 2, 6),
        (tfqil.LBWQuantizeConfig, "activation_bits", 2, 8),
        (tfqil.BCGDQuantizeConfig, "weight_bits", 1, 8),
        (tfqil.BCGDQuantizeConfig, "activation_bits", 1, 8),
    ],
)
def test_widths_out_of_range_are_refused_by_the_name_of_the_argument(cls, name, lowest, highest):
    for bits in (lowest, highest):
        assert cls(**{name: bits}).get_config()[name] == bits
    for bits in (lowest - 1, highest + 1):
        with pytest.raises(ValueError) as error:
            cls(**{name: bits})
        assert str(error.value) == f"Got {name}={bits}, expected {lowest} to {highest}: choose a width in that range."
    for bits in (2.5, "4", None, True):
        with pytest.raises(TypeError) as error:
            cls(**{name: bits})
        range_of = f"an integer from {lowest} to {highest}"
        assert str(error.value) == f"Got {name}={bits!r}, expected {range_of}: give a whole number."


@pytest.mark.parametrize("mu", [0.0, -0.5, float("nan"), float("inf"), "0.75", True])
def test_a_threshold_that_is_not_positive_is_refused(mu):
    with pytest.raises(ValueError) as error:
        tfqil.LBWQuantizeConfig(4, 8, mu=mu)
    assert str(error.value).startswith(f"Got mu={mu!r}, expected a positive finite number or None: ")


def test_a_threshold_at_2_bits_is_refused():
    with pytest.raises(ValueError) as error:
        tfqil.LBWQuantizeConfig(2, 8, mu=0.75)
    assert str(error.value).startswith("Got mu=0.75 with bits=2, expected no mu: leave it out")


def test_an_unknown_estimator_is_refused_with_the_known_ones():
    with pytest.raises(ValueError) as error:
        tfqil.BCGDQuantizeConfig(ste="tanh")
    assert str(error.value) == "Got ste='tanh', expected 'identity', 'relu', 'clipped_relu': choose one."


def test_normalized_and_relaxed_together_are_refused():
    with pytest.raises(ValueError, match="Got a quantizer with normalized=True to relax, .*: leave normalized out"):
        tfqil.QILQuantizeConfig(2, 2, normalized=True, relax=True)


@pytest.mark.parametrize("cls", CLASSES)
def test_arguments_that_do_not_exist_are_refused(cls):
    with pytest.raises(TypeError, match="unexpected keyword argument 'bits'"):
        cls(bits=4)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"weights": quantizers.QILActivationQuantizer()}, "weights"),
        ({"activations": quantizers.TernaryWeightQuantizer()}, "activations"),
        ({"weights": 4}, "weights"),
    ],
    ids=["weights", "activations", "a width"],
)
def test_the_general_config_refuses_what_is_no_quantizer_of_the_right_kind(arguments, name):
    with pytest.raises(TypeError, match=f"Got {name}=.*, expected a tfqil .*: a quantizer must name the grid"):
        tfqil.LowBitQuantizeConfig(**arguments)
