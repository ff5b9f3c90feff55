"""Binary weights and 4-bit activations by blended coarse gradient descent (BCGD), on handwritten digits.

    python examples/blended_descent.py

Finetunes a float network to weights of one magnitude and activations with a learned resolution, with several shares rho
of the blending; 0 is plain straight-through training. Converts and verifies each, prints a table, and draws the float
weights of one layer at the end: blending draws them to the two levels.
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
_EPOCHS = flags.DEFINE_integer("epochs", 20, "Epochs of each quantized network.", lower_bound=2)
_WIDTH = flags.DEFINE_integer("width", 16, "Channels of the first block.", lower_bound=4)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and batches.")

RHOS = (0.0, 1e-5, 1e-2)
RECIPES = tuple(recipes.Recipe(name=f"rho {rho:g}", config=tfqil.BCGDQuantizeConfig(1, 4), rho=rho) for rho in RHOS)
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
    figure = draw(trained, output / "blended_descent.png")
    console = results.console()
    console.print(results.table(rows))
    console.print("One seed: differences of half a point are chance, as examples/methods.py shows over several.")
    console.print(f"Files and figure: {output}, {figure.name}. {time.perf_counter() - started:.0f} s in all.")


def draw(trained: list[recipes.Trained], path: pathlib.Path) -> pathlib.Path:
    """Writes one panel per share: the float weights of a layer and the two levels."""
    figure = Figure(figsize=(3.6 * len(trained), 3.2))
    panels = figure.subplots(1, len(trained), sharex=True, sharey=True)
    for panel, one in zip(panels, trained, strict=True):
        layer = one.q_model.get_layer(f"quant_{_LAYER}")
        weights, values = layer.kernel.numpy().ravel(), layer.grid().values
        panel.hist(weights, bins=80, color="#7a9cc6", label="float weights")
        for index, level in enumerate(np.unique(values)):
            panel.axvline(level, color="#b03a2e", linewidth=1.2, label="levels" if index == 0 else None)
        distance = np.abs(values.ravel() - weights).mean() / np.abs(values).mean()
        panel.set_title(f"{one.recipe.name}: mean distance {distance:.2f} levels", fontsize=9)
        panel.set_xlabel("weight")
    panels[0].set_ylabel("weights per bin")
    panels[0].legend(fontsize=8)
    figure.suptitle(f"Layer {_LAYER}: float weights behind binary ones")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    app.run(main)
