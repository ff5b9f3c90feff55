"""Weights that are zero or powers of two (LBW-Net), 2 to 5 bits, on handwritten digits.

    python examples/power_of_two.py

Finetunes a float network to 2, 3, 4 and 5 bits; 5 bits keep the seven largest of their eight powers, so that INT8 holds
them and every file is integer-only. Converts and verifies each, prints a table, and draws the weights of one layer with
their levels.
"""

from __future__ import annotations

import pathlib
import time

import numpy as np
import recipes
import results
from absl import app, flags, logging
from matplotlib.figure import Figure

import tfqil

_OUTPUT = flags.DEFINE_string("output", "examples/output", "Folder for the files and the figure.")
_FLOAT_EPOCHS = flags.DEFINE_integer("float_epochs", 30, "Epochs of the float network.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 6, "Epochs of each quantized network.", lower_bound=2)
_WIDTH = flags.DEFINE_integer("width", 16, "Channels of the first block.", lower_bound=4)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and batches.")

RECIPES = tuple(
    recipes.Recipe(name=f"LBW {bits} bits", config=tfqil.LBWQuantizeConfig(bits, 8, int8_exact=bits == 5))
    for bits in (2, 3, 4, 5)
)
# The layer that the figure shows.
_LAYER = "block2_second"


def main(_: list[str]) -> None:
    started = time.perf_counter()
    logging.set_verbosity(logging.ERROR)
    output = pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    rows, trained = recipes.compare(
        RECIPES, seed=_SEED.value, float_epochs=_FLOAT_EPOCHS.value, epochs=_EPOCHS.value, width=_WIDTH.value
    )
    results.write_files(rows, output)
    figure = draw(trained, output / "power_of_two.png")
    console = results.console()
    console.print(results.table(rows))
    console.print("One seed: differences of half a point are chance, as examples/methods.py shows over several.")
    console.print(f"Files and figure: {output}, {figure.name}. {time.perf_counter() - started:.0f} s in all.")


def draw(trained: list[recipes.Trained], path: pathlib.Path) -> pathlib.Path:
    """Writes one panel per width: the float weights of a layer and the levels that they are rounded to."""
    figure = Figure(figsize=(3 * len(trained), 3.2))
    panels = figure.subplots(1, len(trained), sharey=True)
    for panel, one in zip(panels, trained, strict=True):
        layer = one.q_model.get_layer(f"quant_{_LAYER}")
        weights, grid = layer.kernel.numpy().ravel(), layer.grid()
        panel.hist(weights, bins=80, color="#7a9cc6", label="float weights")
        for index, level in enumerate(np.unique(grid.values)):
            panel.axvline(level, color="#b03a2e", linewidth=0.9, label="levels" if index == 0 else None)
        error = np.square(grid.values.ravel() - weights).sum() / np.square(weights).sum()
        panel.set_title(f"{one.recipe.name}\nsquared error {100 * error:.1f} %", fontsize=9)
        panel.set_xlabel("weight")
    panels[0].set_ylabel("weights per bin")
    panels[0].legend(fontsize=8)
    figure.suptitle(f"Layer {_LAYER}: zero and powers of two")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    app.run(main)
