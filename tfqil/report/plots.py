"""Figures of a quantized model: the histogram of a tensor with its levels, bits per layer, bytes against accuracy.

Each function returns a `matplotlib.figure.Figure`, which `savefig` writes and notebooks show; none uses pyplot. They
need matplotlib: `pip install "tfqil[plots]"`.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfqil import _tables
from tfqil.export.freeze import require_calibrated, require_quantized
from tfqil.report.summary import FLOAT_BITS, summary
from tfqil.scheme.inputs import input_tensors
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer
from tfqil.training.interval_measures import Measures, of_kernel, of_tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

# Of Okabe and Ito, told apart by every kind of color vision; zones differ in their hatching too.
_BLUE, _SKY, _RED, _ORANGE, _GRAY = "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#999999"
_BINS = (20, 120)
# More levels than these are drawn as ticks at the bottom: lines would hide the histogram.
_MOST_LINES = 40
_INCHES_PER_LAYER = 0.34
# Where the name of a point may stand, right or left of it, in points.
_PLACES_OF_NAMES = ((6, -11), (6, 5), (-6, -11), (-6, 5), (6, -21), (6, 15))
_MARKER_PIXELS = 10
_UNDER_TEXT = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}


def weight_histogram(q_model: Any, layer: str) -> Figure:
    """The float weights of a layer, the interval that its quantizer has learned, and the levels that they become.

    Intervals and levels of channels are drawn in units of the step of each channel.

    Args:
        q_model: a quantized model.
        layer: the name of the layer in the float model, as `tfqil.summary` shows it.

    Raises:
        TypeError, ValueError: no quantized model, no such layer, or NaN or Inf in its kernel.
        ImportError: matplotlib is missing.
    """
    require_quantized(q_model)
    kernels = {wrapper.layer.name: wrapper for wrapper in q_model.layers if isinstance(wrapper, QuantizedLayer)}
    wrapper = _named(kernels, layer, "with a quantized kernel")
    figure, axes = _figure(8.0, 3.8)
    measures = of_kernel(wrapper)
    _draw_histogram(axes, measures, wrapper.weight_quantizer.bits, "weight")
    return figure


def activation_histogram(q_model: Any, layer: str, data: Any) -> Figure:
    """A tensor before it is quantized, on some inputs; the interval and the levels of its quantizer.

    Args:
        q_model: a quantized, calibrated model.
        layer: the name of the layer that quantizes the tensor, as `tfqil.summary` shows it.
        data: a batch: an array, a list of one per input, or a dictionary by their names.

    Raises:
        TypeError, ValueError: no quantized or no calibrated model, no such layer, or data that the model does not take.
        ImportError: matplotlib is missing.
    """
    require_quantized(q_model)
    tensors = {tensor.name: tensor for tensor in q_model.layers if isinstance(tensor, QuantizeActivation)}
    quantizing = _named(tensors, layer, "that quantizes a tensor")
    require_calibrated(q_model)
    inputs = input_tensors(q_model, data, "data to draw")
    figure, axes = _figure(8.0, 3.8)
    measures = next(found for found in of_tensors(q_model, inputs) if found.layer == layer)
    _draw_histogram(axes, measures, quantizing.quantizer.bits, "activation")
    axes.set_yscale("log")  # Zeros are many.
    return figure


def bits_per_layer(q_model: Any) -> Figure:
    """Two bars for each layer with a kernel: the bits of its weights and those of the inputs that they multiply.

    Raises:
        TypeError, ValueError: no quantized model.
        ImportError: matplotlib is missing.
    """
    rows = [row for row in summary(q_model) if row.input_bits is not None]
    weights = [row.placement.bits or FLOAT_BITS for row in rows]
    inputs = [row.input_bits or FLOAT_BITS for row in rows]
    figure, axes = _figure(8.0, _INCHES_PER_LAYER * len(rows) + 1.4)
    places = np.arange(len(rows))
    widest = max([8, *(bits for bits in (*weights, *inputs) if bits != FLOAT_BITS)])
    for shift, bits, label, color, hatch in (
        (-0.2, weights, "weights", _BLUE, ""),
        (0.2, inputs, "inputs", _ORANGE, "///"),
    ):
        axes.barh(places + shift, bits, 0.38, color=color, hatch=hatch, edgecolor="white", label=label)
        for place, width in zip(places + shift, bits, strict=True):
            text = "float" if width == FLOAT_BITS else str(width)
            axes.text(min(width, widest) + 0.08, place, text, va="center", fontsize=8, bbox=_UNDER_TEXT)
    axes.set_yticks(places, [row.placement.layer for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, widest + 1)
    axes.set_xticks(range(widest + 1))
    axes.set_xlabel("bits; bars of floats are cut off" if FLOAT_BITS in (*weights, *inputs) else "bits")
    axes.set_title(f"Bits per layer of {q_model.name}", loc="left")
    _legend(axes)
    return figure


def pareto(points: Mapping[str, tuple[float, float]], *, metric: str = "accuracy, %") -> Figure:
    """Bytes against accuracy of several models; a line joins those that no other one beats in both.

    Args:
        points: name -> (bytes, accuracy); the more accuracy the better.
        metric: what the accuracy is, for its axis.

    Raises:
        ValueError: no point, bytes that are not positive, or a number that is not finite.
        ImportError: matplotlib is missing.
    """
    _require_points(points)
    figure, axes = _figure(8.0, 4.6)
    best = non_dominated(points)
    others = [name for name in points if name not in best]
    axes.plot(*_xy(points, best), "o-", color=_BLUE, drawstyle="steps-post", label="Pareto front")
    label = "beaten by another one"
    axes.plot(*_xy(points, others), "o", color=_GRAY, markerfacecolor="white", zorder=3, label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda size, position: _tables.size(size))
    axes.xaxis.set_minor_formatter(lambda size, position: "")
    axes.margins(x=0.15, y=0.12)
    axes.set_xlabel("size (logarithmic)")
    axes.set_ylabel(metric)
    axes.set_title("Size against accuracy", loc="left")
    axes.grid(color="#dddddd", linewidth=0.6)
    _legend(axes)
    figure.draw_without_rendering()  # Now the axes have their place.
    _label_points(axes, points, best)
    return figure


def non_dominated(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points that are more accurate than all that are as small or smaller; the smallest first."""
    found: list[str] = []
    for name, (_, accuracy) in sorted(points.items(), key=lambda point: (point[1][0], -point[1][1])):
        if not found or accuracy > points[found[-1]][1]:
            found.append(name)
    return found


