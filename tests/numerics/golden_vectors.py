"""Reads the golden vectors and compares a result with them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

_FOLDER = pathlib.Path(__file__).parents[1] / "golden"


def cases(name: str) -> list[dict[str, Any]]:
    """The cases of one file."""
    return json.loads((_FOLDER / f"{name}.json").read_text())["cases"]


def require_expected(case: dict[str, Any], got: dict[str, Any]) -> None:
    """Raises unless every expected field is met: with the tolerance of the case, or exactly if it names none."""
    missing = set(case["expected"]) - set(got)
    assert not missing, f"{case['name']}: nothing computed for {sorted(missing)}"
    for name, want in case["expected"].items():
        if want is None:
            continue
        message = f"{case['name']}: {name}"
        assert np.all(np.isfinite(got[name])), f"{message} is not finite"
        if name in case["tolerance"]:
            np.testing.assert_allclose(got[name], want, **case["tolerance"][name], err_msg=message)
        else:
            np.testing.assert_array_equal(got[name], want, err_msg=message)
