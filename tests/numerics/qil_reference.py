"""QIL in numpy, float64, written from the paper's equations and not from the package: forward and derivatives."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def weights(
    w: Array, center: float, half_width: float, gamma: float, bits: int, *, normalized: bool
) -> dict[str, Array]:
    """Codes, output and slopes of the output in each parameter, entry by entry."""
    levels = 2 ** (bits - 1) - 1
    alpha, beta = 0.5 / half_width, 0.5 - 0.5 * center / half_width
    u = alpha * np.abs(w) + beta
    inside = (u > 0) & (u < 1)
    safe = np.where(inside, u, 0.5)
    transformed = np.where(inside, safe**gamma, np.where(u >= 1, 1.0, 0.0)) * np.sign(w)
    codes = np.rint(levels * transformed)
    scale = 1.0 if normalized else center + half_width
    own = 0.0 if normalized else codes / levels
    power = np.where(inside, gamma * safe ** (gamma - 1), 0.0)
    return {
        "codes": codes,
        "output": scale * codes / levels,
        "w": scale * power * alpha,
        "center": own - scale * power * alpha * np.sign(w),
        "half_width": own + scale * power * alpha / half_width * (center - np.abs(w)) * np.sign(w),
        "gamma": np.where(inside, scale * safe**gamma * np.log(safe) * np.sign(w), 0.0),
    }


def activations(x: Array, center: float, half_width: float, bits: int, *, normalized: bool) -> dict[str, Array]:
    """Codes, output and slopes of the output in each parameter, entry by entry."""
    levels = 2**bits - 1
    alpha = 0.5 / half_width
    u = alpha * x + 0.5 - 0.5 * center / half_width
    inside = (u > 0) & (u < 1)
    codes = np.rint(levels * np.clip(u, 0, 1))
    scale = 1.0 if normalized else 2 * half_width
    own = 0.0 if normalized else 2 * codes / levels
    return {
        "codes": codes,
        "output": scale * codes / levels,
        "x": np.where(inside, scale * alpha, 0.0),
        "center": np.where(inside, -scale * alpha, 0.0),
        "half_width": own + np.where(inside, scale * alpha / half_width * (center - x), 0.0),
    }
