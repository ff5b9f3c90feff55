"""LBW weights: zero or powers of two."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfqil import _host
from tfqil.numerics import lbw
from tfqil.quantizers.base import ProjectedWeightQuantizer

# INT8 holds 0 and +-2^0 .. +-2^6 on one symmetric grid.
_POWERS_IN_INT8 = 7


@_host.serializable
@dataclasses.dataclass(frozen=True, kw_only=True)
class LBWWeightQuantizer(ProjectedWeightQuantizer):
    """Weights that are zero or powers of two, so that products become shifts.

    Forward: 2^s Q with Q in {0, +-2^(1-n), .., +-1/2, +-1}, n = 2^(bits-2), and an integer s, by least squares
        (`numerics.lbw`): codes 0, +-1, +-2, .., +-2^(n-1), step 2^(s+1-n).
    Gradient: identity.
    Shapes and units: the step is a scalar, or one per output channel, in the units of the weights.
    Raises: TypeError or ValueError if bits is no integer from 2 to 6, or mu is not positive or given at 2 bits.
    Reference: Yin et al., LBW-Net (arXiv 1612.06052).

    Attributes:
        bits: width, 2 to 6; 2n + 1 levels: 3, 5, 9, 17, 33.
        mu: None for the true least-squares optimum; a number for a threshold scheme after the paper from 3 bits on,
            with the threshold mu max|w| for the largest level (at 2 bits its solution is the optimum).
        int8_exact: keeps the seven largest powers only, which INT8 holds exactly. Without it, layers of 5 and 6 bits
            whose weights use more powers are exported in float16.
        per_channel: one exponent s per output channel instead of one per tensor.
    """

    bits: int = 4
    mu: float | None = None
    int8_exact: bool = False
    per_channel: bool = False

    def __post_init__(self) -> None:
        lbw.check_settings(bits=self.bits, mu=self.mu, powers=self._powers)

    def with_bits(self, bits: int) -> LBWWeightQuantizer:
        """The same at another width; at 2 bits without a threshold, which ternary weights do not take."""
        return dataclasses.replace(self, bits=bits, mu=None if bits == 2 else self.mu)

    @property
    def largest_code(self) -> int:
        """2^(n-1)."""
        return int(2 ** (lbw.powers_of(self.bits, self._powers) - 1))

    @property
    def code_count(self) -> int:
        """2 n + 1."""
        return 2 * lbw.powers_of(self.bits, self._powers) + 1

    def project(self, kernel: tf.Tensor, channel_rank: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The powers of two over the smallest one, and that one."""
        return lbw.project(kernel, channel_rank, bits=self.bits, mu=self.mu, powers=self._powers)

    @property
    def _powers(self) -> int | None:
        return _POWERS_IN_INT8 if self.int8_exact else None
