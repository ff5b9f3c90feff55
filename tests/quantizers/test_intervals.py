"""Learned intervals: where they start, and that no gradient and no broken number makes them invalid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tests.quantizers.holder import Holder, after_huge_steps, normal_kernel
from tfqil import quantizers
from tfqil.numerics.grid import weight_levels
from tfqil.quantizers.observation import FIRST_BATCHES

WEIGHTS = [
    quantizers.QILWeightQuantizer(),
    quantizers.QILWeightQuantizer(bits=2, per_channel=True),
    quantizers.QILWeightQuantizer(bits=3, train_gamma=True),
    quantizers.QILWeightQuantizer(bits=8, normalized=True, per_channel=True, train_gamma=True),
]
ACTIVATIONS = [
    quantizers.QILActivationQuantizer(),
    quantizers.QILActivationQuantizer(bits=2),
    quantizers.QILActivationQuantizer(bits=4, normalized=True),
    quantizers.QILActivationQuantizer(bits=3, zero_lower=True),
]


@pytest.mark.parametrize("quantizer", WEIGHTS, ids=repr)
class TestEveryLearnedWeightQuantizer:
    def test_initialize_minimises_the_squared_error(self, quantizer):
        kernel = normal_kernel((3, 3, 400, 6)) * np.float32([1, 2, 3, 0.1, 0.5, 10])
        holder = Holder(quantizer, kernel)
        holder.initialize()
        variables = holder.variables_of_quantizer
        upper = (variables["center"] + variables["half_width"]).numpy()
        np.testing.assert_array_equal(variables["center"], variables["half_width"])
        levels = weight_levels(quantizer.bits)

        def error(scale):
            step = scale * upper / levels
            return ((kernel - np.clip(np.rint(kernel / step), -levels, levels) * step) ** 2).sum()

        best = min(error(scale) for scale in np.linspace(0.7, 1.3, 121))
        # The search's own candidates are 1.6 % apart, and it sees a histogram, not the entries.
        assert error(1.0) <= 1.05 * best, f"{error(1.0) / best:.3f} times the least squared error"

    @pytest.mark.parametrize(("optimizer", "jit"), [("adam", False), ("sgd", True)], ids=["adam", "sgd xla"])
    def test_huge_gradients_leave_the_interval_valid(self, quantizer, optimizer, jit):
        holder = Holder(quantizer, normal_kernel((4, 6)))
        for _ in after_huge_steps(holder, optimizer, jit=jit, directions=(-1.0, 1.0)):
            require_valid_interval(holder)
            step = holder.grid().step
            assert np.all(step > 0) and np.all(np.isfinite(step))

    def test_a_step_beyond_the_boundary_is_projected_and_keeps_the_upper_end(self, quantizer):
        require_projection_keeps_the_upper_end(Holder(quantizer, normal_kernel((4, 6))).variables_of_quantizer)

    def test_a_nan_kernel_does_not_reach_the_interval(self, quantizer):
        kernel = normal_kernel((4, 6))
        kernel[1, 2] = np.nan
        holder = Holder(quantizer, kernel)
        for _ in after_huge_steps(holder, "sgd", directions=(np.nan,)):
            require_valid_interval(holder)


@pytest.mark.parametrize("quantizer", ACTIVATIONS, ids=repr)
class TestEveryLearnedActivationQuantizer:
    @pytest.mark.parametrize(("optimizer", "jit"), [("adam", False), ("sgd", True)], ids=["adam", "sgd xla"])
    def test_huge_gradients_leave_the_interval_valid(self, quantizer, optimizer, jit):
        holder = Holder(quantizer)
        for _ in after_huge_steps(holder, optimizer, jit=jit, directions=(-1.0, 1.0, np.nan)):
            require_valid_interval(holder)
            grid = holder.grid()
            assert grid.step > 0 and grid.lower >= 0 and np.isfinite(grid.maximum)

    def test_a_step_beyond_the_boundary_is_projected_and_keeps_the_upper_end(self, quantizer):
        if not quantizer.zero_lower:
            require_projection_keeps_the_upper_end(Holder(quantizer).variables_of_quantizer)

    def test_nan_inputs_do_not_reach_the_interval(self, quantizer):
        holder = Holder(quantizer)
        for _ in after_huge_steps(holder, "sgd", directions=(1.0,), inputs=np.full((8, 4), np.nan, np.float32)):
            require_valid_interval(holder)

    def test_the_upper_end_is_learned_by_a_straight_path(self, quantizer):
        """Clipped entries pull the interval up when the loss wants larger outputs."""
        holder = Holder(quantizer)
        holder.variables_of_quantizer["observed_batches"].assign(FIRST_BATCHES)
        with tf.GradientTape() as tape:
            output = holder(tf.fill((4, 4), 100.0), training=True)
            loss = -tf.reduce_sum(output)
        found = tape.gradient(loss, holder.variables_of_quantizer["half_width"])
        assert (float(found) < 0) != quantizer.normalized  # The paper's form does not move for clipped entries.


def require_projection_keeps_the_upper_end(variables: Mapping[str, Any]) -> None:
    """Raises unless an optimizer step to center 0.8, half_width 1.2 ends at the nearest interval, [0, 2]."""
    both = [variables[name] for name in ("center", "half_width")]
    for variable in both:
        variable.assign(tf.ones_like(variable))
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.apply_gradients(zip([tf.fill(both[0].shape, 0.2), tf.fill(both[0].shape, -0.2)], both, strict=True))
    center, half_width = (variable.numpy() for variable in both)
    np.testing.assert_allclose(center + half_width, 2.0, rtol=1e-6, err_msg="the upper end moved")
    np.testing.assert_allclose(center - half_width, 0.0, atol=1e-6, err_msg="the lower end is not 0")


def require_valid_interval(holder: Holder) -> None:
    """Raises unless the variables, not only what is computed from them, are a finite interval with a width."""
    values = holder.values()
    for name, value in values.items():
        assert np.all(np.isfinite(value)), f"{name} is {value}"
    assert np.all(values["half_width"] > 0), f"half_width is {values['half_width']}"
    if "center" in values:
        lower = values["center"] - values["half_width"]
        assert np.all(lower >= 0), f"the lower end is {lower}"
    if "gamma" in values:
        assert np.all(values["gamma"] > 0), f"gamma is {values['gamma']}"
