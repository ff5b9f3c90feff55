"""A small calibrated network and its file, for the tests that look at one export closely."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tfqil
from tests import networks


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Two hundred digits of the size of `networks.tiny`."""
    return networks.digits(200, 8)[0]


@pytest.fixture(scope="session")
def small_model(images: np.ndarray) -> Any:
    """`networks.tiny` at 4/4 bits with negative and zero gammas, calibrated."""
    return networks.calibrated_on(networks.randomize_norms(networks.tiny()), images, 4, 4)


@pytest.fixture(scope="session")
def small_file(small_model: Any) -> bytes:
    """Its file."""
    return tfqil.convert(small_model, "int8")
