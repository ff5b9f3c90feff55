"""Where quantizers go: one test per rule of the design."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras

import tfqil
from tests import networks
from tfqil.scheme import QuantizeActivation, QuantizedLayer

layers = keras.layers
qat = tfmot.quantization.keras

QIL_WEIGHTS, MAX_ABS = "QILWeightQuantizer", "MaxAbsWeightQuantizer"
QIL, RANGE, FIXED = "QILActivationQuantizer", "RangeActivationQuantizer", "FixedActivationQuantizer"


def placed(model: Any, weight_bits: int = 3, activation_bits: int = 2, **scheme: Any) -> dict[str, tuple[str, int]]:
    """Layer name -> class and bits of its quantizer, for all layers that have one."""
    return quantizers_of(networks.quantized(model, weight_bits, activation_bits, **scheme))


def quantizers_of(q_model: Any) -> dict[str, tuple[str, int]]:
    return {row.layer: (row.quantizer, row.bits) for row in tfqil.placements(q_model) if row.quantizer}


def model_of(build: Any, shape: tuple[int, ...] = (8, 8, 3)) -> Any:
    """A functional model whose body is built by a function of its input."""
    inputs = keras.Input(shape, name="in")
    return keras.Model(inputs, build(inputs))


def conv(name: str, filters: int = 4, **arguments: Any) -> Any:
    return layers.Conv2D(filters, 3, padding="same", name=name, **arguments)


def reason_of(q_model: Any, layer: str) -> str:
    return tfqil.placements(q_model)[layer].reason


def chain(*parts: Any) -> Any:
    """Applies layers one after the other."""

    def build(x: Any) -> Any:
        for part in parts:
            x = part(x)
        return x

    return build


class TestKernels:
    def test_kernels_take_the_config_and_edges_8_bits(self):
        found = placed(networks.plain())
        assert found["second"] == found["pointwise"] == found["hidden"] == (QIL_WEIGHTS, 3)
        assert found["first"] == found["last"] == (MAX_ABS, 8)

    def test_every_layer_that_reads_an_input_or_ends_at_an_output_is_an_edge(self):
        a, b = keras.Input((8, 8, 3), name="a"), keras.Input((8, 8, 3), name="b")
        x = layers.Add(name="add")([conv("from_a", activation="relu")(a), conv("from_b", activation="relu")(b)])
        x = conv("inside", activation="relu")(x)
        model = keras.Model([a, b], [conv("to_one")(x), layers.Softmax(name="soft")(conv("to_two")(x))])
        found = placed(model)
        edges = {name for name, quantizer in found.items() if quantizer == (MAX_ABS, 8)}
        assert edges == {"from_a", "from_b", "to_one", "to_two"} and found["inside"] == (QIL_WEIGHTS, 3)

    def test_edge_bits_choose_the_width_of_the_edges(self):
        found = placed(networks.plain(), edge_bits=5)
        assert found["first"] == found["last"] == (MAX_ABS, 5) and found["quantize_image"] == (RANGE, 5)

    def test_without_edge_bits_the_edges_stay_in_float(self):
        q_model = networks.quantized(networks.plain(), 3, 2, edge_bits=None)
        found = quantizers_of(q_model)
        assert not {"first", "last", "quantize_image", "quantize_last"} & set(found)
        assert found["second"] == (QIL_WEIGHTS, 3) and found["quantize_first_relu"] == (QIL, 2)
        assert "edge_bits is None" in reason_of(q_model, "first")

    def test_a_config_of_a_layer_overrides_the_scheme_for_it_alone(self):
        base = networks.plain()
        inputs = x = base.input
        for layer in base.layers[1:]:
            override = layer.name in ("second", "first")
            wrapped = qat.quantize_annotate_layer(layer, tfqil.QILQuantizeConfig(6, 5)) if override else layer
            x = wrapped(x)
        scheme = tfqil.LowBitScheme(tfqil.QILQuantizeConfig(3, 2))
        q_model = qat.quantize_apply(qat.quantize_annotate_model(keras.Model(inputs, x)), scheme)
        found = quantizers_of(q_model)
        assert found["second"] == found["first"] == (QIL_WEIGHTS, 6) and found["pointwise"] == (QIL_WEIGHTS, 3)
        # Its batch norm and ReLU are still taken into account: the tensor is quantized behind them.
        assert found["quantize_first_relu"] == (QIL, 5) and found["quantize_second_relu"] == (QIL, 2)
        assert reason_of(q_model, "second") == "config given for this layer"
        assert {"second_bn", "first_bn"} <= {layer.name for layer in q_model.layers}


class TestTensors:
    def test_a_tensor_is_quantized_once_behind_batch_norm_and_relu_which_the_clip_replaces(self):
        q_model = networks.quantized(networks.plain(), 3, 2)
        names = [layer.name for layer in q_model.layers]
        assert names[:5] == ["image", "quantize_image", "quant_first", "first_bn", "quantize_first_relu"]
        assert "first_relu" not in names and "second_relu" not in names
        assert reason_of(q_model, "first_relu") == "is the clip of quantize_first_relu"

    def test_a_tensor_takes_what_its_readers_ask_for(self):
        found = placed(networks.plain())
        assert found["quantize_first_relu"] == found["quantize_second_relu"] == (QIL, 2)
        assert found["quantize_image"] == (RANGE, 8) and found["quantize_last"] == (RANGE, 8)

    def test_a_tensor_that_edges_alone_read_has_8_bits(self):
        assert placed(networks.plain())["quantize_hidden_activation"] == (RANGE, 8)

    def test_value_keeping_layers_pass_the_grid_on(self):
        keeping = [
            layers.MaxPooling2D(2, name="pool"),
            layers.ZeroPadding2D(1, name="pad"),
            layers.Dropout(0.1, name="drop"),
            layers.Reshape((-1,), name="reshape"),
        ]
        body = chain(
            conv("a", activation="relu"),
            *keeping,
            layers.Dense(6, activation="relu", name="b"),
            layers.Dense(2, name="c"),
        )
        found = placed(model_of(body))
        assert found["quantize_a_activation"] == (QIL, 2)
        assert not [name for name in found if any(k in name for k in ("pool", "pad", "drop", "reshape"))]

    def test_signed_tensors_have_8_bits(self):
        body = chain(conv("a"), layers.BatchNormalization(name="bn"), conv("b", activation="relu"), conv("c"))
        q_model = networks.quantized(model_of(body), 3, 2)
        assert quantizers_of(q_model)["quantize_bn"] == (RANGE, 8) and "signed" in reason_of(q_model, "quantize_bn")

    def test_a_tensor_read_by_an_add_has_8_bits_and_its_low_bit_readers_share_one_quantizer(self):
        def body(x):
            x = conv("stem", activation="relu")(x)
            y = layers.Add(name="sum")([x, conv("one", activation="relu")(x), conv("two", activation="relu")(x)])
            return conv("end")(conv("next", activation="relu")(y))

        q_model = networks.quantized(model_of(body), 3, 2)
        found = quantizers_of(q_model)
        assert found["quantize_stem_activation"] == (RANGE, 8)
        between = [name for name in found if name.startswith("quantize_input_of")]
        assert len(between) == 1 and found[between[0]] == (QIL, 2)
        shared = q_model.get_layer(between[0])
        assert {node.layer.name for node in shared.outbound_nodes} == {"quant_one", "quant_two"}

    def test_an_output_that_low_bit_layers_read_too_has_8_bits(self):
        inputs = keras.Input((8, 8, 3))
        x = conv("b", activation="relu")(conv("a", activation="relu")(inputs))
        q_model = networks.quantized(keras.Model(inputs, [x, conv("d")(conv("c", activation="relu")(x))]), 3, 2)
        found = quantizers_of(q_model)
        assert found["quantize_b_activation"] == (RANGE, 8) and found["quantize_input_of_c"] == (QIL, 2)

    def test_the_residual_family(self):
        q_model = networks.quantized(networks.residual(), 3, 2)
        found = quantizers_of(q_model)
        assert found["quantize_stem_relu"] == (RANGE, 8) and found["quantize_input_of_one_a"] == (QIL, 2)
        assert found["quantize_one_a_relu"] == (QIL, 2)
        # Branches of an Add are signed and need a grid each; the sum is quantized behind its ReLU.
        assert found["quantize_one_b_bn"] == (RANGE, 8) and "quantize_one_add" not in found
        # Both readers of one_relu ask for low bits, and an Add cannot subtract a lower end.
        assert found["quantize_one_relu"] == (QIL, 2)
        assert q_model.get_layer("quantize_one_relu").quantizer.zero_lower
        assert not q_model.get_layer("quantize_one_a_relu").quantizer.zero_lower

    def test_the_depthwise_separable_family(self):
        found = placed(networks.separable())
        for name in ("depthwise", "pointwise", "separable_depthwise", "separable_pointwise"):
            assert found[name] == (QIL_WEIGHTS, 3)
        assert found["quantize_stem_relu"] == found["quantize_depthwise_relu"] == (QIL, 2)
        assert found["quantize_separable_depthwise"] == (RANGE, 8), "there is no ReLU between the two halves"

    def test_branches_of_a_concatenation_share_one_grid_behind_it(self):
        def body(x):
            x = conv("stem", activation="relu")(x)
            joined = layers.Concatenate(name="join")([conv("a", activation="relu")(x), conv("b", activation="relu")(x)])
            return conv("end")(conv("next", activation="relu")(joined))

        found = placed(model_of(body))
        assert found["quantize_join"] == (QIL, 2)
        assert not {"quantize_a_activation", "quantize_b_activation"} & set(found)

    @pytest.mark.parametrize("axis", [-1, 1])
    def test_branches_that_others_read_too_share_one_8_bit_grid(self, axis):
        def body(x):
            x = conv("stem", activation="relu")(x)
            joined = layers.Concatenate(axis=axis, name="join")([x, conv("a", activation="relu")(x)])
            return conv("end")(conv("next", activation="relu")(joined))

        q_model = networks.quantized(model_of(body), 3, 2)
        found = quantizers_of(q_model)
        shared = next(layer for layer in q_model.layers if getattr(layer, "sites", 1) == 2)
        assert found[shared.name] == (RANGE, 8) and "joined" in reason_of(q_model, shared.name)
        before = {node.layer.name for node in q_model.get_layer("join").inbound_nodes[-1].parent_nodes}
        assert before == {shared.name}, "both branches come from the one quantizer"
        assert found["quantize_input_of_next"] == (QIL, 2), "and its low-bit reader has a quantizer between"

    def test_a_branch_with_a_prescribed_grid_is_moved_to_the_shared_one(self):
        def body(x):
            joined = layers.Concatenate(name="join")([conv("a")(x), conv("b", activation="sigmoid")(x)])
            return conv("end")(joined)

        q_model = networks.quantized(model_of(body), 3, 2)
        assert quantizers_of(q_model)["quantize_b_activation"] == (FIXED, 8)
        shared = [layer for layer in q_model.layers if getattr(layer, "sites", 1) == 2]
        assert len(shared) == 1 and shared[0].quantizer.signed

    def test_slices_along_the_joints_are_the_branches(self):
        def body(x):
            joined = layers.Concatenate(name="join")([conv("a", 4)(x), conv("b", 6, activation="sigmoid")(x)])
            rows = layers.Reshape((-1, 10), name="rows")(joined)
            return [rows[..., :4], rows[:, :, 4:]]

        q_model = networks.quantized(model_of(body), 3, 2)
        names = [layer.name for layer in q_model.layers]
        assert "join" not in names and [o.shape[-1] for o in q_model.outputs] == [4, 6]
        assert quantizers_of(q_model)["quantize_b_activation"] == (FIXED, 8)

    def test_a_tensor_may_be_added_to_itself(self):
        found = placed(model_of(lambda x: conv("end")((lambda y: layers.Add(name="sum")([y, y]))(conv("a")(x)))))
        assert found["quantize_sum"] == (RANGE, 8)

    @pytest.mark.parametrize("function", ["sigmoid", "tanh", "softmax"])
    def test_functions_whose_grid_the_runtime_prescribes_get_it(self, function):
        q_model = networks.quantized(
            model_of(chain(conv("a", activation="relu"), conv("b"), layers.Activation(function, name="f")))
        )
        grid = q_model.get_layer("quantize_f").grid()
        assert quantizers_of(q_model)["quantize_f"] == (FIXED, 8)
        assert (grid.step, grid.zero) == ((1 / 128, 128) if function == "tanh" else (1 / 256, 0))
        assert "quantize_b" in quantizers_of(q_model), "the function reads integers"

    def test_relu6_keeps_its_upper_end(self):
        q_model = networks.quantized(
            model_of(chain(conv("a"), layers.ReLU(6.0, name="six"), conv("b", activation="relu"), conv("c")))
        )
        assert "six" not in [layer.name for layer in q_model.layers] and "quantize_six" in quantizers_of(q_model)
        assert q_model.get_layer("quantize_six").clips == ((0.0, 6.0),)

    @pytest.mark.parametrize(
        "pool", [layers.AveragePooling2D(2, name="p"), layers.GlobalAveragePooling2D(name="p", keepdims=True)]
    )
    def test_averages_have_a_grid_before_and_behind(self, pool):
        q_model = networks.quantized(
            model_of(chain(conv("a", activation="relu"), pool, conv("b", activation="relu"), conv("c"))), 3, 2
        )
        found = quantizers_of(q_model)
        assert found["quantize_a_activation"] == (RANGE, 8) and found["quantize_p"] == (QIL, 2)

    def test_a_batch_norm_on_its_own_has_a_grid_before_and_behind(self):
        body = chain(
            conv("a", activation="relu"), layers.MaxPooling2D(2), layers.BatchNormalization(name="bn"),
            layers.ReLU(name="r"), conv("b", activation="relu"), conv("c"),
        )  # fmt: skip
        found = placed(model_of(body))
        assert found["quantize_a_activation"] == (RANGE, 8) and found["quantize_r"] == (QIL, 2)

    def test_an_add_of_three_becomes_two_adds_with_a_grid_each(self):
        def body(x):
            x = conv("stem", activation="relu")(x)
            return conv("end")(layers.Add(name="sum")([x, conv("a")(x), conv("b")(x)]))

        q_model = networks.quantized(model_of(body))
        adds = [layer.name for layer in q_model.layers if isinstance(layer, layers.Add)]
        assert len(adds) == 2 and {f"quantize_{name}" for name in adds} <= set(quantizers_of(q_model))

    def test_inline_activations_become_layers_of_their_own(self):
        q_model = networks.quantized(
            model_of(
                chain(conv("a", activation="relu"), conv("b", activation="relu6"), conv("c", activation="softmax"))
            )
        )
        wrapped = [layer.layer for layer in q_model.layers if isinstance(layer, QuantizedLayer)]
        assert all(layer.activation is keras.activations.linear for layer in wrapped)
        names = {layer.name for layer in q_model.layers}
        assert {"quantize_a_activation", "quantize_b_activation", "c_activation"} <= names


class TestWholeModels:
    @pytest.mark.parametrize("family", networks.FAMILIES)
    def test_every_layer_is_in_the_report_with_a_reason(self, family):
        q_model = networks.quantized(networks.FAMILIES[family]())
        report = tfqil.placements(q_model)
        assert len([row for row in report if row.role != "clip"]) == len(q_model.layers)
        assert all(row.reason and row.role != "float" for row in report)
        for layer in q_model.layers:
            own = layer.layer.name if isinstance(layer, QuantizedLayer) else layer.name
            assert report[own].layer == own and own in str(report)
        assert report.to_dict()[0]["layer"] == report.rows[0].layer
        with pytest.raises(KeyError, match="Got the layer name 'nobody', expected one of"):
            report["nobody"]

    @pytest.mark.parametrize("family", networks.FAMILIES)
    def test_quantize_apply_gives_what_quantize_model_gives(self, family):
        model = networks.randomize_norms(networks.FAMILIES[family]())
        scheme = tfqil.LowBitScheme(tfqil.QILQuantizeConfig(3, 2))
        one = tfqil.quantize_model(model, scheme)
        other = qat.quantize_apply(qat.quantize_annotate_model(model), scheme)
        assert [layer.name for layer in one.layers] == [layer.name for layer in other.layers]
        assert tfqil.placements(one).rows == tfqil.placements(other).rows
        images = networks.digits(16)[0]
        np.testing.assert_array_equal(one(images), other(images))

    @pytest.mark.parametrize("family", networks.FAMILIES)
    def test_the_model_that_is_given_is_not_changed(self, family):
        model = networks.randomize_norms(networks.FAMILIES[family]())
        images = networks.digits(16)[0]
        config, weights, outputs = model.get_config(), model.get_weights(), model(images).numpy()
        q_model = networks.calibrated(model, 3, 2)
        q_model.compile("sgd", "mse", run_eagerly=True)
        q_model.fit(images, np.zeros((16, 10)), verbose=0)
        assert model.get_config() == config and len(model.weights) == len(weights)
        assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))
        np.testing.assert_array_equal(model(images), outputs)

    def test_a_sequential_model_is_quantized_like_a_functional_one(self):
        body = [conv("a", use_bias=False), layers.BatchNormalization(name="bn"), layers.ReLU(name="r"),
                layers.Flatten(), layers.Dense(8, activation="relu", name="b"), layers.Dense(3, name="c")]  # fmt: skip
        sequential = keras.Sequential([keras.Input((8, 8, 3)), *body])
        functional = keras.Model(sequential.inputs, sequential.outputs)
        assert placed(sequential).items() >= {"a": (MAX_ABS, 8), "b": (QIL_WEIGHTS, 3), "quantize_r": (QIL, 2)}.items()
        data = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype(np.float32)
        one, other = networks.quantized(sequential), networks.quantized(functional)
        np.testing.assert_array_equal(one(data), other(data))

    def test_several_inputs_and_outputs_keep_their_names_and_order(self):
        a, b = keras.Input((4,), name="a"), keras.Input((6,), name="b")
        x = layers.Concatenate()([layers.Dense(5, activation="relu")(a), layers.Dense(5, activation="relu")(b)])
        model = keras.Model([a, b], [layers.Dense(2, name="two")(x), layers.Dense(3, name="three")(x)])
        q_model = networks.quantized(model)
        assert q_model.input_names == ["a", "b"] and [o.shape[-1] for o in q_model.outputs] == [2, 3]
        outputs = q_model([np.ones((7, 4), np.float32), np.ones((7, 6), np.float32)])
        assert [tuple(o.shape) for o in outputs] == [(7, 2), (7, 3)]

    def test_a_layer_with_weights_that_is_called_twice_has_one_kernel_and_a_grid_per_call(self):
        shared = conv("shared", filters=3, activation="relu")
        q_model = networks.quantized(model_of(lambda x: conv("end")(shared(shared(conv("stem", filters=3)(x))))))
        assert sum(isinstance(layer, QuantizedLayer) for layer in q_model.layers) == 3
        assert len(q_model.get_layer("quant_shared").inbound_nodes) == 2
        assert {"quantize_shared_activation", "quantize_shared_2_activation"} <= set(quantizers_of(q_model))

    def test_calls_of_a_shared_layer_may_have_other_widths(self):
        def network(x):
            shared = conv("shared", filters=4)
            low = layers.ReLU(name="low")(shared(conv("a", filters=4, activation="relu")(x)))
            signed = shared(conv("b", filters=4)(x))
            return conv("end")(layers.Add(name="sum")([conv("reader", filters=4)(low), signed]))

        q_model = networks.quantized(model_of(network))
        bits = {row.layer: row.bits for row in tfqil.placements(q_model)}
        low, signed = (
            bits["quantize_low"],
            bits["quantize_shared_2" if "quantize_shared_2" in bits else "quantize_shared"],
        )
        assert low == bits["shared"] == 4 and signed == 8
        assert bits["quantize_a_activation"] == 4 and bits["quantize_b"] == 8

    def test_a_layer_called_twice_gets_a_grid_per_call(self):
        relu = layers.ReLU(name="relu")
        model = model_of(chain(conv("a"), relu, conv("b"), relu, conv("c")))
        names = [layer.name for layer in networks.quantized(model).layers if isinstance(layer, QuantizeActivation)]
        assert {"quantize_relu", "quantize_relu_2"} <= set(names)


class TestErrors:
    def test_a_keras_3_model(self):
        keras3 = pytest.importorskip("keras", minversion="3")
        model = keras3.Sequential([keras3.Input((3,)), keras3.layers.Dense(2)])
        with pytest.raises(
            TypeError, match="Got a Keras 3 model .*, expected a tf_keras model: rebuild it with tfqil.from_keras3"
        ):
            networks.quantized(model)

    def test_a_subclassed_model(self):
        class Own(keras.Model):
            def call(self, inputs):
                return inputs

        with pytest.raises(TypeError, match="Got the subclassed model .*Own.*expected a Functional or Sequential one"):
            networks.quantized(Own())

    def test_an_unbuilt_sequential_model(self):
        with pytest.raises(ValueError, match="Got the unbuilt Sequential model .*, expected a built one: give it"):
            networks.quantized(keras.Sequential([layers.Dense(2)]))

    def test_no_model(self):
        with pytest.raises(TypeError, match="Got int, expected a tf_keras Functional or Sequential model"):
            networks.quantized(3)

    def test_a_model_that_is_quantized_already(self):
        with pytest.raises(ValueError, match="quantized already, expected a float model"):
            networks.quantized(networks.quantized(networks.dense()))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"weight_bits": 1}, "Got weight_bits=1, expected 2 to 8"),
            ({"activation_bits": 2.5}, "Got activation_bits=2.5, expected an integer"),
        ],
    )
    def test_bad_widths_name_the_argument(self, arguments, message):
        with pytest.raises((TypeError, ValueError), match=message):
            tfqil.QILQuantizeConfig(**arguments)

    def test_bad_arguments_of_the_scheme(self):
        with pytest.raises(TypeError, match="Got 4 as config, expected a LowBitQuantizeConfig"):
            tfqil.LowBitScheme(4)
        with pytest.raises(ValueError, match="Got edge_bits=1, expected 2 to 8"):
            tfqil.LowBitScheme(tfqil.QILQuantizeConfig(), edge_bits=1)

    def test_quantizers_of_other_kinds_are_refused(self):
        with pytest.raises(TypeError, match="expected a tfqil WeightQuantizer"):
            tfqil.LowBitQuantizeConfig(weights=tfqil.quantizers.QILActivationQuantizer())

    def test_a_config_of_tfmot_s_own_kind_on_a_layer_is_refused(self):
        from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
            default_8bit_quantize_configs as eight,
        )

        config = eight.Default8BitOutputQuantizeConfig()
        inputs = keras.Input((8, 8, 3))
        model = keras.Model(inputs, conv("b")(qat.quantize_annotate_layer(conv("a"), config)(inputs)))
        with qat.quantize_scope(), pytest.raises(TypeError, match="for layer 'a', expected a LowBitQuantizeConfig"):
            tfqil.quantize_model(model, tfqil.QILQuantizeConfig())


def test_the_slope_of_a_leaky_relu_is_reported_and_a_warning_says_where_it_vanishes(caplog):
    inputs = layers.Input((8, 8, 1))
    x = inputs
    for name, slope in (("usual", 0.3), ("small", 0.001), ("none", 0.0)):
        x = layers.LeakyReLU(slope, name=name)(layers.Conv2D(4, 3)(x))
    with caplog.at_level("WARNING"):
        q_model = tfqil.quantize_model(keras.Model(inputs, layers.Conv2D(2, 1)(x)), tfqil.QILQuantizeConfig(4, 8))
    rows = tfqil.placements(q_model)
    assert rows["usual"].reason == "its slope is 77/256: the runtime has multiples of 1/256"
    (message,) = [record.getMessage() for record in caplog.records]
    assert "the slope 0.001 of 'small' becomes 0" in message
