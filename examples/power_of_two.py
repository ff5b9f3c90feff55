"""Weights that are zero or powers of two (LBW-Net), 2 to 5 bits, on handwritten digits.

    python examples/power_of_two.py

Finetunes a float network to 2, 3, 4 and 5 bits; 5 bits keep the seven largest of their eight powers, so that INT8 holds
them and every file is integer-only. Converts and verifies each, prints a table, and draws the weights of one layer with
their levels.
"""

from __future__ import annotations

import pathlib

import numpy as np
import one_method
import recipes
from absl import app, flags

import tfqil

flags.set_default(one_method.EPOCHS, 6)  # Enough from 3 bits on, and four networks stay under two minutes.

RECIPES = tuple(
    recipes.Recipe(name=f"LBW {bits} bits", config=tfqil.LBWQuantizeConfig(bits, 8, int8_exact=bits == 5))
    for bits in (2, 3, 4, 5)
)


def main(_: list[str]) -> None:
    one_method.run(RECIPES, draw, "power_of_two.png")


def draw(trained: list[recipes.Trained], path: pathlib.Path) -> None:
    """The float weights, their levels, and what rounding to them costs."""

    def error(weights: np.ndarray, values: np.ndarray) -> str:
        return f"squared error {100 * np.square(values - weights).sum() / np.square(weights).sum():.1f} %"

    one_method.draw_weights(trained, path, title="zero and powers of two", caption=error)


if __name__ == "__main__":
    app.run(main)