def _label_points(axes: Axes, points: Mapping[str, tuple[float, float]], bold: Container[str]) -> None:
    """Writes the name of each point beside it, where it hides no other point and no other name, if there is room."""
    taken = [_around(center, _MARKER_PIXELS) for center in axes.transData.transform(list(points.values()))]
    for name, point in points.items():
        style: dict[str, Any] = {"fontweight": "bold"} if name in bold else {"color": "#555555"}
        text = axes.annotate(name, point, (0, 0), textcoords="offset points", fontsize=8, **style)
        for offset in (*_PLACES_OF_NAMES, _PLACES_OF_NAMES[0]):  # The first one again, if none is free.
            text.xyann = offset
            text.set_horizontalalignment("left" if offset[0] > 0 else "right")
            box = text.get_window_extent()
            if not box.count_overlaps(taken) and all(axes.bbox.contains(*corner) for corner in box.corners()):
                break
        taken.append(box)


def _around(center: NDArray[np.float64], size: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox(np.stack([center - size / 2, center + size / 2]))


def _draw_histogram(axes: Axes, measures: Measures, bits: int, unit: str) -> None:
    """The values, the levels that they take, and the zones that become 0 or the outermost level."""
    is_per_channel = measures.step.ndim > 0
    step, lower = (1.0, 0.0) if is_per_channel else (float(measures.step), measures.lower)
    values = np.ravel(measures.values / measures.step if is_per_channel else measures.values)
    codes = measures.codes.ravel()
    ends = tuple(lower + code * step for code in measures.code_range)
    left, right = min(values.min(), ends[0]), max(values.max(), ends[1])
    margin = 0.03 * (right - left)
    bins = int(np.clip(2 * math.sqrt(values.size), *_BINS))
    axes.hist(values, bins=bins, range=(left, right), color=_SKY, label=f"{unit}s")
    zeros = values[codes == 0]
    if zeros.size:
        axes.axvspan(zeros.min(), zeros.max(), color=_GRAY, alpha=0.3, linewidth=0, zorder=0, label="becomes 0")
    _draw_levels(axes, lower + np.unique(codes) * step)
    title = f"{measures.codes_used} of {measures.code_count} codes, {measures.pruning_ratio:.0%} zeros"
    if measures.code_count > 2:  # With two codes, every value goes to the nearer end.
        title += f", {measures.clipped_share:.1%} clipped"
        zones = [(ends[1], right + margin), *([(left - margin, ends[0])] if measures.code_range[0] < 0 else [])]
        _draw_clipped(axes, zones if measures.clipped_share else [])
    if measures.interval:
        _draw_interval(axes, measures.interval, both_sides=measures.is_kernel)
    axes.set_xlim(left - margin, right + margin)
    axes.set_xlabel(f"{unit} in steps of its channel" if is_per_channel else unit)
    axes.set_ylabel(f"{unit}s per bin")
    axes.set_title(f"{measures.title}: {bits} bit{'s' if bits > 1 else ''}, {title}", loc="left", fontsize=10)
    _legend(axes)


def _draw_levels(axes: Axes, levels: NDArray[np.floating]) -> None:
    """Lines, or ticks at the bottom."""
    are_few = levels.size <= _MOST_LINES
    height, width = (1.0, 1.2) if are_few else (0.05, 0.7)
    axes.vlines(levels, 0.0, height, transform=axes.get_xaxis_transform(), color=_RED, linewidth=width, label="levels")


def _draw_clipped(axes: Axes, zones: Iterable[tuple[float, float]]) -> None:
    """Hatches what lies beyond the outermost level."""
    for number, zone in enumerate(zones):
        label = "clipped" if number == 0 else None
        axes.axvspan(*zone, facecolor="none", edgecolor=_ORANGE, hatch="////", linewidth=0, zorder=0, label=label)


def _draw_interval(axes: Axes, interval: tuple[float, float], *, both_sides: bool) -> None:
    """A bar above the histogram from the lower to the upper end."""
    for sign in (1, -1) if both_sides else (1,):
        axes.plot(
            [sign * end for end in interval],
            [0.97, 0.97],
            "|-",
            transform=axes.get_xaxis_transform(),
            color="black",
            linewidth=2.0,
            markersize=9,
            label="learned interval" if sign > 0 else None,
        )


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'Got no matplotlib, expected it for figures: install it with `pip install "tfqil[plots]"`.'
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Axes) -> None:
    """Beside the axes, where it hides nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)


def _named(layers: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in layers:
        raise ValueError(f"Got the layer name {name!r}, expected one {what}: {', '.join(layers)}.")
    return layers[name]


def _xy(points: Mapping[str, tuple[float, float]], names: Iterable[str]) -> tuple[list[float], list[float]]:
    chosen = [points[name] for name in names]
    return [size for size, _ in chosen], [accuracy for _, accuracy in chosen]


def _require_points(points: Mapping[str, tuple[float, float]]) -> None:
    if not points:
        raise ValueError("Got no points, expected at least one: pass names with their bytes and accuracy.")
    for name, (size, accuracy) in points.items():
        if not (math.isfinite(size) and math.isfinite(accuracy) and size > 0):
            raise ValueError(
                f"Got {size} bytes and an accuracy of {accuracy} for {name!r}, expected finite numbers and more than 0 "
                "bytes: pass (bytes, accuracy)."
            )
