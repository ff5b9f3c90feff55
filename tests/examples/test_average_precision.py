"""The mean average precision against values that follow from its definition."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples"))
import average_precision

BOX = [10.0, 10.0, 30.0, 30.0]


def truth(boxes, classes, difficult=None):
    difficult = np.zeros(len(boxes), bool) if difficult is None else np.array(difficult)
    return {"boxes": np.array(boxes), "classes": np.array(classes), "difficult": difficult}


def found(boxes, classes, scores):
    return {"boxes": np.array(boxes).reshape(-1, 4), "classes": np.array(classes), "scores": np.array(scores)}


def precision(truths, detections):
    return average_precision.mean_average_precision(truths, detections, ("a", "b"))


def test_what_is_found_exactly_is_all():
    result = precision([truth([BOX], [0]), truth([BOX], [1])], [found([BOX], [0], [0.9]), found([BOX], [1], [0.8])])
    assert result == {"map": pytest.approx(100), "map50": pytest.approx(100)}


def test_nothing_found_is_nothing():
    assert precision([truth([BOX], [0])], [found([], [], [])]) == {"map": 0.0, "map50": 0.0}


def test_another_class_is_not_found():
    assert precision([truth([BOX], [0])], [found([BOX], [1], [0.9])])["map50"] == 0


def test_the_thresholds_that_an_overlap_reaches_count():
    """A box of 20 x 20 beside one of 20 x 14 in it: 0.7 of the union, which is at 0.50, 0.55 ... 0.70, half of ten."""
    result = precision([truth([BOX], [0])], [found([[10.0, 10.0, 30.0, 24.0]], [0], [0.9])])
    assert result["map50"] == pytest.approx(100)
    assert result["map"] == pytest.approx(50)


def test_one_of_two_objects_found_after_a_false_one():
    """Precision 1/2 up to a recall of 1/2, of which COCO has 51 of 101 points."""
    result = precision(
        [truth([BOX, [50.0, 50.0, 70.0, 70.0]], [0, 0])],
        [found([[80.0, 80.0, 90.0, 90.0], BOX], [0, 0], [0.9, 0.8])],
    )
    assert result["map50"] == pytest.approx(100 * 0.5 * 51 / 101)


def test_a_difficult_object_is_neither_missed_nor_found_wrongly():
    other = [50.0, 50.0, 70.0, 70.0]
    truths = [truth([BOX, other], [0, 0], [False, True])]
    assert precision(truths, [found([BOX], [0], [0.8])])["map50"] == pytest.approx(100)
    assert precision(truths, [found([BOX, other], [0, 0], [0.8, 0.9])])["map50"] == pytest.approx(100)


def test_images_without_objects_are_refused():
    with pytest.raises(ValueError, match="Got 2 images without an object, expected some"):
        precision([truth(np.zeros((0, 4)), [])] * 2, [found([BOX], [0], [0.8]), found([], [], [])])
