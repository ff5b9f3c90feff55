"""Residual and separable networks: what was trained is what runs, integer for integer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.export import parity

# Of the others, test_parity has what is stored; blocks add sums and depthwise kernels.
BITS = ((2, 2), (4, 4), (4, 8))


@pytest.fixture(scope="module", params=parity.combinations("residual", "separable", all_bits=BITS), ids=str)
def exported(request: pytest.FixtureRequest) -> Any:
    """Each network in each pair of widths, once for all storages."""
    return parity.exported(*request.param)


class TestNetworksOfBlocks(parity.FileBench):
    """Every family and pair of widths in every storage."""


@pytest.mark.parametrize("options", [{"per_channel": True}, {"train_gamma": True}], ids=str)
def test_options_of_the_config_change_nothing_about_that(options):
    q_model, images, outputs = parity.exported("residual", 3, 4, **options)
    parity.require_exact_export(q_model, "fastest", images, outputs)
