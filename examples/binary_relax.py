"""Ternary weights with and without BinaryRelax, on handwritten digits.

    python examples/binary_relax.py

Finetunes a float network to ternary weights twice: with weights that are quantized from the first step on, and with
BinaryRelax, whose lambda draws them there and becomes infinite for the last quarter. Converts and verifies both, prints
a table, and draws lambda, the training loss and the accuracy of the quantized network over the epochs.
"""

from __future__ import annotations

import math
import pathlib

import one_method
import recipes
from absl import app
from matplotlib.figure import Figure

import tfqil

RECIPES = (
    recipes.Recipe(name="ternary", config=tfqil.BCGDQuantizeConfig(2, 4)),
    recipes.Recipe(name="relaxed", config=tfqil.BCGDQuantizeConfig(2, 4, relax=True), exact_share=0.25),
)


def main(_: list[str]) -> None:
    one_method.run(RECIPES, draw, "binary_relax.png")


def draw(trained: list[recipes.Trained], path: pathlib.Path) -> None:
    """Writes three panels over the epochs: lambda, training loss, accuracy of the quantized weights."""
    figure = Figure(figsize=(12, 3.6))
    strength, loss, accuracy = figure.subplots(1, 3)
    for one in trained:
        epochs = range(1, len(one.history["loss"]) + 1)
        loss.plot(epochs, one.history["loss"], label=one.recipe.name)
        accuracy.plot(epochs, [100 * value for value in one.history["val_accuracy"]], label=one.recipe.name)
        if "lambda" in one.history:
            relaxed = [value for value in one.history["lambda"] if math.isfinite(value)]
            strength.semilogy(range(1, len(relaxed) + 1), relaxed, color="C1", label="lambda")
            for panel in (strength, loss, accuracy):
                panel.axvspan(len(relaxed) + 0.5, len(epochs) + 0.5, color="#e8e8e8", zorder=0, label="exact")
    for panel, title in ((strength, "lambda"), (loss, "training loss"), (accuracy, "test accuracy, quantized, %")):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("epoch")
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    app.run(main)
