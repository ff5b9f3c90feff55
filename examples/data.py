"""The classification data sets of the papers, and two that need no download, as batches that can be resumed.

    imagenet2012, cifar10    read by TensorFlow Datasets from `data_dir`, where they were prepared
    glyphs                   drawn once and stored (`glyphs.py`)
    digits                   the 1,797 images that scikit-learn ships (`digits.py`)

The batches of an epoch follow from the seed and the number of the epoch alone: each random choice takes its seed from
those and from the position of the image, so that a training that was killed sees the same batches when it goes on,
however many threads prepare them. For that the augmentation is written with the stateless operations of TensorFlow
(`sample_distorted_bounding_box` is RandomResizedCrop): keras-cv's layers keep a generator of their own, which has a
state.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import digits as digits_data
import glyphs
import numpy as np
import stored
import tensorflow as tf

NAMES = ("digits", "glyphs", "cifar10", "imagenet2012")

Images = tf.data.Dataset
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

# Of pixels from 0 to 255, per channel.
_IMAGENET_MEAN, _IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_CIFAR_MEAN, _CIFAR_STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
_IMAGENET_SIZE, _IMAGENET_SHORT_SIDE = 224, 256
# Examples that are shuffled at a time where the set does not fit into memory.
_SHUFFLED = 10_000
_GLYPHS = {"train": 20_000, "test": 4_000}
_SPLIT_SEEDS = {"train": 1, "test": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A data set for classifiers.

    Attributes:
        name: one of `NAMES`.
        classes: number of classes.
        shape: height, width and channels of the images as networks take them, float32.
        train_examples: number of training images.
        train: batches of an epoch, (images, classes), from its number; with a `tf.distribute.InputContext` the part of
            them that one of several processes trains with, in batches of one device.
        test: batches of the test, in a fixed order.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    train_examples: int
    train: Callable[..., Images]
    test: Images

    def test_accuracy(self, run: Callable[[np.ndarray], np.ndarray]) -> float:
        """Percent of the test images to whose class `run` gives the largest logit.

        The images are read batch by batch: those of ImageNet are 30 GB.

        Args:
            run: images -> logits.
        """
        right = [run(images).argmax(axis=-1) == classes for images, classes in self.test.as_numpy_iterator()]
        return 100.0 * float(np.mean(np.concatenate(right)))


def load(
    name: str, *, batch: int, seed: int = 0, data_dir: str | os.PathLike[str] | None = None, examples: int | None = None
) -> ImageSet:
    """Opens a data set.

    Args:
        name: one of `NAMES`.
        batch: examples per batch; the last training batch of an epoch is left out if it is smaller.
        seed: of the order of the examples and of the augmentation.
        data_dir: where TensorFlow Datasets has prepared the set, or where glyphs are stored; None for the usual place.
        examples: uses that many training images only; None for all.

    Raises:
        ValueError: an unknown name, or a stored set that is damaged.
        FileNotFoundError: a set that is not prepared.
    """
    if name == "digits":
        return _digits(batch, seed, examples)
    if name == "glyphs":
        return glyph_set(glyph_arrays(data_dir), batch=batch, seed=seed, examples=examples)
    if name in ("cifar10", "imagenet2012"):
        return _prepared(name, batch, seed, data_dir, examples)
    raise ValueError(f"Got the data set {name!r}, expected one of {', '.join(NAMES)}.")


def glyph_arrays(
    folder: str | os.PathLike[str] | None = None,
    *,
    name: str = "glyphs",
    train_faces: Sequence[str] = glyphs.TRAIN_FACES,
    test_faces: Sequence[str] = glyphs.TEST_FACES,
) -> Arrays:
    """Training images and classes, test images and classes of glyphs, as bytes; drawn at the first call.

    Args:
        folder: where generated sets are stored; None for the usual place.
        name: of the set, for its folder.
        train_faces: faces of the training images.
        test_faces: faces of the test images.

    Raises:
        ValueError: the stored set is damaged or another one.
    """
    faces_of = {"train": tuple(train_faces), "test": tuple(test_faces)}
    settings = {
        "set": "glyphs",
        "version": glyphs.VERSION,
        "examples": _GLYPHS,
        "faces": faces_of,
        "difficulty": dataclasses.asdict(glyphs.Difficulty()),
    }

    def draw() -> dict[str, np.ndarray]:
        arrays = {}
        for split, faces in faces_of.items():
            images, labels = glyphs.draw(_GLYPHS[split], faces, seed=_SPLIT_SEEDS[split])
            arrays.update({f"{split}_images": images, f"{split}_labels": labels})
        return arrays

    arrays = stored.stored(pathlib.Path(folder or stored.DEFAULT_FOLDER, name), settings, draw)
    return arrays["train_images"], arrays["train_labels"], arrays["test_images"], arrays["test_labels"]


def glyph_set(arrays: Arrays, *, batch: int, seed: int, examples: int | None = None) -> ImageSet:
    """Batches of images like glyphs, from training images and classes, test images and classes."""
    train_images, train_labels, test_images, test_labels = arrays

    def moved(image: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        return _shifted(image, keys, 2, "REFLECT")

    return _in_memory(
        "glyphs", (train_images, train_labels), (test_images, test_labels), moved, normalized_glyphs,
        classes=len(glyphs.CHARACTERS), shape=(glyphs.SIZE, glyphs.SIZE, 3), batch=batch, seed=seed, examples=examples,
    )  # fmt: skip


def normalized_glyphs(images: np.ndarray | tf.Tensor) -> tf.Tensor:
    """Images of glyphs as networks take them, from -1 to 1."""
    return (tf.cast(images, tf.float32) - 127.5) / 127.5


def _digits(batch: int, seed: int, examples: int | None) -> ImageSet:
    data = digits_data.load_digits()
    shape = data.train_images.shape[1:]

    def moved(image: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        return _shifted(image, keys, 1, "CONSTANT")

    return _in_memory(
        "digits", (data.train_images, data.train_labels), (data.test_images, data.test_labels), moved, lambda x: x,
        classes=10, shape=shape, batch=batch, seed=seed, examples=examples,
    )  # fmt: skip


def _in_memory(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    augmented: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    normalized: Callable[[tf.Tensor], tf.Tensor],
    *,
    classes: int,
    shape: tuple[int, ...],
    batch: int,
    seed: int,
    examples: int | None,
) -> ImageSet:
    count = min(examples or len(train[0]), len(train[0]))
    images = tf.data.Dataset.from_tensor_slices((np.array(train[0][:count]), train[1][:count].astype(np.int32)))

    def batches(epoch: int, context: tf.distribute.InputContext | None = None) -> Images:
        order = images.shuffle(count, seed=mixed(seed, epoch), reshuffle_each_iteration=False)
        moved = functools.partial(_augmented, augmented, normalized, mixed(seed, epoch))
        return _trained_with(order, moved, batch, context)

    tests = tf.data.Dataset.from_tensor_slices((np.array(test[0]), test[1].astype(np.int32)))
    tests = _batched(tests.map(lambda image, label: (normalized(image), label)), batch, training=False)
    height, width, channels = shape
    return ImageSet(
        name=name,
        classes=classes,
        shape=(height, width, channels),
        train_examples=count,
        train=batches,
        test=tests,
    )


def _prepared(
    name: str, batch: int, seed: int, data_dir: str | os.PathLike[str] | None, examples: int | None
) -> ImageSet:
    """A set of TensorFlow Datasets, with the augmentation of the papers."""
    import tensorflow_datasets as tfds  # Here, since it takes seconds and the generated sets do without it.

    def opened(split: str, epoch: int | None) -> Images:
        """Encoded images, which are small enough to shuffle many of them, and classes."""
        # With a seed the order of the files is the same whenever the epoch is.
        config = tfds.ReadConfig(shuffle_seed=None if epoch is None else mixed(seed, epoch))
        images = tfds.load(
            name, split=split, data_dir=data_dir, download=False, shuffle_files=epoch is not None, read_config=config,
            decoders={"image": tfds.decode.SkipDecoding()},
        )  # fmt: skip
        return images.map(lambda example: (example["image"], example["label"]), tf.data.AUTOTUNE)

    def decoded(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return builder.info.features["image"].decode_example(image), label

    test_split = "test" if name == "cifar10" else "validation"
    builder = tfds.builder(name, data_dir=data_dir)
    try:
        available = int(opened("train", 0).cardinality())
        tests = opened(test_split, None)
    except AssertionError as error:  # What TensorFlow Datasets raises.
        raise FileNotFoundError(
            f"Got no prepared {name} in {builder.data_dir}, expected what TensorFlow Datasets writes there: pass "
            f"--data_dir, or run `tfds build {name}` (its page says how to get the archives)."
        ) from error
    count = min(examples or available, available)
    augment, center, shape, (mean, std) = (
        (_cifar_crop, lambda image: image, (32, 32, 3), (_CIFAR_MEAN, _CIFAR_STD))
        if name == "cifar10"
        else (
            _imagenet_crop, _imagenet_center, (_IMAGENET_SIZE, _IMAGENET_SIZE, 3), (_IMAGENET_MEAN, _IMAGENET_STD)
        )
    )  # fmt: skip

    def normalized(image: tf.Tensor) -> tf.Tensor:
        return (tf.cast(image, tf.float32) - mean) / std

    def batches(epoch: int, context: tf.distribute.InputContext | None = None) -> Images:
        images = opened("train" if count == available else f"train[:{count}]", epoch)
        images = images.shuffle(min(count, _SHUFFLED), seed=mixed(seed, epoch), reshuffle_each_iteration=False)

        def seen(position: tf.Tensor, example: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            return _augmented(augment, normalized, mixed(seed, epoch), position, decoded(*example))

        return _trained_with(images, seen, batch, context)

    tests = tests.map(decoded, tf.data.AUTOTUNE)
    tests = tests.map(lambda image, label: (normalized(center(image)), label), tf.data.AUTOTUNE)
    return ImageSet(
        name=name,
        classes=builder.info.features["label"].num_classes,
        shape=shape,
        train_examples=count,
        train=batches,
        test=_batched(tests, batch, training=False),
    )


def _augmented(
    augmented: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    normalized: Callable[[tf.Tensor], tf.Tensor],
    seed: int,
    position: tf.Tensor,
    example: tuple[tf.Tensor, tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor]:
    """What training sees of an example; the position in the epoch decides how it is augmented."""
    keys = tf.stack([tf.constant(seed, tf.int64), position])
    return normalized(augmented(example[0], keys)), example[1]


def _trained_with(
    images: Images,
    seen: Callable[[tf.Tensor, tuple[tf.Tensor, tf.Tensor]], tuple[tf.Tensor, tf.Tensor]],
    batch: int,
    context: tf.distribute.InputContext | None,
) -> Images:
    """Batches of an epoch, or the part of each batch that one of several processes reads.

    The parts together are the whole, and no process decodes what another one trains with.
    """
    positions = images.enumerate()
    if context is None or context.num_replicas_in_sync == 1:
        return _batched(positions.map(seen, tf.data.AUTOTUNE), batch, training=True)
    of_process = batch // context.num_input_pipelines
    steps = int(images.cardinality()) // batch
    own = positions.take(steps * batch).filter(
        lambda position, _: position % batch // of_process == context.input_pipeline_id
    )
    of_device = context.get_per_replica_batch_size(batch)
    batches = _batched(own.map(seen, tf.data.AUTOTUNE), of_device, training=True)
    return batches.apply(tf.data.experimental.assert_cardinality(steps * (of_process // of_device)))


def _batched(images: Images, batch: int, *, training: bool) -> Images:
    return images.batch(batch, drop_remainder=training).prefetch(tf.data.AUTOTUNE)


def mixed(seed: int, epoch: int) -> int:
    """One seed from that of the training and the number of the epoch, which no other pair shares by chance."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0] >> 1)


