"""Binary weights and 4-bit activations by blended coarse gradient descent (BCGD), on handwritten digits.

    python examples/blended_descent.py

Finetunes a float network to weights of one magnitude and activations with a learned resolution, with several shares rho
of the blending; 0 is plain straight-through training. Converts and verifies each, prints a table, and draws the float
weights of one layer at the end: blending draws them to the two levels.
"""

from __future__ import annotations

import pathlib

import numpy as np
import one_method
import recipes
from absl import app

import tfqil

RHOS = (0.0, 1e-5, 1e-2)
RECIPES = tuple(recipes.Recipe(name=f"rho {rho:g}", config=tfqil.BCGDQuantizeConfig(1, 4), rho=rho) for rho in RHOS)


def main(_: list[str]) -> None:
    one_method.run(RECIPES, draw, "blended_descent.png")


def draw(trained: list[recipes.Trained], path: pathlib.Path) -> None:
    """The float weights behind binary ones, and how far they are from them."""

    def distance(weights: np.ndarray, values: np.ndarray) -> str:
        return f"mean distance {np.abs(values - weights).mean() / np.abs(values).mean():.2f} levels"

    one_method.draw_weights(trained, path, title="float weights behind binary ones", caption=distance)


if __name__ == "__main__":
    app.run(main)
