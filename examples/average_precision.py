"""The mean average precision of detections, as pycocotools computes it for COCO."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def mean_average_precision(
    truths: Sequence[dict[str, np.ndarray]], detections: Sequence[dict[str, np.ndarray]], classes: Sequence[str]
) -> dict[str, float]:
    """The precision over all classes, in percent.

    Args:
        truths: one per image: `boxes` (n, 4) left, top, right, bottom, `classes` (n,), `difficult` (n,); a difficult
            object is neither missed nor found wrongly, nor is any box within it wrong: it is a crowd of COCO.
        detections: one per image: `boxes` (n, 4), `classes` (n,), `scores` (n,).
        classes: their names.

    Returns:
        `map`: mean over the thresholds 0.50, 0.55 ... 0.95 of the intersection over union; `map50`: at 0.50, which VOC
        takes.

    Raises:
        ValueError: no image has an object.
    """
    if not any(len(image["boxes"]) for image in truths):
        raise ValueError(f"Got {len(truths)} images without an object, expected some: the mean would be over nothing.")
    truth, numbers = COCO(), itertools.count(1)
    truth.dataset = {
        "images": [{"id": number} for number in range(1, len(truths) + 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
        "annotations": [
            {
                "id": next(numbers),
                "image_id": number,
                "category_id": int(label) + 1,
                "bbox": _corner_and_size(box),
                "area": float((box[2] - box[0]) * (box[3] - box[1])),
                "iscrowd": int(difficult),
            }
            for number, image in enumerate(truths, start=1)
            for box, label, difficult in zip(image["boxes"], image["classes"], image["difficult"], strict=True)
        ],
    }
    found = [
        {
            "image_id": number,
            "category_id": int(label) + 1,
            "bbox": _corner_and_size(box),
            "score": float(score),
        }
        for number, image in enumerate(detections, start=1)
        for box, label, score in zip(image["boxes"], image["classes"], image["scores"], strict=True)
    ]
    if not found:
        return {"map": 0.0, "map50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does.
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"map": 100 * float(evaluation.stats[0]), "map50": 100 * float(evaluation.stats[1])}


def _corner_and_size(box: np.ndarray) -> list[float]:
    left, top, right, bottom = map(float, box)
    return [left, top, right - left, bottom - top]
