"""The number of codes that a quantizer can give is the number of those that it does give."""

from __future__ import annotations

import numpy as np
import pytest

from tests.quantizers.holder import Holder
from tfqil import quantizers

EQUAL_LEVELS = [
    (quantizers.QILWeightQuantizer(bits=2), 3),
    (quantizers.QILWeightQuantizer(bits=4), 15),
    (quantizers.UniformWeightQuantizer(bits=3), 7),
    (quantizers.MaxAbsWeightQuantizer(), 255),
    (quantizers.TernaryWeightQuantizer(), 3),
    (quantizers.BinaryWeightQuantizer(), 2),
]
POWERS = [
    (quantizers.LBWWeightQuantizer(bits=2), 3),
    (quantizers.LBWWeightQuantizer(bits=3), 5),
    (quantizers.LBWWeightQuantizer(bits=4), 9),
    (quantizers.LBWWeightQuantizer(bits=5), 17),
    (quantizers.LBWWeightQuantizer(bits=5, int8_exact=True), 15),
    (quantizers.LBWWeightQuantizer(bits=6, int8_exact=True), 15),
]


@pytest.mark.parametrize(("quantizer", "expected"), [*EQUAL_LEVELS, *POWERS], ids=str)
def test_many_weights_of_all_sizes_get_every_code(quantizer, expected):
    sizes = np.linspace(0, 1, 10_000)
    if isinstance(quantizer, quantizers.LBWWeightQuantizer):
        sizes = 2.0 ** (9 * sizes - 9)  # Of each octave as many, so that the smallest power occurs.
    kernel = np.concatenate([sizes, -sizes[1:], [1e-6]]).astype(np.float32).reshape(-1, 1)
    holder = Holder(quantizer, kernel)
    holder.initialize()
    assert np.unique(holder.grid().codes).size == expected == quantizer.code_count
    assert quantizers.BinaryRelax(quantizer).code_count == expected
