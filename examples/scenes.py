"""The data set *scenes*: small shapes and glyphs with boxes, for detectors, in the structure of PASCAL VOC's features.

Ten classes, images of 128 x 128 x 3 bytes with one to six objects of 14 to 44 pixels, turned, in any color that differs
from the background, on gradients with lines and blotches. Every image follows from the seed, the split and its number
alone. The glyphs of the test are of faces that the training does not show.
"""

from __future__ import annotations

import functools
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import glyphs
import numpy as np
import stored
import tensorflow as tf
from PIL import Image, ImageDraw

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring", "A", "K", "S", "4")
SIZE = 128
EXAMPLES = {"train": 3_000, "test": 500}
# Of the drawing: what is stored by another version is not read.
VERSION = 1

_SEEDS = {"train": 11, "test": 12}
_FACES = {"train": glyphs.TRAIN_FACES, "test": glyphs.TEST_FACES}
_MOST_OBJECTS = 6
_SIZES = (14, 44)
# Least difference of brightness between an object and what is behind it, of 255.
_CONTRAST = 60
# Objects are drawn this many times larger.
_ENLARGED = 4

# Splits of arrays: images (n, 128, 128, 3); boxes (n, 6, 4), ymin, xmin, ymax, xmax as shares of the image; labels
# (n, 6), -1 where there is no object.
Arrays = Mapping[str, np.ndarray]


def arrays(folder: str | os.PathLike[str] | None = None) -> Arrays:
    """Images, boxes and labels of both splits, as `train_images`; drawn at the first call.

    Args:
        folder: where generated sets are stored; None for the usual place.

    Raises:
        ValueError: the stored set is damaged or another one.
    """
    settings = {"set": "scenes", "version": VERSION, "examples": EXAMPLES, "classes": CLASSES}

    def make() -> dict[str, np.ndarray]:
        made = {}
        for split, count in EXAMPLES.items():
            drawn = draw(count, _FACES[split], seed=_SEEDS[split])
            made.update({f"{split}_{name}": array for name, array in drawn.items()})
        return made

    return stored.stored(pathlib.Path(folder or stored.DEFAULT_FOLDER, "scenes"), settings, make)


def draw(count: int, faces: Sequence[str], *, seed: int) -> dict[str, np.ndarray]:
    """Draws scenes: `images`, `boxes` and `labels`, see `Arrays`."""
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    boxes = np.zeros((count, _MOST_OBJECTS, 4), np.float32)
    labels = np.full((count, _MOST_OBJECTS), -1, np.int64)
    for number in range(count):
        random = np.random.default_rng((seed, number))
        images[number], found = _scene(tuple(faces), random)
        for place, (label, box) in enumerate(found):
            boxes[number, place], labels[number, place] = np.array(box) / SIZE, label
    return {"images": images, "boxes": boxes, "labels": labels}


def features(arrays: Arrays, split: str) -> tf.data.Dataset:
    """The examples of a split in their order, with the features that TensorFlow Datasets gives of PASCAL VOC."""
    images, boxes, labels = (arrays[f"{split}_{name}"] for name in ("images", "boxes", "labels"))

    def examples() -> Iterator[dict[str, Any]]:
        for number, (image, all_boxes, all_labels) in enumerate(zip(images, boxes, labels, strict=True)):
            there = all_labels >= 0
            classes = np.unique(all_labels[there])
            yield {
                "image": image,
                "image/filename": f"scene_{split}_{number:05}.png",
                "labels": classes,
                "labels_no_difficult": classes,
                "objects": {
                    "bbox": all_boxes[there],
                    "is_difficult": np.zeros(there.sum(), bool),
                    "is_truncated": np.zeros(there.sum(), bool),
                    "label": all_labels[there],
                    "pose": np.full(there.sum(), 4, np.int64),  # Unspecified.
                },
            }

    def many(dtype: tf.DType, *shape: int) -> tf.TensorSpec:
        return tf.TensorSpec((None, *shape), dtype)

    signature = {
        "image": tf.TensorSpec((None, None, 3), tf.uint8),
        "image/filename": tf.TensorSpec((), tf.string),
        "labels": many(tf.int64),
        "labels_no_difficult": many(tf.int64),
        "objects": {
            "bbox": many(tf.float32, 4),
            "is_difficult": many(tf.bool),
            "is_truncated": many(tf.bool),
            "label": many(tf.int64),
            "pose": many(tf.int64),
        },
    }
    dataset = tf.data.Dataset.from_generator(examples, output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(images)))


Box = tuple[float, float, float, float]


