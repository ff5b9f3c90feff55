"""Progressive finetuning: `with_bits` gives the model that quantizing at once would, with what was learned so far."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tests.export.operator_networks import KERNELS, OPERATORS
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer

layers = keras.layers


def _rows(q_model):
    return [(row.layer, row.role, row.bits, row.quantizer, row.reason) for row in tfqil.placements(q_model)]


def _variables(q_model):
    return {variable.name: variable.numpy() for variable in q_model.variables}


def _finetuned(family, *bits, **arguments):
    """A calibrated model whose weights, intervals and statistics have moved."""
    q_model = networks.calibrated(networks.FAMILIES[family](), *bits, **arguments)
    images, labels = networks.digits(128)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=family != "separable")
    q_model.compile(keras.optimizers.Adam(1e-3), loss)
    q_model.optimizer.build(q_model.trainable_variables)  # Else Keras traces the step twice.
    q_model.fit(images, labels, batch_size=32, verbose=0)
    return q_model


class TestPlacement:
    @pytest.mark.parametrize("family", networks.FAMILIES)
    @pytest.mark.parametrize("before", [(5, 5), (8, 8), (4, 8)])
    def test_it_is_that_of_a_model_quantized_at_once(self, family, before):
        model = networks.FAMILIES[family]()
        assert _rows(tfqil.with_bits(networks.quantized(model, *before), 3, 2)) == _rows(
            networks.quantized(model, 3, 2)
        )

    @pytest.mark.parametrize("name", [*KERNELS, *OPERATORS])
    def test_so_it_is_around_every_operator(self, name):
        shape, network = {**KERNELS, **OPERATORS}[name]
        inputs = keras.Input(shape)
        # With edges of its own around the network, whose first and last layer then follow the scheme.
        outputs = layers.Dense(2)(network(layers.Dense(shape[-1])(inputs)))
        model = keras.Model(inputs, outputs)
        changed = tfqil.with_bits(networks.quantized(model, 5, 8), 3, 4)
        assert _rows(changed) == _rows(networks.quantized(model, 3, 4))

    @pytest.mark.parametrize("edge_bits", [None, 4, 8])
    def test_edges_stay(self, edge_bits):
        model = networks.plain()
        changed = tfqil.with_bits(networks.quantized(model, 5, 5, edge_bits=edge_bits), 2, 2)
        assert _rows(changed) == _rows(networks.quantized(model, 2, 2, edge_bits=edge_bits))

    def test_layers_with_a_config_of_their_own_stay_and_so_do_reports(self):
        def scheme(*bits):
            rules = {"second": tfqil.QILQuantizeConfig(6, 7), "nothing": tfqil.QILQuantizeConfig(2, 2)}
            return tfqil.LowBitScheme(tfqil.QILQuantizeConfig(*bits), rules=rules)

        model = networks.plain()
        changed = tfqil.with_bits(tfqil.quantize_model(model, scheme(5, 5)), 3, 3)
        assert tfqil.placements(changed)["second"].bits == 6
        assert _rows(changed) == _rows(tfqil.quantize_model(model, scheme(3, 3)))
        assert tfqil.placements(changed).unmatched_rules == ("nothing",)

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (tfqil.LBWQuantizeConfig(5, 4, mu=0.75), tfqil.LBWQuantizeConfig(2, 3)),
            (tfqil.BCGDQuantizeConfig(4, 4), tfqil.BCGDQuantizeConfig(2, 3)),
            (
                tfqil.BCGDQuantizeConfig(1, 4, relax=True, per_channel=True),
                tfqil.BCGDQuantizeConfig(2, 3, relax=True, per_channel=True),
            ),
            (tfqil.QILQuantizeConfig(4, 4, train_gamma=True), tfqil.QILQuantizeConfig(2, 3, train_gamma=True)),
        ],
    )
    def test_every_method_has_its_own_quantizers_at_the_new_widths(self, before, after):
        model = networks.residual()
        changed = tfqil.with_bits(tfqil.quantize_model(model, before), 2, 3)
        expected = tfqil.quantize_model(model, after)
        for layer, twin in zip(changed.layers, expected.layers, strict=True):
            if isinstance(layer, QuantizedLayer):
                assert layer.weight_quantizer == twin.weight_quantizer
            if isinstance(layer, QuantizeActivation):
                assert layer.quantizer == twin.quantizer

    def test_none_leaves_a_width(self):
        q_model = networks.quantized(networks.residual(), 5, 4)
        assert _rows(tfqil.with_bits(q_model, 3, None)) == _rows(networks.quantized(networks.residual(), 3, 4))
        assert _rows(tfqil.with_bits(q_model, None, 3)) == _rows(networks.quantized(networks.residual(), 5, 3))


class TestWhatWasLearned:
    @pytest.mark.parametrize("family", networks.FAMILIES)
    def test_the_same_widths_give_the_same_model(self, family):
        q_model = _finetuned(family, 4, 4)
        copy = tfqil.with_bits(q_model, 4, 4)
        images, _ = networks.digits(64)
        np.testing.assert_array_equal(copy.predict(images, verbose=0), q_model.predict(images, verbose=0))
        for variable, expected in zip(copy.variables, q_model.variables, strict=True):
            np.testing.assert_array_equal(variable.numpy(), expected.numpy(), err_msg=variable.name)

    def test_weights_and_intervals_are_kept_at_other_widths_and_the_first_model_is_not_changed(self):
        q_model = _finetuned("residual", 5, 5)
        before = _variables(q_model)
        changed = tfqil.with_bits(q_model, 3, 3)
        assert _variables(changed).keys() == before.keys()
        for name, value in _variables(changed).items():
            np.testing.assert_array_equal(value, before[name], err_msg=name)
        changed.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        changed.fit(*networks.digits(64), verbose=0)
        for name, value in _variables(q_model).items():
            np.testing.assert_array_equal(value, before[name], err_msg=name)

    def test_intervals_may_be_fitted_anew_where_the_width_changes(self):
        q_model = _finetuned("residual", 3, 3)
        fitted = tfqil.with_bits(q_model, 2, 2, intervals="fit")
        waiting = [
            layer for layer in fitted.layers if isinstance(layer, QuantizeActivation) and not layer.is_initialized()
        ]
        assert {layer.quantizer.bits for layer in waiting} == {2}
        assert len(waiting) == sum(
            isinstance(layer, QuantizeActivation) and layer.quantizer.bits == 2 for layer in fitted.layers
        )
        for layer in fitted.layers:
            if isinstance(layer, QuantizedLayer) and layer.weight_quantizer.bits == 2:
                learned = q_model.get_layer(layer.name)
                error = [
                    float(tf.reduce_mean((one.quantized(one.kernel) - one.kernel) ** 2))
                    for one in (layer, tfqil.with_bits(q_model, 2, 2).get_layer(layer.name))
                ]
                assert error[0] <= error[1] * 1.001
                np.testing.assert_array_equal(layer.kernel, learned.kernel)

    def test_the_highest_level_of_a_learned_resolution_is_kept(self):
        q_model = tfqil.calibrate(
            tfqil.quantize_model(networks.plain(), tfqil.BCGDQuantizeConfig(1, 4)), networks.digits(64)[0]
        )
        changed = tfqil.with_bits(q_model, 1, 2)
        learned = [layer for layer in q_model.layers if "step" in getattr(layer, "quantizer_variables", {})]
        assert learned
        for layer in learned:
            new = changed.get_layer(layer.name).quantizer_variables["step"]
            np.testing.assert_allclose(new * 3, layer.quantizer_variables["step"] * 15, rtol=1e-6)

    def test_a_reloaded_model_goes_on(self, tmp_path):
        q_model = _finetuned("residual", 5, 8)
        q_model.save(tmp_path / "five.keras")
        changed = tfqil.with_bits(tfqil.load_model(tmp_path / "five.keras"), 3, 3)
        expected = tfqil.with_bits(q_model, 3, 3)
        assert _rows(changed) == _rows(expected)
        for (name, value), expected_value in zip(
            _variables(changed).items(), _variables(expected).values(), strict=True
        ):
            np.testing.assert_array_equal(value, expected_value, err_msg=name)

    def test_a_tensor_without_a_low_bit_grid_waits_for_data(self):
        changed = tfqil.with_bits(_finetuned("residual", 8, 8), 4, 4)
        waiting = [
            layer for layer in changed.layers if isinstance(layer, QuantizeActivation) and not layer.is_initialized()
        ]
        assert waiting and all("input_of" in layer.name for layer in waiting)
        tfqil.calibrate(changed, networks.digits(64)[0])
        assert all(layer.is_initialized() for layer in waiting)

    def test_what_is_frozen_stays_frozen(self):
        q_model = networks.calibrated(networks.residual(), 5, 5)
        for layer in q_model.layers[:6]:
            layer.trainable = False
        changed = tfqil.with_bits(q_model, 3, 3)
        assert [v.name for v in changed.trainable_variables] == [v.name for v in q_model.trainable_variables]

    def test_the_result_trains_converts_and_verifies(self):
        changed = tfqil.calibrate(tfqil.with_bits(_finetuned("residual", 4, 8), 2, 2), networks.digits(64)[0])
        changed.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        changed.fit(*networks.digits(64), verbose=0)
        tflite = tfqil.convert(changed, "smallest")
        assert tfqil.verify(changed, tflite, networks.digits(32)[0]).accepted


class TestErrors:
    def test_another_way_with_intervals(self):
        with pytest.raises(ValueError, match=r"intervals='reset', expected 'keep' or 'fit'"):
            tfqil.with_bits(networks.quantized(networks.plain()), 3, 3, intervals="reset")

    def test_a_float_model(self):
        with pytest.raises(ValueError, match=r"float model 'plain'.*tfqil\.quantize_model"):
            tfqil.with_bits(networks.plain(), 4, 4)

    @pytest.mark.parametrize(("weight_bits", "activation_bits"), [(1, 4), (4, 9), (9, 4)])
    def test_a_width_out_of_range(self, weight_bits, activation_bits):
        with pytest.raises(ValueError, match="bits"):
            tfqil.with_bits(networks.quantized(networks.plain()), weight_bits, activation_bits)

    def test_a_width_that_is_no_number(self):
        with pytest.raises(TypeError, match="bits"):
            tfqil.with_bits(networks.quantized(networks.plain()), 2.5, 4)

    def test_no_quantizer_to_change(self):
        config = tfqil.LowBitQuantizeConfig(weights=tfqil.quantizers.QILWeightQuantizer(bits=4))
        with pytest.raises(ValueError, match=r"activation_bits=4.*expected None"):
            tfqil.with_bits(tfqil.quantize_model(networks.plain(), config), 3, 4)

    def test_no_layer_that_follows_the_scheme(self):
        inputs = keras.Input((4,))
        q_model = networks.quantized(keras.Model(inputs, layers.Dense(3, name="only")(inputs)))
        with pytest.raises(ValueError, match=r"\(only\) are edges"):
            tfqil.with_bits(q_model, 3, 3)

    def test_no_model(self):
        with pytest.raises(TypeError):
            tfqil.with_bits(tf.zeros(3), 3, 3)
