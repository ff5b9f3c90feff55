"""One bench for all quantizers of the package: configuration, grids, widths, guards, data that set them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tests.quantizers.holder import Holder, after_huge_steps, examples, normal_kernel
from tfqil import quantizers
from tfqil.numerics.grid import activation_levels, weight_levels
from tfqil.quantizers.observation import FIRST_BATCHES

WEIGHTS = [
    quantizers.QILWeightQuantizer(),
    quantizers.QILWeightQuantizer(bits=2, per_channel=True),
    quantizers.QILWeightQuantizer(bits=3, train_gamma=True),
    quantizers.QILWeightQuantizer(bits=8, normalized=True, per_channel=True, train_gamma=True),
    quantizers.MaxAbsWeightQuantizer(),
    quantizers.MaxAbsWeightQuantizer(bits=4, per_channel=False),
    quantizers.LBWWeightQuantizer(),
    quantizers.LBWWeightQuantizer(bits=2),
    quantizers.LBWWeightQuantizer(bits=3, per_channel=True),
    quantizers.LBWWeightQuantizer(bits=4, mu=0.75),
    quantizers.LBWWeightQuantizer(bits=5, int8_exact=True),
    quantizers.LBWWeightQuantizer(bits=5, mu=0.75, per_channel=True),
    quantizers.LBWWeightQuantizer(bits=6),
    quantizers.LBWWeightQuantizer(bits=6, int8_exact=True, per_channel=True),
    quantizers.BinaryWeightQuantizer(),
    quantizers.BinaryWeightQuantizer(per_channel=True),
    quantizers.TernaryWeightQuantizer(),
    quantizers.TernaryWeightQuantizer(per_channel=True),
    quantizers.UniformWeightQuantizer(),
    quantizers.UniformWeightQuantizer(bits=2),
    quantizers.UniformWeightQuantizer(bits=8, per_channel=True),
    quantizers.BinaryRelax(quantizers.QILWeightQuantizer(bits=3, per_channel=True)),
    quantizers.BinaryRelax(quantizers.BinaryWeightQuantizer(per_channel=True)),
]
ACTIVATIONS = [
    quantizers.QILActivationQuantizer(),
    quantizers.QILActivationQuantizer(bits=2),
    quantizers.QILActivationQuantizer(bits=4, normalized=True),
    quantizers.QILActivationQuantizer(bits=3, zero_lower=True),
    quantizers.AdaptiveActivationQuantizer(),
    quantizers.AdaptiveActivationQuantizer(bits=1, ste="relu", step_gradient="two_valued"),
    quantizers.AdaptiveActivationQuantizer(bits=8, ste="identity", step_gradient="exact", step_rate=1.0),
    quantizers.AdaptiveActivationQuantizer(bits=2, zero_lower=True),
    quantizers.RangeActivationQuantizer(),
    quantizers.RangeActivationQuantizer(bits=4, signed=False),
    quantizers.FixedActivationQuantizer(),
    quantizers.FixedActivationQuantizer(step=1 / 128, zero=128),
]
PROJECTED_WEIGHTS = [q for q in WEIGHTS if isinstance(q, quantizers.ProjectedWeightQuantizer)]
# The step of the others is the largest magnitude, whatever that is; layers refuse to name such a grid.
GUARDED_WEIGHTS = [q for q in PROJECTED_WEIGHTS if not isinstance(q, quantizers.MaxAbsWeightQuantizer)]
DATA_ACTIVATIONS = [q for q in ACTIVATIONS if not isinstance(q, quantizers.FixedActivationQuantizer)]
WIDTHS = {
    quantizers.QILWeightQuantizer: (2, 8),
    quantizers.MaxAbsWeightQuantizer: (2, 8),
    quantizers.LBWWeightQuantizer: (2, 6),
    quantizers.UniformWeightQuantizer: (2, 8),
    quantizers.QILActivationQuantizer: (2, 8),
    quantizers.AdaptiveActivationQuantizer: (1, 8),
    quantizers.RangeActivationQuantizer: (2, 8),
}


def one_of_each(choices: list[Any]) -> list[Any]:
    """The last quantizer of each class, for tests that take their time."""
    return list({type(quantizer): quantizer for quantizer in choices}.values())


def output_and_gradient(holder: Holder) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The training forward of a kernel, its gradient, and the upstream gradient."""
    upstream = tf.constant(normal_kernel(tuple(holder.kernel.shape), seed=1))
    with tf.GradientTape() as tape:
        output = holder.quantized(True)
    return output, tape.gradient(output, holder.kernel, output_gradients=upstream), upstream


