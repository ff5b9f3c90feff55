"""How many different codes a quantizer of weights can give."""

from __future__ import annotations

from tfqil.quantizers.base import WeightQuantizer
from tfqil.quantizers.lbw import LBWWeightQuantizer
from tfqil.quantizers.projected import BinaryWeightQuantizer
from tfqil.quantizers.relaxed import BinaryRelax


def code_count(quantizer: WeightQuantizer) -> int:
    """The number of codes between the largest and its negative that the quantizer can give.

    All 2 q + 1 of them, q being the largest; 2 n + 1 for zero and n powers of two; 2 for binary weights.
    """
    if isinstance(quantizer, BinaryRelax):
        return code_count(quantizer.inner)
    if isinstance(quantizer, BinaryWeightQuantizer):
        return 2
    if isinstance(quantizer, LBWWeightQuantizer):
        return 2 * quantizer.largest_code.bit_length() + 1
    return 2 * quantizer.largest_code + 1
