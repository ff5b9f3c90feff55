"""The learned resolution of activations: its guards, its rate of learning, and the data that set it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.quantizers.holder import Holder, after_huge_steps
from tfqil.numerics.adaptive_activation import half_normal_step
from tfqil.numerics.grid import activation_levels
from tfqil.quantizers import AdaptiveActivationQuantizer
from tfqil.quantizers.observation import FIRST_BATCHES, Observation

QUANTIZERS = [
    AdaptiveActivationQuantizer(),
    AdaptiveActivationQuantizer(bits=1, ste="relu", step_gradient="two_valued"),
    AdaptiveActivationQuantizer(bits=8, step_gradient="exact", step_rate=1.0),
    AdaptiveActivationQuantizer(bits=2, zero_lower=True),
]
each_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS, ids=repr)


def calibrated(quantizer: AdaptiveActivationQuantizer, step: float) -> Holder:
    """A holder whose step is given and no longer set by batches."""
    holder = Holder(quantizer)
    holder.variables_of_quantizer["step"].assign(step)
    holder.variables_of_quantizer["observed_batches"].assign(FIRST_BATCHES)
    return holder


def gradient_of_step(holder: Holder, inputs: list[float], upstream: float) -> float:
    with tf.GradientTape() as tape:
        output = holder(tf.constant([inputs]), training=True)
    step = holder.variables_of_quantizer["step"]
    return float(tape.gradient(output, step, output_gradients=tf.fill(output.shape, upstream)))


@each_quantizer
class TestGuards:
    @pytest.mark.parametrize("value", [-3.0, 0.0, 1e-30, np.nan, np.inf, -np.inf])
    def test_a_step_that_was_assigned_badly_is_the_smallest_one(self, quantizer, value):
        holder = calibrated(quantizer, value)
        grid = holder.grid()
        assert grid.step == np.float32(1e-5)
        output = holder(tf.constant([[-1.0, 0.0, 1.0, 1e30]]), training=True).numpy()
        np.testing.assert_allclose(output, [[0, 0, grid.maximum, grid.maximum]], rtol=1e-6)

    @pytest.mark.parametrize(("optimizer", "jit"), [("adam", False), ("sgd", True)], ids=["adam", "sgd xla"])
    def test_huge_gradients_leave_the_step_positive_and_finite(self, quantizer, optimizer, jit):
        holder = Holder(quantizer)
        for _ in after_huge_steps(holder, optimizer, jit=jit, directions=(-1.0, 1.0, np.nan)):
            (step,) = holder.trainable_variables
            assert np.isfinite(step) and step >= 1e-5 and np.isfinite(holder.grid().maximum)

    def test_nan_inputs_do_not_reach_the_step(self, quantizer):
        holder = Holder(quantizer)
        before = holder.grid()
        for _ in after_huge_steps(holder, "sgd", directions=(1.0,), inputs=np.full((8, 4), np.nan, np.float32)):
            assert holder.grid() == before

    def test_a_step_at_the_floor_can_grow_again(self, quantizer):
        assert gradient_of_step(calibrated(quantizer, 1e-5), [5.0, 6.0], upstream=-1.0) < 0


class TestRateOfLearning:
    @pytest.mark.parametrize(
        ("step_gradient", "factors"), [("exact", 2 + 4 + 15), ("three_valued", 8 + 8 + 15), ("two_valued", 15)]
    )
    @pytest.mark.parametrize("step_rate", [0.01, 1e-3])
    def test_the_gradient_of_the_step_is_the_coarse_one_times_the_rate(self, step_gradient, factors, step_rate):
        quantizer = AdaptiveActivationQuantizer(step_gradient=step_gradient, step_rate=step_rate)
        holder = calibrated(quantizer, 0.5)
        # Codes 0, 0, 2, 4, 15; the last one beyond the upper end of 7.5.
        found = gradient_of_step(holder, [-1.0, 0.0, 0.9, 1.9, 9.0], upstream=0.5)
        assert found == pytest.approx(step_rate * 0.5 * factors, rel=1e-6)

    @pytest.mark.parametrize(("upstream", "expected"), [(1e3, 1.0), (-1e30, -1.0), (np.nan, 0.0)])
    def test_the_gradient_of_the_step_is_at_most_1_and_never_nan(self, upstream, expected):
        assert gradient_of_step(calibrated(AdaptiveActivationQuantizer(), 0.5), [0.9, 9.0], upstream) == expected

    def test_the_gradient_of_the_inputs_has_the_rate_of_the_network(self):
        inputs = tf.constant([[-1.0, 0.0, 0.9, 7.5, 9.0]])
        for ste, expected in {
            "identity": [1, 1, 1, 1, 1],
            "relu": [0, 0, 1, 1, 1],
            "clipped_relu": [0, 0, 1, 1, 0],
        }.items():
            holder = calibrated(AdaptiveActivationQuantizer(ste=ste), 0.5)
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                output = holder(inputs, training=True)
            np.testing.assert_array_equal(tape.gradient(output, inputs), [expected])


class TestFirstBatches:
    @each_quantizer
    def test_the_step_is_the_half_normal_one_of_the_positive_inputs(self, quantizer):
        holder, random = Holder(quantizer), np.random.default_rng(0)
        for spread in (0.3, 0.4, 0.5, 0.6):  # Their mean is 0.45.
            holder(tf.constant(random.normal(0, spread, (500, 40)).astype(np.float32)), training=True)
        expected = half_normal_step(tf.constant(0.45), bits=quantizer.bits)
        # 10,000 positive entries a batch: their root mean square is off by 1 / sqrt(20,000), the mean of four by half.
        assert holder.grid().step == pytest.approx(float(expected), rel=4 * 0.007 / 2)

    def test_zeros_and_negative_entries_do_not_count(self):
        steps = []
        for others in ([], [0.0] * 7, [-5.0] * 7):
            holder = Holder(AdaptiveActivationQuantizer())
            holder(tf.constant([[3.0, 4.0, *others]]), training=True)
            steps.append(holder.grid().step)
        assert steps == [pytest.approx(0.1932 * np.sqrt(12.5), rel=1e-6)] * 3

    def test_a_batch_without_positive_entries_changes_nothing(self):
        holder = calibrated(AdaptiveActivationQuantizer(), 0.5)
        holder.variables_of_quantizer["observed_batches"].assign(0)
        holder(tf.constant([[-1.0, 0.0]]), training=True)
        assert holder.grid().step == 0.5

    def test_calibrated_steps_stay(self):
        holder = calibrated(AdaptiveActivationQuantizer(), 0.5)
        holder(tf.constant([[30.0, 40.0]]), training=True)
        assert holder.grid().step == 0.5

    @pytest.mark.parametrize("value", [1e-30, 1e-3, 1.0, 1e30])
    def test_the_root_mean_square_is_that_of_the_positive_entries_at_any_size(self, value):
        inputs = np.float32([0, -7, 3, 4, 0]) * np.float32(value)
        found = Observation(tf.constant(inputs)).positive_root_mean_square
        assert float(found) == pytest.approx(np.sqrt(12.5) * value, rel=1e-6)

    @pytest.mark.parametrize("inputs", [[0.0, 0.0], [-1.0, 0.0], [np.nan, np.inf]])
    def test_the_root_mean_square_of_nothing_is_0(self, inputs):
        assert float(Observation(tf.constant(inputs)).positive_root_mean_square) == 0


def test_the_grid_before_any_data_ends_where_relu6_does():
    for quantizer in QUANTIZERS:
        grid = Holder(quantizer).grid()
        assert grid.maximum == pytest.approx(6.0) and grid.highest == activation_levels(quantizer.bits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ste": "tanh"}, "Got ste='tanh', expected 'identity', 'relu', 'clipped_relu': choose one."),
        (
            {"step_gradient": "pact"},
            "Got step_gradient='pact', expected 'exact', 'three_valued', 'two_valued': choose one.",
        ),
        *(
            ({"step_rate": rate}, f"Got step_rate={rate!r}, expected a positive number: 0.01 is the authors'.")
            for rate in (0.0, -1.0, np.nan, np.inf)
        ),
    ],
    ids=str,
)
def test_bad_arguments_raise_one_sentence(arguments, message):
    with pytest.raises(ValueError) as error:
        AdaptiveActivationQuantizer(**arguments)
    assert str(error.value) == message