def bare(quantizer: Any) -> Any:
    """The quantizer without a relaxation around it."""
    return quantizer.inner if isinstance(quantizer, quantizers.BinaryRelax) else quantizer


def all_codes(quantizer: Any) -> np.ndarray:
    """Every code that a weight quantizer may give to a kernel that is not zero."""
    quantizer = bare(quantizer)
    if isinstance(quantizer, quantizers.BinaryWeightQuantizer):
        return np.array([-1, 1])
    if isinstance(quantizer, quantizers.LBWWeightQuantizer):
        count = 2 ** (quantizer.bits - 2)
        powers = 2 ** np.arange(min(count, 7) if quantizer.int8_exact else count)
        return np.sort(np.concatenate([-powers, [0], powers]))
    levels = weight_levels(quantizer.bits)
    return np.arange(-levels, levels + 1)


@pytest.mark.parametrize("quantizer", WEIGHTS + ACTIVATIONS, ids=repr)
class TestEveryQuantizer:
    def test_the_configuration_round_trips_through_keras(self, quantizer):
        again = type(quantizer).from_config(quantizer.get_config())
        assert again == quantizer and hash(again) == hash(quantizer) and repr(again) == repr(quantizer)
        stored = keras.utils.legacy.serialize_keras_object(quantizer)
        assert keras.utils.legacy.deserialize_keras_object(stored) == quantizer

    def test_equality_tells_other_settings_apart(self, quantizer):
        field = dataclasses.fields(quantizer)[0].name
        value = {
            "bits": lambda old: 3 if old == 4 else 4,
            "per_channel": lambda old: not old,
            "step": lambda old: old / 2,
            "inner": lambda old: quantizers.UniformWeightQuantizer(bits=7),
        }[field](getattr(quantizer, field))
        other = dataclasses.replace(quantizer, **{field: value})
        assert other != quantizer and repr(other) != repr(quantizer)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(quantizer, field, value)

    def test_settings_are_given_by_name(self, quantizer):
        """But for what is relaxed, which reads better without one."""
        values = [getattr(quantizer, field.name) for field in dataclasses.fields(quantizer)]
        if isinstance(quantizer, quantizers.BinaryRelax):
            assert type(quantizer)(*values) == quantizer
        else:
            with pytest.raises(TypeError, match="positional argument"):
                type(quantizer)(*values)


@pytest.mark.parametrize(("cls", "lowest", "highest"), [(cls, *ends) for cls, ends in WIDTHS.items()])
class TestBits:
    def test_all_widths_in_range_are_taken(self, cls, lowest, highest):
        assert [cls(bits=bits).bits for bits in range(lowest, highest + 1)] == list(range(lowest, highest + 1))

    def test_widths_out_of_range_raise_one_sentence(self, cls, lowest, highest):
        for bits in (lowest - 1, highest + 1, -3):
            with pytest.raises(ValueError) as error:
                cls(bits=bits)
            assert str(error.value) == f"Got bits={bits}, expected {lowest} to {highest}: choose a width in that range."

    @pytest.mark.parametrize("bits", [2.5, "4", True, None])
    def test_widths_that_are_no_integer_raise_one_sentence(self, cls, lowest, highest, bits):
        with pytest.raises(TypeError) as error:
            cls(bits=bits)
        range_of = f"an integer from {lowest} to {highest}"
        assert str(error.value) == f"Got bits={bits!r}, expected {range_of}: give a whole number."


