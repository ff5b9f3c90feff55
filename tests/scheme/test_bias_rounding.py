"""Inference rounds the bias as the file stores it, before the function that clips the accumulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tf_keras as keras

from tests import networks

layers = keras.layers


def with_activation(activation: str, bias: float) -> tuple[Any, np.ndarray]:
    """A quantized model whose inner layer has one bias for all channels, calibrated; and data."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, activation="relu", name="a")(inputs)
    x = layers.Conv2D(4, 1, activation=activation, name="b")(x)
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="c")(x))
    model.get_layer("b").bias.assign(np.full(4, bias, np.float32))
    data = np.random.default_rng(0).normal(0, 1, (100, 6, 6, 2)).astype(np.float32)
    return networks.calibrated_on(model, data, 2, 2), data


@pytest.mark.parametrize("share", [-0.45, -0.2, 0.2, 0.45])
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_what_a_relu_sends_to_0_stays_0_whatever_the_bias_is_rounded_to(activation, share):
    q_model, data = with_activation(activation, 0.0)
    wrapper = q_model.get_layer("quant_b")
    unit = q_model.get_layer("quantize_a_activation").grid().step * float(wrapper.grid().step)
    wrapper.layer.bias.assign(np.full(4, share * unit, np.float32))  # The file stores 0 of these units.
    quantizer = q_model.get_layer("quantize_b_activation")
    codes = np.rint(tensors(q_model, data)[quantizer.name] / quantizer.grid().step)
    expected = np.rint(np.clip(accumulator(q_model, data) * unit / quantizer.grid().step, 0, quantizer.grid().highest))
    different = np.count_nonzero(codes != expected)
    assert not different, f"{different} of {codes.size} codes are not those of the rounded bias"


def tensors(q_model: Any, data: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of all layers of a model without branches."""
    outputs, values = {}, data
    for layer in q_model.layers[1:]:
        values = layer(values, training=False) if layer.name.startswith("qua") else layer(values)
        outputs[layer.name] = values.numpy()
    return outputs


def accumulator(q_model: Any, data: np.ndarray) -> np.ndarray:
    """Sums of products of integers in layer b; its bias is 0 units."""
    step = q_model.get_layer("quantize_a_activation").grid().step
    codes = np.rint(tensors(q_model, data)["quantize_a_activation"] / step)
    return codes @ q_model.get_layer("quant_b").grid().codes[0, 0]
