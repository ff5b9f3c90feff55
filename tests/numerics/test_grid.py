"""The truth table of `numerics.grid`, row by row."""

from __future__ import annotations

import numpy as np
import pytest

from tfqil.numerics.grid import ActivationGrid, WeightGrid, activation_levels, check_bits, weight_levels

BITS = range(2, 9)


@pytest.mark.parametrize(("bits", "largest"), [(2, 1), (3, 3), (4, 7), (5, 15), (6, 31), (7, 63), (8, 127)])
def test_every_weight_code_of_either_sign_has_its_value_and_its_bits(bits, largest):
    assert weight_levels(bits) == largest
    step = np.float32(0.3)
    for code in range(largest + 1):
        for sign in (-1, 1):
            grid = WeightGrid(codes=np.array([[sign * code]], np.int32), step=step)
            assert grid.values.dtype == np.float32 and grid.values[0, 0] == np.float32(sign * code) * step
            # The narrowest symmetric grid that holds the code.
            assert grid.bits == next(b for b in BITS if weight_levels(b) >= code)


@pytest.mark.parametrize(("bits", "largest"), [(2, 3), (3, 7), (4, 15), (5, 31), (6, 63), (7, 127), (8, 255)])
def test_every_zero_point_of_an_activation_grid_gives_its_ends(bits, largest):
    assert activation_levels(bits) == largest
    for zero in range(largest + 1):
        grid = ActivationGrid(step=0.25, bits=bits, zero=zero, lower=0.5)
        assert grid.highest == largest
        assert (grid.minimum, grid.maximum) == (-0.25 * zero, 0.25 * (largest - zero))


def test_a_step_per_channel_broadcasts_over_the_last_axes():
    codes = np.arange(-6, 6, dtype=np.int32).reshape(1, 2, 3, 2)
    for step in (np.float32([0.5, 2.0]), np.float32([[1, 2], [3, 4], [5, 6]])):
        np.testing.assert_array_equal(WeightGrid(codes=codes, step=step).values, codes * step)


@pytest.mark.parametrize("bits", [*BITS, np.int64(3)])
def test_bits_in_range_pass(bits):
    check_bits(bits)


@pytest.mark.parametrize("bits", [2.5, 4.0, "4", True, None])
def test_bits_that_are_no_integer_raise_a_type_error(bits):
    with pytest.raises(TypeError) as error:
        check_bits(bits, name="weight_bits")
    assert str(error.value) == f"Got weight_bits={bits!r}, expected an integer from 2 to 8: give a whole number."


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 32])
def test_bits_out_of_range_raise_a_value_error(bits):
    with pytest.raises(ValueError) as error:
        check_bits(bits)
    assert str(error.value) == f"Got bits={bits}, expected 2 to 8: choose a width in that range."
