"""A limit does what clipping the tensor first did: the same values, and the same gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests.quantizers.holder import Holder
from tfqil import quantizers

LIMITED = [
    quantizers.QILActivationQuantizer(bits=3, zero_lower=True),
    quantizers.AdaptiveActivationQuantizer(bits=3, zero_lower=True),
    quantizers.RangeActivationQuantizer(signed=False),
]
# Around the limit, and around the ends of intervals on both sides of it.
VALUES = np.concatenate([np.linspace(-2, 9, 997), [0.0, 6.0, 5.9999995, 6.0000005]]).astype(np.float32)


def computed(quantizer: Any, upper_end: float, values: tf.Tensor) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The output for a grid up to an upper end, and the gradients of the inputs and the variables."""
    holder = Holder(quantizer)
    levels = 2**quantizer.bits - 1
    for name, value in (("half_width", upper_end / 2), ("step", upper_end / levels), ("maximum", upper_end)):
        if name in holder.variables_of_quantizer:
            holder.variables_of_quantizer[name].assign(value)
    slopes = tf.constant(np.random.default_rng(0).normal(size=values.shape), tf.float32)
    inputs = tf.Variable(values)
    trained = [v for name, v in holder.variables_of_quantizer.items() if name in ("half_width", "step")]
    with tf.GradientTape() as tape:
        seen = inputs if quantizer.limit is not None else tf.minimum(inputs, 6.0)
        outputs = holder(seen)
    first, *others = tape.gradient(outputs, [inputs, *trained], output_gradients=slopes)
    return outputs.numpy(), first.numpy(), [other.numpy() for other in others]


@pytest.mark.parametrize("quantizer", LIMITED, ids=lambda quantizer: quantizer.label)
@pytest.mark.parametrize("upper_end", [2.0, 5.0, 6.0])
def test_a_grid_below_the_limit_is_that_of_a_clipped_tensor(quantizer, upper_end):
    expected = computed(quantizer, upper_end, VALUES)
    found = computed(quantizer.within(6.0), upper_end, VALUES)
    np.testing.assert_array_equal(found[0], expected[0])
    # At 6 itself, and half a step beyond, a gradient may be either of two.
    apart = np.abs(VALUES - 6.0) > (0.02 if upper_end == 6.0 else 1e-6)
    np.testing.assert_array_equal(found[1][apart], expected[1][apart])
    for one, other in zip(found[2], expected[2], strict=True):
        if upper_end < 6.0:
            np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("quantizer", LIMITED, ids=lambda quantizer: quantizer.label)
def test_no_grid_ends_beyond_its_limit(quantizer):
    holder = Holder(quantizer.within(6.0))
    for name in ("half_width", "step", "maximum"):
        if name in holder.variables_of_quantizer and name != "maximum":
            holder.variables_of_quantizer[name].assign(9.0)
    assert holder.grid().maximum <= 6.0 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("quantizer", "why"),
    [
        (quantizers.QILActivationQuantizer(bits=4), "a lower end would move with the limit"),
        (quantizers.AdaptiveActivationQuantizer(bits=4), "the last level of a ceil begins below the limit"),
        (quantizers.AdaptiveActivationQuantizer(bits=4, zero_lower=True, ste="relu"), "gradients pass beyond"),
        (quantizers.FixedActivationQuantizer(), "its grid is prescribed"),
    ],
    ids=str,
)
def test_others_are_handed_clipped_tensors(quantizer, why):
    assert quantizer.within(6.0).limit is None, why


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), "6", True])
@pytest.mark.parametrize("quantizer", LIMITED, ids=lambda quantizer: quantizer.label)
def test_a_limit_that_is_none_is_refused(quantizer, limit):
    with pytest.raises(ValueError, match="expected a positive number or None: 6.0 is that of a ReLU6"):
        quantizer.within(limit)


def test_a_limit_needs_a_grid_that_begins_at_zero():
    for kind in (quantizers.QILActivationQuantizer, quantizers.AdaptiveActivationQuantizer):
        with pytest.raises(ValueError, match="without zero_lower, expected both or none: pass zero_lower=True"):
            kind(bits=4, limit=6.0)


def test_more_bits_keep_the_highest_level_behind_a_relu6():
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(8), keras.layers.ReLU(6.0), keras.layers.Dense(8), keras.layers.Dense(3)]
    )
    q_model = tfqil.quantize_model(model, tfqil.LowBitScheme(tfqil.BCGDQuantizeConfig(2, 2), edge_bits=8))
    tfqil.calibrate(q_model, np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32))

    def relu6(model: Any) -> Any:
        (layer,) = [one for one in model.layers if getattr(one, "quantizer", None) and one.quantizer.limit == 6.0]
        return layer

    relu6(q_model).quantizer_variables["step"].assign(2.0)
    more = tfqil.with_bits(q_model, 4, 4, intervals="keep")
    # Steps have 16 significant bits.
    np.testing.assert_allclose(relu6(more).grid().maximum, 6.0, rtol=2.0**-17)
