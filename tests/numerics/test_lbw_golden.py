"""LBW weights against the golden vectors: codes, exponents, outputs and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.numerics.golden_vectors import cases, require_expected
from tfqil.numerics import lbw

GRIDS = [case for case in cases("integer_grids") if case["inputs"]["method"] == "lbw"]


def name_of(case: dict[str, Any]) -> str:
    return case["name"]


def require_projection(case: dict[str, Any], bits: int, mu: float | None) -> None:
    """Raises unless `project` gives the expected fields of a case."""
    w = np.array(case["inputs"]["w"], np.float32)
    channel_rank = int(case["inputs"]["per_channel"])
    codes, step = (value.numpy() for value in lbw.project(tf.constant(w), channel_rank, bits=bits, mu=mu))
    assert codes.dtype == step.dtype == np.float32 and step.shape == w.shape[w.ndim - channel_rank :]
    output = codes * step
    error = (w.astype(np.float64) - output) ** 2
    powers = np.log2(np.abs(codes), where=codes != 0, out=np.full(codes.shape, -1.0))
    got = {
        "integers": codes,
        "scale": step,
        "level_index": np.sign(codes) * (powers + 1),
        "exponent": np.log2(step.astype(np.float64)) + lbw.powers_of(bits) - 1,
        "output": output,
        "squared_error": error.sum(axis=tuple(range(w.ndim - channel_rank))),
    }
    require_expected(case, got)


@pytest.mark.parametrize("case", cases("lbw"), ids=name_of)
def test_weights_of_3_to_6_bits_match_the_golden_vectors(case):
    require_projection(case, case["inputs"]["bits"], case["inputs"]["mu"])


@pytest.mark.parametrize("case", cases("lbw_ternary"), ids=name_of)
def test_ternary_weights_match_the_golden_vectors(case):
    require_projection(case, 2, None)


@pytest.mark.parametrize("case", GRIDS, ids=name_of)
def test_weights_on_the_grid_stay_and_use_every_code_of_it(case):
    values = np.array(case["expected"]["values"], np.float32)
    codes, step = lbw.project(tf.constant(values), 0, bits=case["inputs"]["bits"])
    require_expected(case, {"integers": codes.numpy(), "scale": step.numpy(), "values": (codes * step).numpy()})