@pytest.mark.parametrize("quantizer", WEIGHTS, ids=repr)
class TestEveryWeightQuantizer:
    def test_the_grid_is_the_output_bit_for_bit(self, quantizer):
        holder = Holder(quantizer, normal_kernel())
        holder.initialize()
        grid, output = holder.grid(), holder.quantized(False).numpy()
        assert grid.codes.dtype == np.int32 and grid.step.dtype == np.float32 and np.all(grid.step > 0)
        # One product of a code and the step; without normalization both divide the same two numbers.
        np.testing.assert_array_max_ulp(output, grid.values, 1)

    def test_codes_are_those_of_the_width(self, quantizer):
        holder = Holder(quantizer, normal_kernel())
        holder.initialize()
        allowed, used = all_codes(quantizer), np.unique(holder.grid().codes)
        assert set(used) <= set(allowed) and used.size >= min(allowed.size, 3)
        assert allowed.size <= 2**quantizer.bits

    def test_every_representable_value_is_kept(self, quantizer):
        codes = all_codes(quantizer)
        # A step that only learned and fitted scales can have; the others are powers of two.
        step = 2.0**-5 if isinstance(quantizer, quantizers.LBWWeightQuantizer) else 0.037
        kernel = np.repeat(codes[:, None], 6, axis=1).astype(np.float32) * np.float32(step)
        holder = Holder(quantizer, kernel)
        variables = holder.variables_of_quantizer
        if "center" in variables:
            for name in ("center", "half_width"):
                variables[name].assign(tf.fill(variables[name].shape, np.float32(step * codes.max() / 2)))
        grid = holder.grid()
        np.testing.assert_array_equal(grid.codes, np.repeat(codes[:, None], 6, axis=1))
        if not getattr(quantizer, "normalized", False):
            # A mean of the kernel's entries, or one quotient.
            np.testing.assert_allclose(grid.step, step, rtol=5e-7)

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
        holder.initialize()
        assert holder.grid().step.shape == (per_channel if bare(quantizer).per_channel else ())

    def test_training_and_inference_give_the_same_weights(self, quantizer):
        holder = Holder(quantizer, normal_kernel())
        np.testing.assert_array_equal(holder.quantized(True), holder.quantized(False))

    @pytest.mark.parametrize("value", [0.0, 1e-30])
    def test_kernels_of_nothing_keep_a_positive_step(self, quantizer, value):
        holder = Holder(quantizer, np.full((4, 6), value, np.float32))
        holder.initialize()
        grid = holder.grid()
        # The smallest steps have normal products with each other and with the step of an input.
        assert np.all(grid.step >= 2.0**-60) and np.all(np.isfinite(grid.step))
        assert np.all(grid.codes == 0) and np.all(holder.quantized(False).numpy() == 0)

    def test_kernels_of_any_other_size_keep_their_codes(self, quantizer):
        codes = []
        for exponent in (0, -13, 40):
            holder = Holder(quantizer, normal_kernel() * np.float32(2.0**exponent))
            holder.initialize()
            codes.append(holder.grid().codes)
            assert np.all(np.isfinite(holder.grid().step))
        np.testing.assert_array_equal(codes[0], codes[1])
        np.testing.assert_array_equal(codes[0], codes[2])


@pytest.mark.parametrize("quantizer", PROJECTED_WEIGHTS, ids=repr)
class TestEveryProjectedWeightQuantizer:
    def test_the_layer_gets_no_variable(self, quantizer):
        holder = Holder(quantizer, normal_kernel())
        assert holder.values() == {} and len(holder.variables) == 1

    def test_the_gradient_goes_to_the_float_kernel_unchanged(self, quantizer):
        _, gradient, upstream = output_and_gradient(Holder(quantizer, normal_kernel((40, 6))))
        np.testing.assert_array_equal(gradient, upstream)


