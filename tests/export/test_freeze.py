"""Freezing gives the integers that the network computes with, and the file holds them."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras

import tfqil
from tests import networks
from tests.export import parity
from tfqil.scheme import QuantizedLayer


def test_every_kernel_is_frozen_under_its_name_in_the_float_model(small_model):
    assert set(tfqil.freeze(small_model)) == {"stem", "separable_depthwise", "separable_pointwise", "last"}


def test_frozen_values_are_the_weights_of_inference_bit_for_bit(small_model):
    frozen = tfqil.freeze(small_model)
    for layer in small_model.layers:
        if isinstance(layer, QuantizedLayer):
            grid = frozen[layer.layer.name]
            used = layer.weight_quantizer(layer.kernel, False, weights=layer.quantizer_variables).numpy()
            np.testing.assert_array_equal(used, grid.values)
            assert grid.codes.shape == layer.kernel.shape and grid.codes.dtype == np.int32
            assert grid.bits <= layer.weight_quantizer.bits


def test_the_file_holds_the_frozen_integers_with_opposite_signs_where_gamma_is_negative(small_model, small_file):
    signs = parity.folded_signs(small_model)
    assert {-1, 0, 1} <= set(np.concatenate([s.ravel() for s in signs.values()]))
    parity.require_trained_integers(small_model, small_file)


def test_other_integers_in_the_file_would_be_noticed(small_model, small_file, images):
    del images
    other = keras.models.clone_model(small_model)
    other.set_weights(small_model.get_weights())
    kernel = other.get_layer("quant_separable_pointwise").kernel
    kernel.assign(-kernel)
    with pytest.raises(AssertionError, match="separable_pointwise: .* integers are not the trained ones"):
        parity.require_trained_integers(other, small_file)


def test_freezing_changes_nothing(small_model):
    before = small_model.get_weights()
    tfqil.freeze(small_model)
    assert all(np.array_equal(a, b) for a, b in zip(small_model.get_weights(), before, strict=True))


def test_a_float_model_is_refused():
    with pytest.raises(ValueError, match="Got the float model 'dense', expected a quantized one: pass it through"):
        tfqil.freeze(networks.dense())
