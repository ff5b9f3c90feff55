"""Figures show what the grids are: levels, intervals, counts, bits and points; titles and labels say what is what."""

from __future__ import annotations

import builtins
import io
import sys

import matplotlib.figure
import numpy as np
import pytest

import tfqil
from tests import networks, three_layers
from tfqil.report import plots
from tfqil.scheme.inputs import input_tensors
from tfqil.training.interval_measures import of_tensors

IMAGES, _ = networks.digits(64)
POINTS = {
    "float": (312_920.0, 98.8),
    "8/8": (91_568.0, 98.3),
    "4/4": (61_920.0, 99.2),
    "4/4 wide": (80_000.0, 99.2),
    "2/2": (42_976.0, 98.5),
}


@pytest.fixture(scope="module")
def q_model():
    return networks.calibrated(networks.residual(), 3, 3)


def axes_of(figure):
    """The only axes of a figure that draws without an error, and is not empty."""
    assert isinstance(figure, matplotlib.figure.Figure)
    content = io.BytesIO()
    figure.savefig(content, format="raw")
    pixels = np.frombuffer(content.getvalue(), np.uint8).reshape(-1, 4)
    assert len(np.unique(pixels, axis=0)) > 20, "an empty picture has few colors"
    (axes,) = figure.axes
    return axes


def labelled(axes, label):
    """The artists with a label, as the legend finds them."""
    handles, labels = axes.get_legend_handles_labels()
    return [handle for handle, found in zip(handles, labels, strict=True) if found == label]


def level_positions(axes):
    (lines,) = labelled(axes, "levels")
    return np.array([segment[0][0] for segment in lines.get_segments()])


def counts(axes):
    return np.array([patch.get_height() for patch in axes.containers[0]])


def test_the_levels_of_a_weight_histogram_are_those_of_the_grid(q_model):
    axes = axes_of(plots.weight_histogram(q_model, "one_a"))
    grid = tfqil.freeze(q_model)["one_a"]
    np.testing.assert_allclose(level_positions(axes), np.unique(grid.values), rtol=1e-6, atol=1e-9)
    assert counts(axes).sum() == grid.codes.size
    zeros = f"{np.mean(grid.codes == 0):.0%} zeros"
    assert axes.get_title(loc="left").startswith(f"one_a: 3 bits, {np.unique(grid.codes).size} of 7 codes, {zeros}")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("weight", "weights per bin")


def test_the_interval_is_that_of_the_quantizer_and_the_zones_are_those_of_the_codes(q_model):
    axes = axes_of(plots.weight_histogram(q_model, "one_a"))
    wrapper = q_model.get_layer("quant_one_a")
    center, half_width = (float(wrapper.quantizer_variables[name]) for name in ("center", "half_width"))
    (bar,) = labelled(axes, "learned interval")
    np.testing.assert_allclose(bar.get_xdata(), [center - half_width, center + half_width], rtol=1e-6)
    codes, kernel = wrapper.grid().codes, wrapper.kernel.numpy()
    (zone,) = labelled(axes, "becomes 0")
    assert zone.get_x() == pytest.approx(kernel[codes == 0].min(), rel=1e-6)
    assert zone.get_x() + zone.get_width() == pytest.approx(kernel[codes == 0].max(), rel=1e-6)
    (clipped,) = labelled(axes, "clipped")
    assert clipped.get_x() == pytest.approx(center + half_width, rel=1e-6)
    assert f"{np.mean(np.abs(kernel) > center + half_width):.1%} clipped" in axes.get_title(loc="left")


def test_channels_are_drawn_in_their_steps():
    q_model = three_layers.quantized(tfqil.QILQuantizeConfig(4, 8, per_channel=True))
    axes = axes_of(plots.weight_histogram(q_model, "second"))
    np.testing.assert_array_equal(level_positions(axes), np.unique(tfqil.freeze(q_model)["second"].codes))
    assert axes.get_xlabel() == "weight in steps of its channel" and not labelled(axes, "learned interval")


def test_weights_of_8_bits_have_ticks_instead_of_lines(q_model):
    axes = axes_of(plots.weight_histogram(q_model, "stem"))
    (lines,) = labelled(axes, "levels")
    assert len(lines.get_segments()) == np.unique(tfqil.freeze(q_model)["stem"].codes).size > 40
    assert all(segment[1][1] < 0.1 for segment in lines.get_segments())


@pytest.mark.parametrize("config", [tfqil.LBWQuantizeConfig(4, 8), tfqil.BCGDQuantizeConfig(1, 4)], ids=["lbw", "bcgd"])
def test_methods_without_an_interval_have_levels(config):
    q_model = three_layers.quantized(config)
    axes = axes_of(plots.weight_histogram(q_model, "second"))
    np.testing.assert_allclose(level_positions(axes), np.unique(tfqil.freeze(q_model)["second"].values), rtol=1e-6)
    assert not labelled(axes, "learned interval")
    low, high = axes.get_xlim()
    assert low < level_positions(axes).min() and level_positions(axes).max() < high
    # Of two levels neither clips: every weight goes to the nearer one.
    assert ("clipped" in axes.get_title(loc="left")) == (config.weights.bits > 1)


def test_the_levels_of_an_activation_histogram_are_those_of_the_grid(q_model):
    name = "quantize_one_a_relu"
    axes = axes_of(plots.activation_histogram(q_model, name, IMAGES))
    grid = q_model.get_layer(name).grid()
    measures = next(m for m in of_tensors(q_model, input_tensors(q_model, IMAGES, "images")) if m.layer == name)
    used = np.unique(measures.codes)
    np.testing.assert_allclose(level_positions(axes), used * grid.step + grid.lower, rtol=1e-6)
    assert counts(axes).sum() == measures.values.size and axes.get_yscale() == "log"
    assert axes.get_title(loc="left").startswith(f"{name}: 3 bits, {used.size} of 8 codes")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("activation", "activations per bin")
    assert labelled(axes, "learned interval") and labelled(axes, "becomes 0")


