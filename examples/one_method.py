"""What the examples of one method share: flags, the run from float network to files, and a figure of weights."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
import recipes
import results
from absl import flags, logging
from matplotlib.figure import Figure

_OUTPUT = flags.DEFINE_string("output", "examples/output", "Folder for the files and the figure.")
_FLOAT_EPOCHS = flags.DEFINE_integer("float_epochs", 30, "Epochs of the float network.", lower_bound=1)
EPOCHS = flags.DEFINE_integer("epochs", 20, "Epochs of each quantized network.", lower_bound=2)
_WIDTH = flags.DEFINE_integer("width", 16, "Channels of the first block.", lower_bound=4)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and batches.")

# The layer whose weights the figures show.
LAYER = "block2_second"


def run(
    chosen: Sequence[recipes.Recipe], draw: Callable[[list[recipes.Trained], pathlib.Path], None], figure: str
) -> None:
    """Trains a network per recipe, writes the files and the figure, prints the table."""
    started = time.perf_counter()
    logging.set_verbosity(logging.ERROR)
    output = pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    rows, trained = recipes.compare(
        chosen, seed=_SEED.value, float_epochs=_FLOAT_EPOCHS.value, epochs=EPOCHS.value, width=_WIDTH.value
    )
    results.write_files(rows, output)
    draw(trained, output / figure)
    console = results.console()
    console.print(results.table(rows))
    console.print("One seed: differences of half a point are chance, as examples/methods.py shows over several.")
    console.print(f"Files and figure: {output}, {figure}. {time.perf_counter() - started:.0f} s in all.")


def draw_weights(
    trained: list[recipes.Trained],
    path: pathlib.Path,
    *,
    title: str,
    caption: Callable[[np.ndarray, np.ndarray], str],
) -> None:
    """Writes one panel per network: the float weights of `LAYER` and their levels; captions from weights and values."""
    figure = Figure(figsize=(3.2 * len(trained), 3.2))
    panels = figure.subplots(1, len(trained), sharex=True, sharey=True)
    for panel, one in zip(panels, trained, strict=True):
        layer = one.q_model.get_layer(f"quant_{LAYER}")
        weights, values = layer.kernel.numpy().ravel(), layer.grid().values.ravel()
        panel.hist(weights, bins=80, color="#7a9cc6", label="float weights")
        for index, level in enumerate(np.unique(values)):
            panel.axvline(level, color="#b03a2e", linewidth=0.9, label="levels" if index == 0 else None)
        panel.set_title(f"{one.recipe.name}\n{caption(weights, values)}", fontsize=9)
        panel.set_xlabel("weight")
    panels[0].set_ylabel("weights per bin")
    panels[0].legend(fontsize=8)
    figure.suptitle(f"Layer {LAYER}: {title}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
