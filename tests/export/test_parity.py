"""Plain and dense networks: what was trained is what runs, integer for integer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.export import parity


@pytest.fixture(scope="module", params=parity.combinations("plain", "dense"), ids=str)
def exported(request: pytest.FixtureRequest) -> Any:
    """Each network in each pair of widths, once for all storages."""
    return parity.exported(*request.param)


class TestPlainAndDenseNetworks(parity.FileBench):
    """Every width in every storage."""
