"""The data sets of the detectors: PASCAL VOC from TensorFlow Datasets, and generated scenes, in the same structure.

    voc       2007 and 2012, train and validation, for training; the test of 2007 (`data_dir`: where they were prepared)
    scenes    drawn once and stored (`scenes.py`)

As `data.py` has it, the batches of an epoch follow from the seed and the number of the epoch alone. Training images are
mirrored or not, as those of R-FCN are, and moved by up to a sixteenth.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import data as image_data
import scenes
import tensorflow as tf

NAMES = ("scenes", "voc")
# Objects per image that a batch has room for; VOC has up to 56.
_MOST_OBJECTS = {"scenes": 6, "voc": 64}
_VOC_TRAINING = (("voc/2007", "train+validation"), ("voc/2012", "train+validation"))
_VOC_TEST = ("voc/2007", "test")
_SHUFFLED = 2_000
# Largest move of a training image, as a share of it.
_MOVED = 1 / 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionSet:
    """A data set for detectors.

    Batches are pairs of images (batch, size, size, 3), float32 from 0 to 255, and a dictionary: `boxes` (batch, most,
    4) in pixels, left, top, right, bottom; `classes` (batch, most); both float32, -1 where there is no object. Those
    of the test have `difficult` (batch, most), bool, too.

    Attributes:
        classes: names of the classes.
        size: height and width of the images.
        train_examples: number of training images.
        train: batches of an epoch from its number.
        test: batches of the test, in a fixed order.
    """

    classes: tuple[str, ...]
    size: int
    train_examples: int
    train: Callable[[int], tf.data.Dataset]
    test: tf.data.Dataset


def load(
    name: str,
    *,
    batch: int,
    size: int,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    examples: int | None = None,
) -> DetectionSet:
    """Opens a data set.

    Args:
        name: one of `NAMES`.
        batch: examples per batch; the last training batch of an epoch is left out if it is smaller.
        size: height and width of the images; others are resized, their longer side to this, and filled up.
        seed: of the order of the examples and of the augmentation.
        data_dir: where TensorFlow Datasets has prepared VOC, or where scenes are stored; None for the usual place.
        examples: uses that many training images only; None for all.

    Raises:
        ValueError: an unknown name, or a stored set that is damaged.
        FileNotFoundError: a set that is not prepared.
    """
    if name not in NAMES:
        raise ValueError(f"Got the data set {name!r}, expected one of {', '.join(NAMES)}.")
    classes, training, tests = (_scenes if name == "scenes" else _voc)(data_dir)
    most = _MOST_OBJECTS[name]
    count = min(examples or len(training), len(training))
    training = training.take(count)

    def fitted(example: dict[str, Any]) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        return _fitted(example, size, most)

    def batches(epoch: int) -> tf.data.Dataset:
        mixed = image_data.mixed(seed, epoch)
        order = training.shuffle(min(count, _SHUFFLED), seed=mixed, reshuffle_each_iteration=False)

        def apply(position: tf.Tensor, example: dict[str, Any]) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
            image, labels = fitted(example)
            keys = tf.stack([tf.constant(mixed, tf.int64), position])
            image, boxes = _augmented(image, labels["boxes"], keys)
            return image, {"boxes": boxes, "classes": tf.where(boxes[:, 0] < 0, -1.0, labels["classes"])}

        moved = order.enumerate().map(apply, num_parallel_calls=tf.data.AUTOTUNE)
        return moved.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)

    return DetectionSet(
        classes=classes,
        size=size,
        train_examples=count,
        train=batches,
        test=tests.map(fitted, num_parallel_calls=tf.data.AUTOTUNE).batch(batch).prefetch(tf.data.AUTOTUNE),
    )


def _scenes(folder: str | os.PathLike[str] | None) -> tuple[tuple[str, ...], tf.data.Dataset, tf.data.Dataset]:
    arrays = scenes.arrays(folder)
    return scenes.CLASSES, scenes.features(arrays, "train"), scenes.features(arrays, "test")


def _voc(data_dir: str | os.PathLike[str] | None) -> tuple[tuple[str, ...], tf.data.Dataset, tf.data.Dataset]:
    import tensorflow_datasets as tfds  # Here, since it takes seconds and the generated set does without it.

    parts = []
    for name, split in (*_VOC_TRAINING, _VOC_TEST):
        try:
            parts.append(tfds.load(name, split=split, data_dir=data_dir, download=False))
        except AssertionError as error:  # What TensorFlow Datasets raises.
            raise FileNotFoundError(
                f"Got no prepared {name} in {tfds.builder(name, data_dir=data_dir).data_dir}, expected what TensorFlow "
                f"Datasets writes there: pass --data_dir, or run `tfds build {name}`."
            ) from error
    names = tfds.builder(_VOC_TEST[0], data_dir=data_dir).info.features["labels"].feature.names
    return tuple(names), parts[0].concatenate(parts[1]), parts[2]


def _fitted(example: dict[str, Any], size: int, most: int) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """The image with its longer side resized, filled up with gray; objects beyond `most` are left out."""
    image = example["image"]
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    new_shape = tf.cast(tf.round(shape * (size / tf.reduce_max(shape))), tf.int32)
    resized = tf.image.resize(image, new_shape, antialias=True)
    filled = tf.pad(resized - 128.0, [[0, size - new_shape[0]], [0, size - new_shape[1]], [0, 0]]) + 128.0
    objects = example["objects"]
    top, left, bottom, right = tf.unstack(objects["bbox"][:most], axis=-1)
    height, width = (tf.cast(new_shape[axis], tf.float32) for axis in (0, 1))
    boxes = tf.stack([left * width, top * height, right * width, bottom * height], axis=-1)

    def full(values: tf.Tensor, empty: Any) -> tf.Tensor:
        missing = most - tf.shape(values)[0]
        return tf.pad(values, [[0, missing]] + [[0, 0]] * (values.shape.rank - 1), constant_values=empty)

    labels = {
        "boxes": tf.ensure_shape(full(boxes, -1.0), (most, 4)),
        "classes": tf.ensure_shape(full(tf.cast(objects["label"][:most], tf.float32), -1.0), (most,)),
        "difficult": tf.ensure_shape(full(objects["is_difficult"][:most], False), (most,)),
    }
    return tf.ensure_shape(filled, (size, size, 3)), labels


def _augmented(image: tf.Tensor, boxes: tf.Tensor, keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The image mirrored or not, and moved; boxes are clipped, and an object that is gone has -1."""
    size = image.shape[0]
    border = max(1, round(size * _MOVED))
    there = tf.reduce_all(boxes >= 0, axis=-1, keepdims=True)
    left, top, right, bottom = tf.unstack(boxes, axis=-1)
    if_mirrored = tf.random.stateless_uniform((), keys) < 0.5
    image = tf.where(if_mirrored, image[:, ::-1], image)
    left, right = tf.where(if_mirrored, size - right, left), tf.where(if_mirrored, size - left, right)
    down, along = tf.unstack(tf.random.stateless_uniform((2,), keys + 1, 0, 2 * border + 1, tf.int32))
    padded = tf.pad(image - 128.0, [[border, border], [border, border], [0, 0]]) + 128.0
    image = tf.ensure_shape(padded[down : down + size, along : along + size], image.shape)
    moved_x, moved_y = (tf.cast(border - by, tf.float32) for by in (along, down))
    moved = tf.stack([left + moved_x, top + moved_y, right + moved_x, bottom + moved_y], axis=-1)
    clipped = tf.clip_by_value(moved, 0.0, float(size))
    there &= tf.reduce_all(clipped[:, 2:] - clipped[:, :2] >= 2, axis=-1, keepdims=True)
    return image, tf.where(there, clipped, -1.0)
