"""Binary, ternary and uniform weights by least squares: the families of BinaryRelax and BCGD."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfqil import _host
from tfqil.numerics import binary, ternary, uniform
from tfqil.numerics.grid import check_bits
from tfqil.quantizers.base import ProjectedWeightQuantizer


@_host.serializable
@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryWeightQuantizer(ProjectedWeightQuantizer):
    """Weights of one magnitude.

    Forward: mean|w| sign(w), sign(0) = 1; codes -1 and 1 (`numerics.binary`). Gradient: identity.
    Shapes and units: the step mean|w| is a scalar, or one per output channel, in the units of the weights.
    Reference: Yin et al., BCGD (arXiv 1808.05240) and BinaryRelax (arXiv 1801.06313).

    Attributes:
        per_channel: one step per output channel instead of one per tensor.
    """

    per_channel: bool = False

    @property
    def bits(self) -> int:
        """1."""
        return 1

    @property
    def code_count(self) -> int:
        """2: there is no 0."""
        return 2

    def with_bits(self, bits: int) -> ProjectedWeightQuantizer:
        """The member of the family with another width."""
        return least_squares_weights(bits, self.per_channel)

    def project(self, kernel: tf.Tensor, channel_rank: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The signs and the mean magnitude."""
        return binary.project(kernel, channel_rank)


@_host.serializable
@dataclasses.dataclass(frozen=True, kw_only=True)
class TernaryWeightQuantizer(ProjectedWeightQuantizer):
    """Weights that are zero or of one magnitude, nearest to the float ones.

    Forward: a Q, with codes Q in {-1, 0, 1} and a real step a that minimise ||w - a Q||^2 (`numerics.ternary`).
    Gradient: identity.
    Shapes and units: the step is a scalar, or one per output channel, in the units of the weights.
    Reference: the problem of Yin et al., BinaryRelax (arXiv 1801.06313), solved exactly.

    Attributes:
        per_channel: one step per output channel instead of one per tensor.
    """

    per_channel: bool = False

    @property
    def bits(self) -> int:
        """2."""
        return 2

    def with_bits(self, bits: int) -> ProjectedWeightQuantizer:
        """The member of the family with another width."""
        return least_squares_weights(bits, self.per_channel)

    def project(self, kernel: tf.Tensor, channel_rank: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The kept signs and the mean of the kept magnitudes."""
        return ternary.project(kernel, channel_rank)


@_host.serializable
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformWeightQuantizer(ProjectedWeightQuantizer):
    """Weights on equal levels up to the largest magnitude, with a fitted step.

    Forward: bins of equal width over [-max|w|, max|w|], and the step that fits them best (`numerics.uniform`).
    Gradient: identity.
    Shapes and units: the step is a scalar, or one per output channel, in the units of the weights.
    Raises: TypeError or ValueError if bits is no integer from 2 to 8.
    Reference: the authors' code of Yin et al., BCGD (arXiv 1808.05240), for 4 bits.

    Attributes:
        bits: width, 2 to 8; codes -(2^(bits-1) - 1) .. 2^(bits-1) - 1.
        per_channel: one step per output channel instead of one per tensor.
    """

    bits: int = 4
    per_channel: bool = False

    def __post_init__(self) -> None:
        check_bits(self.bits)

    def with_bits(self, bits: int) -> ProjectedWeightQuantizer:
        """The member of the family with another width."""
        return least_squares_weights(bits, self.per_channel)

    def project(self, kernel: tf.Tensor, channel_rank: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The bins and the fitted step."""
        return uniform.project(kernel, channel_rank, bits=self.bits)


def least_squares_weights(bits: int, per_channel: bool = False) -> ProjectedWeightQuantizer:
    """The member of the family with a width: 1 binary, 2 ternary, from 3 on equal levels.

    Raises:
        TypeError or ValueError: bits is no integer from 1 to 8.
    """
    check_bits(bits, lowest=1)
    if bits == 1:
        return BinaryWeightQuantizer(per_channel=per_channel)
    if bits == 2:
        return TernaryWeightQuantizer(per_channel=per_channel)
    return UniformWeightQuantizer(bits=bits, per_channel=per_channel)