@pytest.mark.parametrize("quantizer", one_of_each(WEIGHTS), ids=repr)
def test_compiled_weights_and_gradients_are_the_eager_ones(quantizer):
    holder = Holder(quantizer, normal_kernel((40, 6)))
    compiled = tf.function(lambda: output_and_gradient(holder), jit_compile=True)()
    for found, expected in zip(compiled, output_and_gradient(holder), strict=True):
        # Sums of up to 240 float32 terms in another order; a code that moved would be a whole step.
        np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.parametrize("quantizer", GUARDED_WEIGHTS, ids=repr)
def test_broken_entries_spoil_no_other_and_stay_on_the_grid(quantizer):
    kernel = normal_kernel((20, 6))
    kernel[1, 0], kernel[2, 1], kernel[3, 2] = np.nan, np.inf, -np.inf
    finite = np.isfinite(kernel)
    broken, whole = Holder(quantizer, kernel), Holder(quantizer, np.where(finite, kernel, np.float32(0)))
    output, grid = broken.quantized(True).numpy(), whole.grid()
    np.testing.assert_array_equal(broken.grid().step, grid.step)
    np.testing.assert_array_equal(output[finite], whole.quantized(True).numpy()[finite])
    largest = np.broadcast_to(np.float32(all_codes(quantizer).max()) * grid.step, 6)
    assert output[2, 1] == largest[1] and output[3, 2] == -largest[2]
    assert output[1, 0] == (np.broadcast_to(grid.step, 6)[0] if quantizer.bits == 1 else 0)


@pytest.mark.parametrize("quantizer", GUARDED_WEIGHTS, ids=repr)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_kernel_of_nothing_but_broken_entries_is_zero(quantizer, bad):
    holder = Holder(quantizer, np.full((4, 6), bad, np.float32))
    grid = holder.grid()
    assert np.all(np.isfinite(grid.step)) and np.all(grid.step > 0)
    assert np.all(np.isfinite(holder.quantized(True)))


@pytest.mark.parametrize("quantizer", ACTIVATIONS, ids=repr)
class TestEveryActivationQuantizer:
    def test_the_output_covers_the_grid_and_nothing_else(self, quantizer):
        holder = Holder(quantizer)
        grid = holder.grid()
        values = np.linspace(-20, 20, 40_000, dtype=np.float32)
        levels = (np.arange(grid.highest + 1) - grid.zero).astype(np.float32) * np.float32(grid.step)
        if isinstance(quantizer, quantizers.FixedActivationQuantizer):
            values = levels + np.float32(grid.step / 3)
        # One product of a code and the step; 0 and -0 are one level.
        np.testing.assert_array_max_ulp(np.unique(holder(tf.constant(values)).numpy() + 0.0), levels, 1)

    def test_the_grid_says_which_level_an_input_goes_to(self, quantizer):
        """By rounding to nearest what is left after subtracting `lower`, as an exporter does."""
        holder = Holder(quantizer)
        grid = holder.grid()
        inputs = np.random.default_rng(0).uniform(-1.2, 1.2, 2000).astype(np.float32)
        inputs *= max(abs(grid.minimum), grid.maximum)
        # The paper's form divides by the interval's length, which is the default upper end here.
        unit = 6.0 if getattr(quantizer, "normalized", False) else 1.0
        position = (inputs.astype(np.float64) - grid.lower) / (unit * grid.step)
        away_from_ties = np.abs(position % 1 - 0.5) > 1e-3
        codes = np.clip(np.rint(position) + grid.zero, 0, grid.highest)
        output = holder(tf.constant(inputs)).numpy()
        expected = ((codes - grid.zero) * grid.step).astype(np.float32)
        np.testing.assert_allclose(output[away_from_ties], expected[away_from_ties], rtol=2e-7)

    def test_the_grid_is_signed_where_the_quantizer_says_so(self, quantizer):
        grid = Holder(quantizer).grid()
        assert (grid.minimum < 0) == quantizer.is_signed and grid.step > 0
        assert grid.highest == activation_levels(quantizer.bits)

    def test_what_is_subtracted_is_never_negative_but_for_a_ceil(self, quantizer):
        grid = Holder(quantizer).grid()
        if isinstance(quantizer, quantizers.AdaptiveActivationQuantizer) and not quantizer.zero_lower:
            assert grid.lower == -grid.step / 2
        else:
            assert grid.lower >= 0

    def test_zero_stays_zero(self, quantizer):
        assert np.all(Holder(quantizer)(tf.zeros((3, 4))).numpy() == 0)

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
        assert holder.grid().lower == 0
        if holder.trainable_variables:
            for _ in after_huge_steps(holder, "sgd", directions=(1.0,)):
                assert holder.grid().lower == 0