def test_signed_activations_of_8_bits_can_be_drawn(q_model):
    signed = next(row.placement.layer for row in tfqil.summary(q_model) if row.grid and " x -" in row.grid
                  and row.placement.role == "tensor")  # fmt: skip
    axes = axes_of(plots.activation_histogram(q_model, signed, IMAGES))
    assert level_positions(axes).min() < 0 < level_positions(axes).max()


def test_bits_per_layer_are_those_of_the_summary():
    scheme = tfqil.LowBitScheme(tfqil.QILQuantizeConfig(3, 2), edge_bits=None)
    q_model = three_layers.quantized(scheme)
    axes = axes_of(plots.bits_per_layer(q_model))
    rows = [row for row in tfqil.summary(q_model) if row.placement.role == "kernel"]
    assert [text.get_text() for text in axes.get_yticklabels()] == [row.placement.layer for row in rows]
    weights, inputs = ([bar.get_width() for bar in bars] for bars in axes.containers)
    assert weights == [row.placement.bits or 32 for row in rows] and 32 in weights
    assert inputs == [row.input_bits for row in rows] and {2, 32} <= set(inputs)
    assert [bars.get_label() for bars in axes.containers] == ["weights", "inputs"]
    assert {text.get_text() for text in axes.texts} == {"2", "3", "8", "float"}
    assert axes.get_title(loc="left") == "Bits per layer of three_layers"
    assert axes.get_xlabel() == "bits; bars of floats are cut off" and axes.get_xlim()[1] == 9


def test_the_pareto_front_joins_what_no_other_point_beats():
    axes = axes_of(plots.pareto(POINTS, metric="top-1, %"))
    (front,) = labelled(axes, "Pareto front")
    assert list(zip(*front.get_data(), strict=True)) == [POINTS["2/2"], POINTS["4/4"]]
    (others,) = labelled(axes, "beaten by another one")
    assert set(zip(*others.get_data(), strict=True)) == {POINTS["float"], POINTS["8/8"], POINTS["4/4 wide"]}
    assert {text.get_text() for text in axes.texts} == set(POINTS)
    assert axes.get_ylabel() == "top-1, %" and axes.get_xlabel().startswith("size")


def test_of_equally_small_points_the_better_is_on_the_front():
    assert plots.non_dominated({"a": (10, 1.0), "b": (10, 2.0), "c": (20, 2.0), "d": (5, 0.5)}) == ["d", "b"]


def test_one_point_can_be_drawn():
    axes_of(plots.pareto({"only": (100, 50.0)}))


def test_the_names_of_near_points_hide_neither_each_other_nor_a_point():
    near = {"one": (22_000, 98.5), "another": (22_900, 98.5), "third": (23_500, 98.51), "far": (200_000, 97.0)}
    axes = axes_of(plots.pareto(near))
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(box.count_overlaps(boxes[:place]) for place, box in enumerate(boxes))
    for center in axes.transData.transform(list(near.values())):
        assert not any(box.contains(*center) for box in boxes)


def test_no_global_state_of_pyplot_is_touched(q_model):
    before = "matplotlib.pyplot" in sys.modules
    figures = set(sys.modules["matplotlib.pyplot"].get_fignums()) if before else set()
    plots.weight_histogram(q_model, "one_a")
    plots.pareto(POINTS)
    assert ("matplotlib.pyplot" in sys.modules) == before
    assert not before or set(sys.modules["matplotlib.pyplot"].get_fignums()) == figures


# --- bad input ---


def test_another_name_is_refused_with_those_there_are(q_model):
    with pytest.raises(ValueError, match=r"^Got the layer name 'nobody', expected one with a quantized kernel: stem, "):
        plots.weight_histogram(q_model, "nobody")
    with pytest.raises(
        ValueError, match=r"^Got the layer name 'stem', expected one that quantizes a tensor: quantize_"
    ):
        plots.activation_histogram(q_model, "stem", IMAGES)


def test_a_model_that_is_not_calibrated_has_no_activation_histogram():
    with pytest.raises(ValueError, match="never set"):
        plots.activation_histogram(
            three_layers.quantized(tfqil.QILQuantizeConfig(3, 3)), "quantize_first_activation", three_layers.IMAGES
        )


def test_data_of_another_shape_are_refused(q_model):
    with pytest.raises(ValueError, match=r"^Got data to draw of shape \(2, 3\)"):
        plots.activation_histogram(q_model, "quantize_one_a_relu", np.zeros((2, 3)))


def test_a_float_model_is_refused():
    for draw in (lambda m: plots.weight_histogram(m, "stem"), plots.bits_per_layer):
        with pytest.raises(ValueError, match="^Got the float model 'tiny', expected a quantized one"):
            draw(networks.tiny())


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({}, "^Got no points, expected at least one"),
        ({"a": (0, 1.0)}, "^Got 0 bytes and an accuracy of 1.0 for 'a', expected finite numbers and more than 0 bytes"),
        ({"a": (1, float("nan"))}, "^Got 1 bytes and an accuracy of nan for 'a', expected finite numbers"),
    ],
)
def test_points_that_are_none_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        plots.pareto(points)


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch):
    imported = builtins.__import__

    def without_matplotlib(name, *arguments):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(
        ImportError, match=r'^Got no matplotlib, expected it for figures: install it with `pip install "'
    ):
        plots.pareto(POINTS)