def _shifted(image: tf.Tensor, keys: tf.Tensor, pixels: int, mode: str) -> tf.Tensor:
    """The image moved by up to some pixels along each axis."""
    padded = tf.pad(image, [[pixels, pixels], [pixels, pixels], [0, 0]], mode)
    return tf.image.stateless_random_crop(padded, image.shape, keys)


def _cifar_crop(image: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """A crop of 32 x 32 out of the image with a border of 4 zeros, flipped or not."""
    return tf.image.stateless_random_flip_left_right(_shifted(image, keys, 4, "CONSTANT"), keys + 1)


def _imagenet_crop(image: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """A crop of 8 to 100 % of the area and a ratio of 3/4 to 4/3, enlarged to 224 x 224, flipped or not."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros((1, 0, 4)),
        keys,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    crop = tf.image.resize(tf.slice(image, begin, size), (_IMAGENET_SIZE, _IMAGENET_SIZE))
    return tf.image.stateless_random_flip_left_right(tf.ensure_shape(crop, (None, None, 3)), keys + 1)


def _imagenet_center(image: tf.Tensor) -> tf.Tensor:
    """The middle 224 x 224 of the image whose shorter side is 256."""
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    wanted = tf.cast(tf.round(size * (_IMAGENET_SHORT_SIDE / tf.reduce_min(size))), tf.int32)
    resized = tf.image.resize(image, wanted, antialias=True)
    return tf.image.resize_with_crop_or_pad(resized, _IMAGENET_SIZE, _IMAGENET_SIZE)
