"""One bench for all quantizers of the package: configuration, grids, widths, data that sets them, guards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfqil import quantizers
from tfqil.numerics.grid import activation_levels, weight_levels
from tfqil.quantizers.base import FIRST_BATCHES

WEIGHTS = [
    quantizers.QILWeightQuantizer(),
    quantizers.QILWeightQuantizer(bits=2, per_channel=True),
    quantizers.QILWeightQuantizer(bits=3, train_gamma=True),
    quantizers.QILWeightQuantizer(bits=8, normalized=True, per_channel=True, train_gamma=True),
    quantizers.MaxAbsWeightQuantizer(),
    quantizers.MaxAbsWeightQuantizer(bits=4, per_channel=False),
]
ACTIVATIONS = [
    quantizers.QILActivationQuantizer(),
    quantizers.QILActivationQuantizer(bits=2),
    quantizers.QILActivationQuantizer(bits=4, normalized=True),
    quantizers.QILActivationQuantizer(bits=3, zero_lower=True),
    quantizers.RangeActivationQuantizer(),
    quantizers.RangeActivationQuantizer(bits=4, signed=False),
    quantizers.FixedActivationQuantizer(),
    quantizers.FixedActivationQuantizer(step=1 / 128, zero=128),
]
LEARNED_WEIGHTS = [q for q in WEIGHTS if isinstance(q, quantizers.QILWeightQuantizer)]
LEARNED_ACTIVATIONS = [q for q in ACTIVATIONS if isinstance(q, quantizers.QILActivationQuantizer)]
DATA_ACTIVATIONS = [q for q in ACTIVATIONS if not isinstance(q, quantizers.FixedActivationQuantizer)]
WITH_BITS = (
    quantizers.QILWeightQuantizer,
    quantizers.QILActivationQuantizer,
    quantizers.MaxAbsWeightQuantizer,
    quantizers.RangeActivationQuantizer,
)


class Holder(keras.layers.Layer):
    """A layer that a quantizer puts its variables on, and that applies it: to a kernel of its own, or to its inputs."""

    def __init__(self, quantizer: Any, kernel: np.ndarray | None = None, inner: Any = None) -> None:
        super().__init__()
        self.quantizer = quantizer
        if inner is not None:
            self.layer = inner
        self.kernel = (
            None
            if kernel is None
            else self.add_weight(name="kernel", shape=kernel.shape, initializer=keras.initializers.Constant(kernel))
        )
        shape = (None, 4) if kernel is None else kernel.shape
        self.variables_of_quantizer: Mapping[str, Any] = quantizer.build(tf.TensorShape(shape), "it", self)

    def call(self, inputs: Any, training: Any = None) -> Any:
        target = inputs if self.kernel is None else self.kernel
        output = self.quantizer(target, training, weights=self.variables_of_quantizer)
        return output if self.kernel is None else inputs + tf.reduce_sum(output)

    def values(self) -> dict[str, np.ndarray]:
        return {k: v.numpy() for k, v in self.variables_of_quantizer.items() if isinstance(v, tf.Variable)}


def normal_kernel(shape: tuple[int, ...] = (3, 3, 8, 6), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.2, shape).astype(np.float32)


def examples(quantizer: Any, seed: int = 0) -> np.ndarray:
    """Data of the kind that the quantizer is for."""
    data = np.random.default_rng(seed).normal(0, 1, (64, 4)).astype(np.float32)
    return data if quantizer.is_signed else np.maximum(data, 0)


@pytest.mark.parametrize("quantizer", WEIGHTS + ACTIVATIONS, ids=repr)
class TestEveryQuantizer:
    def test_the_configuration_round_trips_through_keras(self, quantizer):
        again = type(quantizer).from_config(quantizer.get_config())
        assert again == quantizer and hash(again) == hash(quantizer) and repr(again) == repr(quantizer)
        stored = keras.utils.legacy.serialize_keras_object(quantizer)
        assert keras.utils.legacy.deserialize_keras_object(stored) == quantizer

    def test_equality_tells_other_settings_apart(self, quantizer):
        field = "step" if isinstance(quantizer, quantizers.FixedActivationQuantizer) else "bits"
        other = dataclasses.replace(quantizer, **{field: 1 / 64 if field == "step" else 7})
        assert other != quantizer and repr(other) != repr(quantizer)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(quantizer, field, 5)

    def test_positional_arguments_are_refused(self, quantizer):
        with pytest.raises(TypeError):
            type(quantizer)(4)


@pytest.mark.parametrize("cls", WITH_BITS)
class TestBits:
    @pytest.mark.parametrize("bits", [1, 9, 0, -3])
    def test_widths_out_of_range_raise_one_sentence(self, cls, bits):
        with pytest.raises(ValueError) as error:
            cls(bits=bits)
        assert str(error.value) == f"Got bits={bits}, expected 2 to 8: choose a width in that range."

    @pytest.mark.parametrize("bits", [2.5, "4", True, None])
    def test_widths_that_are_no_integer_raise_one_sentence(self, cls, bits):
        with pytest.raises(TypeError) as error:
            cls(bits=bits)
        assert str(error.value) == f"Got bits={bits!r}, expected an integer from 2 to 8: give a whole number."


@pytest.mark.parametrize("quantizer", WEIGHTS, ids=repr)
class TestEveryWeightQuantizer:
    def test_the_grid_is_the_output_bit_for_bit(self, quantizer):
        kernel = normal_kernel()
        holder = Holder(quantizer, kernel)
        quantizer.initialize(holder.kernel, holder.variables_of_quantizer)
        grid = quantizer.grid(holder.kernel, holder.variables_of_quantizer)
        output = quantizer(holder.kernel, False, weights=holder.variables_of_quantizer).numpy()
        assert grid.codes.dtype == np.int32 and grid.step.dtype == np.float32 and np.all(grid.step > 0)
        assert grid.bits <= quantizer.bits and np.unique(grid.codes).size > 2
        # One product of a code and the step; without normalization both divide the same two numbers.
        np.testing.assert_array_max_ulp(output, grid.values, 1)

    def test_every_representable_value_is_kept(self, quantizer):
        codes = np.arange(-weight_levels(quantizer.bits), weight_levels(quantizer.bits) + 1)
        kernel = np.repeat(codes[:, None], 6, axis=1).astype(np.float32) * np.float32(0.037)
        holder = Holder(quantizer, kernel)
        variables = holder.variables_of_quantizer
        if "center" in variables:
            for name in ("center", "half_width"):
                variables[name].assign(tf.fill(variables[name].shape, np.float32(0.037 * codes.max() / 2)))
        grid = quantizer.grid(holder.kernel, variables)
        np.testing.assert_array_equal(grid.codes, np.repeat(codes[:, None], 6, axis=1))

    @pytest.mark.parametrize(
        ("inner", "shape", "per_channel"),
        [
            (keras.layers.Conv2D(6, 3), (3, 3, 8, 6), (6,)),
            (keras.layers.Dense(5), (7, 5), (5,)),
            (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (3, 3, 4, 2), (4, 2)),
        ],
        ids=["conv", "dense", "depthwise"],
    )
    def test_steps_have_the_shape_of_the_output_channels(self, quantizer, inner, shape, per_channel):
        holder = Holder(quantizer, normal_kernel(shape), inner=inner)
        quantizer.initialize(holder.kernel, holder.variables_of_quantizer)
        step = quantizer.grid(holder.kernel, holder.variables_of_quantizer).step
        assert step.shape == (per_channel if quantizer.per_channel else ())

    def test_training_and_inference_give_the_same_weights(self, quantizer):
        holder = Holder(quantizer, normal_kernel())
        outputs = [quantizer(holder.kernel, t, weights=holder.variables_of_quantizer) for t in (True, False)]
        np.testing.assert_array_equal(*outputs)

    @pytest.mark.parametrize("kernel", [np.zeros((4, 6), np.float32), np.full((4, 6), 1e-30, np.float32)], ids=str)
    def test_kernels_of_nothing_keep_a_positive_step(self, quantizer, kernel):
        holder = Holder(quantizer, kernel)
        quantizer.initialize(holder.kernel, holder.variables_of_quantizer)
        grid = quantizer.grid(holder.kernel, holder.variables_of_quantizer)
        assert np.all(grid.step > 0) and np.all(grid.codes == 0)


@pytest.mark.parametrize("quantizer", LEARNED_WEIGHTS, ids=repr)
class TestEveryLearnedWeightQuantizer:
    def test_initialize_minimises_the_squared_error(self, quantizer):
        kernel = normal_kernel((3, 3, 400, 6)) * np.float32([1, 2, 3, 0.1, 0.5, 10])
        holder = Holder(quantizer, kernel)
        variables = holder.variables_of_quantizer
        quantizer.initialize(holder.kernel, variables)
        upper = (variables["center"] + variables["half_width"]).numpy()
        np.testing.assert_array_equal(variables["center"], variables["half_width"])
        levels = weight_levels(quantizer.bits)

        def error(scale):
            step = scale * upper / levels
            return ((kernel - np.clip(np.rint(kernel / step), -levels, levels) * step) ** 2).sum()

        best = min(error(scale) for scale in np.linspace(0.7, 1.3, 121))
        # The search's own candidates are 1.6 % apart, and it sees a histogram, not the entries.
        assert error(1.0) <= 1.05 * best, f"{error(1.0) / best:.3f} times the least squared error"

    @pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    @pytest.mark.parametrize("direction", [-1.0, 1.0])
    def test_huge_gradients_leave_the_interval_valid(self, quantizer, optimizer, jit, direction):
        holder = Holder(quantizer, normal_kernel((4, 6)))
        huge_steps(holder, optimizer, jit, direction)
        require_valid_interval(holder)
        step = quantizer.grid(holder.kernel, holder.variables_of_quantizer).step
        assert np.all(step > 0) and np.all(np.isfinite(step))

    def test_a_step_beyond_the_boundary_is_projected_and_keeps_the_upper_end(self, quantizer):
        holder = Holder(quantizer, normal_kernel((4, 6)))
        variables = holder.variables_of_quantizer
        require_projection_keeps_the_upper_end(variables)

    def test_a_nan_kernel_does_not_reach_the_interval(self, quantizer):
        kernel = normal_kernel((4, 6))
        kernel[1, 2] = np.nan
        holder = Holder(quantizer, kernel)
        huge_steps(holder, "sgd", jit=False, direction=np.nan)
        require_valid_interval(holder)


@pytest.mark.parametrize("quantizer", ACTIVATIONS, ids=repr)
class TestEveryActivationQuantizer:
    def test_the_output_covers_the_grid_and_nothing_else(self, quantizer):
        holder = Holder(quantizer)
        grid = quantizer.grid(holder.variables_of_quantizer)
        values = np.linspace(-20, 20, 40_000, dtype=np.float32)
        output = holder(tf.constant(values)).numpy()
        levels = (np.arange(grid.highest + 1) - grid.zero).astype(np.float32) * np.float32(grid.step)
        if isinstance(quantizer, quantizers.FixedActivationQuantizer):
            output = holder(tf.constant(levels + np.float32(grid.step / 3))).numpy()
        # One product of a code and the step.
        np.testing.assert_array_max_ulp(np.unique(output), levels, 1)

    def test_the_grid_is_signed_where_the_quantizer_says_so(self, quantizer):
        grid = quantizer.grid(Holder(quantizer).variables_of_quantizer)
        assert (grid.minimum < 0) == quantizer.is_signed and grid.step > 0 and grid.lower >= 0
        assert grid.highest == activation_levels(quantizer.bits)

    def test_zero_stays_zero(self, quantizer):
        holder = Holder(quantizer)
        assert np.all(holder(tf.zeros((3, 4))).numpy() == 0)

    def test_inference_changes_no_variable(self, quantizer):
        holder = Holder(quantizer)
        before = holder.values()
        for training in (None, False):
            holder(tf.constant(examples(quantizer)), training=training)
        assert all(np.array_equal(before[name], value) for name, value in holder.values().items())

    def test_without_lower_never_subtracts(self, quantizer):
        other = quantizer.without_lower()
        assert type(other) is type(quantizer) and other.bits == quantizer.bits
        holder = Holder(other)
        huge_steps(holder, "sgd", jit=False, direction=1.0)
        assert other.grid(holder.variables_of_quantizer).lower == 0


@pytest.mark.parametrize("quantizer", DATA_ACTIVATIONS, ids=repr)
class TestEveryActivationQuantizerThatDataSet:
    @pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
    def test_the_first_training_batches_set_the_grid(self, quantizer, jit):
        holder = Holder(quantizer)
        assert not quantizer.is_initialized(holder.variables_of_quantizer)
        call = tf.function(lambda x: holder(x, training=True), jit_compile=jit)
        for batch in range(FIRST_BATCHES + 2):
            call(tf.constant(examples(quantizer, batch)))
        assert quantizer.is_initialized(holder.variables_of_quantizer)
        assert int(holder.variables_of_quantizer["observed_batches"]) == FIRST_BATCHES
        if not getattr(quantizer, "normalized", False):
            # The least squared error cuts a normal tail off at 1.2 (1 level) to 4.2 (255 levels) sigma.
            assert 1.0 < quantizer.grid(holder.variables_of_quantizer).maximum < 4.5

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_bad_batch_leaves_the_variables_finite(self, quantizer, bad):
        holder = Holder(quantizer)
        data = examples(quantizer)
        data[3, 1] = bad
        for _ in range(FIRST_BATCHES + 2):
            holder(tf.constant(data), training=True)
        for name, value in holder.values().items():
            assert np.all(np.isfinite(value)), f"{name} is {value}"
        assert quantizer.grid(holder.variables_of_quantizer).step > 0

    def test_a_batch_of_zeros_keeps_a_positive_step(self, quantizer):
        holder = Holder(quantizer)
        for _ in range(FIRST_BATCHES + 200):
            holder(tf.zeros((2, 4)), training=True)
        assert quantizer.grid(holder.variables_of_quantizer).step > 0


@pytest.mark.parametrize("quantizer", LEARNED_ACTIVATIONS, ids=repr)
class TestEveryLearnedActivationQuantizer:
    @pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    @pytest.mark.parametrize("direction", [-1.0, 1.0, np.nan])
    def test_huge_gradients_leave_the_interval_valid(self, quantizer, optimizer, jit, direction):
        holder = Holder(quantizer)
        huge_steps(holder, optimizer, jit, direction)
        require_valid_interval(holder)
        grid = quantizer.grid(holder.variables_of_quantizer)
        assert grid.step > 0 and grid.lower >= 0 and np.isfinite(grid.maximum)

    def test_a_step_beyond_the_boundary_is_projected_and_keeps_the_upper_end(self, quantizer):
        if not quantizer.zero_lower:
            require_projection_keeps_the_upper_end(Holder(quantizer).variables_of_quantizer)

    def test_nan_inputs_do_not_reach_the_interval(self, quantizer):
        holder = Holder(quantizer)
        huge_steps(holder, "sgd", jit=False, direction=1.0, inputs=np.full((8, 4), np.nan, np.float32))
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


def huge_steps(holder: Holder, optimizer: str, jit: bool, direction: float, inputs: np.ndarray | None = None) -> None:
    """Three optimizer steps with a loss of enormous slope."""
    chosen = keras.optimizers.Adam(50.0) if optimizer == "adam" else keras.optimizers.SGD(1e3)
    data = tf.constant(np.random.default_rng(0).normal(1, 1, (8, 4)).astype(np.float32) if inputs is None else inputs)
    variables = holder.trainable_variables
    if not variables:
        return
    chosen.build(variables)

    def step():
        with tf.GradientTape() as tape:
            loss = direction * 1e6 * tf.reduce_sum(holder(data, training=True))
        chosen.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    compiled = tf.function(step, jit_compile=jit)
    for _ in range(3):
        compiled()


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
