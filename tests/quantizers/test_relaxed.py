"""BinaryRelax around every kind of weight quantizer: training, inference, gradients, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.quantizers.holder import Holder, after_huge_steps, normal_kernel
from tfqil import quantizers
from tfqil.quantizers import BinaryRelax

INNER = [
    quantizers.BinaryWeightQuantizer(),
    quantizers.TernaryWeightQuantizer(per_channel=True),
    quantizers.UniformWeightQuantizer(bits=3),
    quantizers.LBWWeightQuantizer(bits=4),
    quantizers.MaxAbsWeightQuantizer(bits=4),
    quantizers.QILWeightQuantizer(bits=2, per_channel=True, train_gamma=True),
]


def relaxed(inner: quantizers.WeightQuantizer, strength: float = np.inf, kernel: np.ndarray | None = None) -> Holder:
    holder = Holder(BinaryRelax(inner), normal_kernel((20, 6)) if kernel is None else kernel)
    holder.initialize()
    holder.variables_of_quantizer["relaxation"].assign(strength)
    return holder


def hard(inner: quantizers.WeightQuantizer) -> Holder:
    """The inner quantizer on its own."""
    holder = Holder(inner, normal_kernel((20, 6)))
    holder.initialize()
    return holder


def outputs_and_gradients(holder: Holder) -> tuple[np.ndarray, list[np.ndarray]]:
    """The training forward, and the gradients of kernel and quantizer for a fixed upstream."""
    upstream = tf.constant(normal_kernel((20, 6), seed=1))
    with tf.GradientTape() as tape:
        output = holder.quantized(True)
    gradients = tape.gradient(output, holder.trainable_variables, output_gradients=upstream)
    return output.numpy(), [gradient.numpy() for gradient in gradients]


@pytest.mark.parametrize("inner", INNER, ids=repr)
class TestEveryInnerQuantizer:
    @pytest.mark.parametrize("strength", [0.0, 0.5, 359.0])
    def test_training_sees_the_interpolation_and_inference_the_grid(self, inner, strength):
        holder = relaxed(inner, strength)
        kernel, quantized = holder.kernel.numpy().astype(np.float64), holder.quantized(False).numpy()
        expected = (kernel + strength * quantized) / (1 + strength)
        # Two shares and a sum, each rounded to half an ulp; where they cancel the error is of the terms.
        np.testing.assert_allclose(holder.quantized(True), expected, rtol=3e-7, atol=3e-7 * np.abs(kernel).max())
        np.testing.assert_array_max_ulp(quantized, holder.grid().values, 1)
        np.testing.assert_array_equal(quantized, hard(inner).quantized(False))

    def test_the_grid_is_that_of_the_inner_quantizer_at_any_lambda(self, inner):
        for strength in (0.0, 3.0, np.inf):
            grid, own = relaxed(inner, strength).grid(), hard(inner).grid()
            np.testing.assert_array_equal(grid.codes, own.codes)
            np.testing.assert_array_equal(grid.step, own.step)

    def test_an_infinite_lambda_is_the_inner_quantizer_bit_for_bit_with_its_gradients(self, inner):
        output, gradients = outputs_and_gradients(relaxed(inner))
        expected, own = outputs_and_gradients(hard(inner))
        assert output.tobytes() == expected.tobytes()
        for found, wanted in zip(gradients, own, strict=True):
            np.testing.assert_array_equal(found, wanted)

    @pytest.mark.parametrize("strength", [0.0, 2.0])
    def test_gradients_are_blended_like_the_weights(self, inner, strength):
        _, (in_kernel, *in_variables) = outputs_and_gradients(relaxed(inner, strength))
        _, (own_in_kernel, *own_in_variables) = outputs_and_gradients(hard(inner))
        theta = strength / (1 + strength)
        # Unchanged where the inner quantizer passes the gradient straight through.
        upstream = normal_kernel((20, 6), seed=1)
        np.testing.assert_allclose(in_kernel, (1 - theta) * upstream + theta * own_in_kernel, rtol=1e-6, atol=1e-7)
        for found, wanted in zip(in_variables, own_in_variables, strict=True):
            # Sums of 20 float32 terms of either sign.
            np.testing.assert_allclose(found, theta * wanted, rtol=1e-5, atol=1e-5)

    def test_lambda_is_saved_but_not_trained(self, inner):
        holder = relaxed(inner, 3.0)
        (strength,) = (v for v in holder.non_trainable_variables if "relaxation" in v.name)
        assert strength is holder.variables_of_quantizer["relaxation"] and strength.dtype == tf.float32
        assert {v.name for v in holder.trainable_variables} == {v.name for v in hard(inner).trainable_variables}

    def test_a_new_lambda_needs_no_new_graph(self, inner):
        holder = relaxed(inner, 0.0)
        traces = []

        @tf.function(jit_compile=True)
        def train():
            traces.append(1)
            return holder.quantized(True)

        for strength in (0.0, 2.0, np.inf):
            holder.variables_of_quantizer["relaxation"].assign(strength)
            # Compiled sums of 120 float32 terms, and a product and a sum that XLA may fuse.
            np.testing.assert_allclose(train(), holder.quantized(True), rtol=2e-6, atol=1e-7)
        assert len(traces) == 1


def test_without_a_schedule_training_is_the_inner_quantizers_own():
    holder = Holder(BinaryRelax(quantizers.TernaryWeightQuantizer()), normal_kernel())
    assert float(holder.variables_of_quantizer["relaxation"]) == -np.inf
    np.testing.assert_array_equal(holder.quantized(True), holder.quantized(False))


def test_what_is_not_told_to_train_is_inference():
    holder = relaxed(quantizers.TernaryWeightQuantizer(), 1.0)
    np.testing.assert_array_equal(holder.quantized(None), holder.quantized(False))


def test_broken_entries_are_those_of_the_inner_quantizer_in_phase_two():
    kernel = normal_kernel((20, 6))
    kernel[1, 0], kernel[2, 1] = np.nan, np.inf
    holder = relaxed(quantizers.BinaryWeightQuantizer(), kernel=kernel)
    assert np.all(np.isfinite(holder.quantized(True)))
    np.testing.assert_array_equal(holder.quantized(True), holder.quantized(False))


def test_a_kernel_of_zeros_stays_zero_at_any_lambda():
    for inner in INNER:
        for strength in (0.0, 1.0, np.inf):
            holder = relaxed(inner, strength, np.zeros((4, 6), np.float32))
            assert np.all(holder.quantized(True).numpy() == 0) and np.all(holder.grid().codes == 0)


@pytest.mark.parametrize("strength", [0.5, np.inf])
def test_huge_gradients_leave_a_relaxed_interval_valid(strength):
    holder = relaxed(quantizers.QILWeightQuantizer(bits=3), strength)
    for _ in after_huge_steps(holder, "sgd", directions=(-1.0, 1.0, np.nan)):
        center, half_width = (float(holder.variables_of_quantizer[name]) for name in ("center", "half_width"))
        assert np.isfinite(center) and center >= half_width > 0
        assert float(holder.variables_of_quantizer["relaxation"]) == strength


def test_initialize_fits_the_inner_quantizer():
    inner = quantizers.QILWeightQuantizer(bits=3, per_channel=True)
    for name in ("center", "half_width"):
        found, wanted = (holder.variables_of_quantizer[name] for holder in (relaxed(inner), hard(inner)))
        np.testing.assert_array_equal(found, wanted)


def test_the_inner_quantizer_may_be_named():
    inner = quantizers.LBWWeightQuantizer(bits=6)
    assert BinaryRelax(inner=inner) == BinaryRelax(inner) and BinaryRelax(inner).bits == 6


@pytest.mark.parametrize(
    "bad", [4, None, "ternary", quantizers.TernaryWeightQuantizer, quantizers.QILActivationQuantizer()]
)
def test_what_is_no_weight_quantizer_is_refused(bad):
    with pytest.raises(TypeError) as error:
        BinaryRelax(bad)
    assert str(error.value) == (
        f"Got {bad!r} to relax, expected a tfqil WeightQuantizer, such as those of tfqil.quantizers: pass an instance."
    )


def test_relaxing_twice_is_refused():
    with pytest.raises(ValueError) as error:
        BinaryRelax(BinaryRelax(quantizers.BinaryWeightQuantizer()))
    assert str(error.value) == "Got a BinaryRelax to relax, expected another quantizer: relax it once."


def test_relaxing_a_normalized_quantizer_is_refused():
    with pytest.raises(ValueError, match="Got a quantizer with normalized=True to relax, .*: leave normalized out"):
        BinaryRelax(quantizers.QILWeightQuantizer(normalized=True))
