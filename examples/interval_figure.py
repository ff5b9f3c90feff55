"""Draws the learned weight intervals of a QIL network over the histograms of its weights."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import tf_keras as keras
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLUMNS = 3


def draw(q_model: keras.Model, path: pathlib.Path) -> pathlib.Path:
    """Writes one panel per layer with a learned interval: histogram, pruned and clipped zones, levels."""
    wrappers = [layer for layer in q_model.layers if "half_width" in getattr(layer, "quantizer_variables", {})]
    wrappers = [layer for layer in wrappers if hasattr(layer, "weight_quantizer")]
    rows = math.ceil(len(wrappers) / _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 2.8 * rows))
    axes = figure.subplots(rows, _COLUMNS, squeeze=False)
    for panel in axes.flat[len(wrappers) :]:
        panel.axis("off")
    for panel, wrapper in zip(axes.flat, wrappers, strict=False):
        _draw_layer(panel, wrapper)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.suptitle("Weights, their learned intervals and the levels they become")
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=120)
    return path


def _draw_layer(panel: Axes, wrapper: keras.layers.Layer) -> None:
    weights = wrapper.kernel.numpy().ravel()
    center, half_width = (float(wrapper.quantizer_variables[name]) for name in ("center", "half_width"))
    lower, upper = center - half_width, center + half_width
    reach = 1.05 * max(np.abs(weights).max(), upper)
    panel.hist(weights, bins=80, range=(-reach, reach), color="#7a9cc6", label="weights")
    panel.axvspan(-lower, lower, color="#d9d9d9", alpha=0.6, zorder=0, label="below the interval: 0")
    for sign in (-1, 1):
        zone = sorted((sign * upper, sign * reach))
        panel.axvspan(*zone, color="#f2c9a1", alpha=0.6, zorder=0, label="above it: clipped" if sign > 0 else None)
    grid = wrapper.grid()
    for index, level in enumerate(np.unique(grid.values)):
        panel.axvline(level, color="#b03a2e", linewidth=1.2, label="levels" if index == 0 else None)
    zeros = np.mean(grid.codes == 0)
    panel.set_title(f"{wrapper.layer.name}: {grid.bits} bits, {100 * zeros:.0f} % zeros", fontsize=9)
    panel.set_xlim(-reach, reach)
    panel.set_yticks([])