def _scene(faces: tuple[str, ...], random: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, Box]]]:
    image = _background(random)
    found: list[tuple[int, Box]] = []
    for _ in range(random.integers(1, _MOST_OBJECTS + 1)):
        label = int(random.integers(len(CLASSES)))
        mask = _object(CLASSES[label], faces, random)
        height, width = mask.shape
        for _ in range(20):  # Else there is no room left.
            top, left = (int(random.integers(SIZE - length + 1)) for length in (height, width))
            box = (top, left, top + height, left + width)
            if all(_apart(box, other) for _, other in found):
                part = image[top : top + height, left : left + width]
                part[:] = part * (1 - mask[..., None]) + _color(part, random) * mask[..., None]
                found.append((label, box))
                break
    image += random.normal(0, random.uniform(0, 8), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), found


def _apart(box: Box, other: Box) -> bool:
    """Whether two boxes share less than a tenth of the smaller one."""
    height = min(box[2], other[2]) - max(box[0], other[0])
    width = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((one[2] - one[0]) * (one[3] - one[1]) for one in (box, other))
    return max(height, 0) * max(width, 0) < 0.1 * smaller


def _background(random: np.random.Generator) -> np.ndarray:
    """A gradient with blotches and lines."""
    first = random.uniform(0, 255, 3)
    ends = np.stack([first, first + random.uniform(-60, 60, 3)])
    direction = random.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5
    share = np.clip(0.5 + rows * math.sin(direction) + columns * math.cos(direction), 0, 1)[..., None]
    coarse = Image.fromarray(random.integers(0, 256, (10, 10)).astype(np.uint8))
    blotches = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float64)[..., None] / 255 - 0.5
    image = ends[0] * (1 - share) + ends[1] * share + random.uniform(0, 40) * blotches
    lines = Image.new("L", (SIZE, SIZE))
    for _ in range(random.integers(4)):
        ends_of_line = [tuple(end) for end in random.uniform(0, SIZE, (2, 2))]
        ImageDraw.Draw(lines).line(ends_of_line, fill=int(random.integers(60, 200)), width=int(random.integers(1, 3)))
    strength = np.asarray(lines, np.float64)[..., None] / 255
    return image * (1 - strength) + random.uniform(0, 255, 3) * strength


def _object(name: str, faces: tuple[str, ...], random: np.random.Generator) -> np.ndarray:
    """How much of each pixel a turned object covers, 0 to 1, without empty rows and columns around it."""
    length = math.exp(random.uniform(math.log(_SIZES[0]), math.log(_SIZES[1])))
    canvas = _shape(name) if len(name) > 1 else glyphs.mask(faces[random.integers(len(faces))], name)
    stretch = random.uniform(0.85, 1.15)
    angle = random.uniform(-180, 180) if len(name) > 1 else random.uniform(-20, 20)
    turned = canvas.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    turned = turned.crop(turned.getbbox())
    scale = length / max(turned.size)
    size = (max(6, round(turned.width * scale * stretch)), max(6, round(turned.height * scale / stretch)))
    return np.asarray(turned.resize(size, Image.Resampling.LANCZOS), np.float64) / 255


@functools.cache
def _shape(name: str) -> Image.Image:
    """A shape in white on black."""
    side = _SIZES[1] * _ENLARGED
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    edge = side - 1
    if name == "circle":
        draw.ellipse((0, 0, edge, edge), fill=255)
    elif name == "ring":
        draw.ellipse((0, 0, edge, edge), outline=255, width=side // 5)
    elif name == "square":
        draw.rectangle((0, 0, edge, edge), fill=255)
    elif name == "cross":
        third = side // 3
        draw.rectangle((third, 0, edge - third, edge), fill=255)
        draw.rectangle((0, third, edge, edge - third), fill=255)
    else:
        radii, points = {"triangle": ((1.0,), 3), "star": ((1.0, 0.42), 5)}[name]
        corners = points * len(radii)
        angles = [2 * math.pi * corner / corners for corner in range(corners)]
        at = [radii[corner % len(radii)] * side / 2 for corner in range(corners)]
        middle = side / 2
        draw.polygon(
            [(middle + r * math.sin(a), middle - r * math.cos(a)) for r, a in zip(at, angles, strict=True)], fill=255
        )
    return canvas


def _color(behind: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A color that is lighter or darker than what is behind it."""
    brightness = float(behind.mean())
    while True:
        color = random.uniform(0, 255, 3)
        if abs(float(color.mean()) - brightness) > _CONTRAST:
            return color