@pytest.mark.parametrize("quantizer", DATA_ACTIVATIONS, ids=repr)
class TestEveryActivationQuantizerThatDataSet:
    def test_the_first_training_batches_set_the_grid(self, quantizer):
        holder = Holder(quantizer)
        assert not quantizer.is_initialized(holder.variables_of_quantizer)
        for batch in range(FIRST_BATCHES + 2):
            holder(tf.constant(examples(quantizer, batch)), training=True)
        assert quantizer.is_initialized(holder.variables_of_quantizer)
        assert int(holder.variables_of_quantizer["observed_batches"]) == FIRST_BATCHES
        if not getattr(quantizer, "normalized", False):
            # The least squared error cuts a normal tail off at 1.2 (1 level) to 4.2 (255 levels) sigma.
            assert 1.0 < holder.grid().maximum < 4.5

    @pytest.mark.parametrize("calibrates", [False, True], ids=["training", "calibration"])
    def test_a_batch_that_says_nothing_does_not_count(self, quantizer, calibrates):
        silent = np.full((8, 4), np.nan, np.float32)
        if not calibrates and isinstance(quantizer, quantizers.RangeActivationQuantizer):
            silent = silent[:0]  # A range of zeros is one.
        elif isinstance(quantizer, quantizers.RangeActivationQuantizer):
            pytest.skip("Calibration takes what is not finite for 0, which a range contains.")
        holder, other = Holder(quantizer), Holder(quantizer)

        def see(holder, data):
            if calibrates:
                quantizer.initialize(quantizers.Observation(tf.constant(data)), holder.variables_of_quantizer)
            else:
                holder(tf.constant(data), training=True)

        see(holder, silent)
        unset = Holder(quantizer).values() | {"observed_batches": -1}
        assert all(np.array_equal(value, unset[name]) for name, value in holder.values().items())
        for batch in range(3):
            for one in (holder, other):
                see(one, 0.1 * examples(quantizer, batch))
        see(holder, silent)
        assert all(np.array_equal(value, other.values()[name]) for name, value in holder.values().items())

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_bad_batch_leaves_the_variables_finite(self, quantizer, bad):
        holder = Holder(quantizer)
        data = examples(quantizer)
        data[3, 1] = bad
        for _ in range(FIRST_BATCHES + 2):
            holder(tf.constant(data), training=True)
        for name, value in holder.values().items():
            assert np.all(np.isfinite(value)), f"{name} is {value}"
        assert holder.grid().step > 0

    def test_a_batch_of_zeros_keeps_a_positive_step(self, quantizer):
        holder = Holder(quantizer)
        zeros = tf.function(lambda: holder(tf.zeros((2, 4)), training=True))
        for _ in range(FIRST_BATCHES + 200):
            zeros()
        assert holder.grid().step > 0


@pytest.mark.parametrize("quantizer", one_of_each(DATA_ACTIVATIONS), ids=repr)
def test_compiled_first_batches_set_the_same_grid(quantizer):
    eager, holder = Holder(quantizer), Holder(quantizer)
    compiled = tf.function(lambda x: holder(x, training=True), jit_compile=True)
    for batch in range(FIRST_BATCHES + 2):
        data = tf.constant(examples(quantizer, batch))
        # A code times a step, which is a mean of up to four sums of 256 float32 terms.
        np.testing.assert_allclose(compiled(data), eager(data, training=True), rtol=1e-5, atol=1e-6)
    assert holder.grid().step == pytest.approx(eager.grid().step, rel=1e-5)
