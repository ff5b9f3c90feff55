"""The study of coarse gradients: what its tables, its figure and its closing sentences say."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import numpy as np
import pytest
import rich.console
from absl.testing import flagsaver
from matplotlib.image import imread

from tfqil.numerics import two_layer

PATH = pathlib.Path(__file__).parents[2] / "examples" / "coarse_gradient.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[PATH.stem] = module
    # Other examples define flags of the same names: these are gone again after the import.
    with flagsaver.flagsaver():
        spec.loader.exec_module(module)
    yield module
    del sys.modules[PATH.stem]


@pytest.fixture(scope="module")
def comparisons(example):
    return example.compare(20_000, seed=1)


@pytest.fixture(scope="module")
def descents(example):
    starts = example.draw_starts(3, seed=1)
    return example.descend_from(starts, learning_rate=0.05, steps=1_200)


def text_of(table) -> str:
    console = rich.console.Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_every_closed_form_is_compared_and_lies_within_five_standard_errors(example, comparisons):
    assert {row.point for row in comparisons} == {"any", "saddle", "spurious"}
    assert len(comparisons) == 3 * 5
    assert all(row.deviation <= 5 for row in comparisons)
    vanishing = {(row.point, row.quantity) for row in comparisons if np.allclose(row.closed_form, 0, atol=1e-12)}
    stationary = ("gradient_v", "relu", "clipped_relu")
    assert vanishing == {(point, quantity) for point in ("saddle", "spurious") for quantity in stationary}


def test_the_descents_end_where_the_theorem_says(example, descents):
    for by_kind in descents.values():
        for kind in ("relu", "clipped_relu"):
            assert example.largest_rise(by_kind[kind].losses) == 0
            assert example.outcome(by_kind[kind]) in ("global", "spurious")
    near = {kind: example.outcome(descent) for kind, descent in descents[example.NEAR].items()}
    assert near == {"identity": "not converged", "relu": "spurious", "clipped_relu": "spurious"}
    assert example.largest_rise(descents[example.NEAR]["identity"].losses) > 1


def test_a_descent_that_stands_near_a_minimiser_but_still_jumps_has_not_converged(example, descents):
    end = descents[example.NEAR]["relu"].end
    assert two_layer.stationary_point_near(end) == "spurious"
    jumping = np.tile([0.4, 1.5, 0.4], 40)
    descent = two_layer.Descent(end=end, losses=jumping, angles=jumping, lengths=jumping)
    assert example.outcome(descent) == "not converged"


def test_the_tables_name_every_start_and_every_end(example, comparisons, descents):
    starts, estimators, ends, *_ = (list(column.cells) for column in example.descent_table(descents).columns)
    assert starts[::3] == ["random 1", "random 2", "random 3", example.NEAR]
    assert estimators == 4 * ["identity", "ReLU", "clipped ReLU"]
    assert ends == [example.outcome(descent) for by_kind in descents.values() for descent in by_kind.values()]
    text = text_of(example.comparison_table(comparisons))
    assert text.count("clipped ReLU") == text.count("gradient_v") == 3
    assert "0.400" in text and "-0.383 0.000 0.000" in text  # Loss and identity at the spurious minimiser.


def test_the_closing_sentences_say_what_was_seen(example, comparisons, descents):
    sentences = example.conclusion(comparisons, descents).split("\n")
    assert len(sentences) == 7
    ends = "the 3 random descents end: 2 global, 1 spurious"
    assert f"With the ReLU, {ends}; the loss rose on the way in 0 of them." in sentences
    identity, relu, clipped = sentences[-3:]
    assert identity.startswith("Beside the spurious minimiser the identity is driven away: it shortens w to ")
    assert relu == "Beside the spurious minimiser the ReLU stays: the loss falls to 0.400 and never rises."
    assert clipped == relu.replace("ReLU", "clipped ReLU")


def test_few_steps_are_not_called_an_arrival(example, comparisons):
    descents = example.descend_from(example.draw_starts(1, seed=1), learning_rate=0.05, steps=10)
    text = example.conclusion(comparisons, descents)
    assert "With the ReLU, the 1 random descents end: 1 not converged" in text
    assert "the identity has not settled: the loss falls to" in text


def test_the_figure_has_four_panels_with_all_three_estimators(example, descents, tmp_path):
    path = example.draw(descents, tmp_path / "figure.png", samples=200, seed=1)
    image = imread(path)[..., :3]
    height, width = image.shape[:2]
    assert height > 900 and width > 1400
    panels = [image[rows, columns] for rows in _halves(height) for columns in _halves(width)]
    for panel in panels:
        for color in example._COLORS.values():
            wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
            assert np.count_nonzero(np.abs(panel - wanted).max(axis=-1) < 0.05) > 50


def _halves(length: int) -> tuple[slice, slice]:
    return slice(0, length // 2), slice(length // 2, length)


def test_the_two_parts_of_a_turned_gradient_lie_along_w_and_along_the_gradient_of_the_loss(example):
    for theta in (0.3, 1.5, 3.0):
        point = example._turned(theta)
        assert point.angle == pytest.approx(theta, abs=1e-12)
        gradient = two_layer.gradient_w(point)
        np.testing.assert_allclose(gradient / np.linalg.norm(gradient), [0, 1, 0], atol=1e-12)
