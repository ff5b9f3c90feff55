"""The integer grid: what every quantizer puts a tensor on, and what training and export talk to each other in.

Truth table, b bits. Verifying the quantizers amounts to verifying this table.

    grid                  codes                                   value of code k
    weights               -(2^(b-1) - 1) .. 2^(b-1) - 1           step * k
      b = 2               -1, 0, 1                                ternary
      b = 3               -3 .. 3
      b = 4               -7 .. 7
      b = 8               -127 .. 127
    activations           0 .. 2^b - 1                            step * (k - zero)
      b = 2, zero = 0     0, 1, 2, 3
      b = 4, zero = 0     0 .. 15
      b = 8, zero = z     0 .. 255                                step * -z .. step * (255 - z)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray


def weight_levels(bits: int) -> int:
    """The largest code of a symmetric weight grid: 2^(bits-1) - 1."""
    return int(2 ** (bits - 1) - 1)


def activation_levels(bits: int) -> int:
    """The largest code of an activation grid: 2^bits - 1."""
    return int(2**bits - 1)


def check_bits(bits: Any, *, name: str = "bits", lowest: int = 2, highest: int = 8) -> None:
    """Raises one sentence unless `bits` is an integer in the range that a quantizer takes.

    Raises:
        TypeError: `bits` is not an integer.
        ValueError: `bits` is out of range.
    """
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)):
        raise TypeError(f"Got {name}={bits!r}, expected an integer from {lowest} to {highest}: give a whole number.")
    if not lowest <= bits <= highest:
        raise ValueError(f"Got {name}={bits}, expected {lowest} to {highest}: choose a width in that range.")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WeightGrid:
    """The integers of a weight tensor and their step: w = step * codes.

    Attributes:
        codes: int32, the shape of the kernel.
        step: float32, positive; a scalar, or one step per output channel: it broadcasts against the last axes of
            `codes` ((O,) for convolutions and dense layers, (C, M) for depthwise kernels).
    """

    codes: NDArray[np.int32]
    step: NDArray[np.float32]

    @property
    def values(self) -> NDArray[np.float32]:
        """The weights that the network computes with, float32."""
        return np.asarray(self.codes * self.step, np.float32)

    @property
    def bits(self) -> int:
        """The fewest bits of a symmetric grid that holds the codes, at least 2."""
        largest = int(np.abs(self.codes).max(initial=1))
        return largest.bit_length() + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationGrid:
    """The levels of an activation tensor: x = step * (code - zero), code in [0, 2^bits - 1].

    Attributes:
        step: distance of two levels, positive, in the units of the tensor.
        bits: 2 to 8 (1 for a binary activation).
        zero: the code of the value 0; 0 for non-negative tensors.
        lower: what was subtracted from the tensor before it was put on the grid; an exporter subtracts it too.
    """

    step: float
    bits: int
    zero: int = 0
    lower: float = 0.0

    @property
    def highest(self) -> int:
        """The largest code."""
        return activation_levels(self.bits)

    @property
    def minimum(self) -> float:
        """The smallest value."""
        return -self.zero * self.step

    @property
    def maximum(self) -> float:
        """The largest value."""
        return (self.highest - self.zero) * self.step
