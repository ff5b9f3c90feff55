"""Data and network of the examples: handwritten digits that scikit-learn ships, and a small residual network."""

from __future__ import annotations

import dataclasses

import numpy as np
import sklearn.datasets
import sklearn.model_selection
import tensorflow as tf
import tf_keras as keras

layers = keras.layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
    """Images (N, 8, 8, 1) in [0, 1] and their classes, half for training and half for the test."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_digits() -> Digits:
    """The 1,797 real images of scikit-learn's digits, split by class in a fixed way."""
    digits = sklearn.datasets.load_digits()
    images = (digits.images[..., None] / 16.0).astype(np.float32)
    split = sklearn.model_selection.train_test_split(
        images, digits.target, test_size=0.5, stratify=digits.target, random_state=0
    )
    train_images, test_images, train_labels, test_labels = split
    return Digits(
        train_images=train_images, train_labels=train_labels, test_images=test_images, test_labels=test_labels
    )


def training_batches(digits: Digits, batch_size: int = 64, seed: int = 0) -> tf.data.Dataset:
    """Shuffled batches, each image moved by up to a pixel."""

    def moved(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.image.random_crop(tf.pad(image, [[1, 1], [1, 1], [0, 0]]), image.shape, seed=seed), label

    data = tf.data.Dataset.from_tensor_slices((digits.train_images, digits.train_labels))
    return data.cache().shuffle(len(digits.train_images), seed=seed).map(moved).batch(batch_size).prefetch(2)


def residual_network(width: int = 32) -> keras.Model:
    """Two residual blocks with batch normalization, for 8x8 images and 10 classes."""
    inputs = keras.Input((8, 8, 1), name="image")
    x = _convolution(inputs, width, "stem")
    x = _residual_block(x, width, "block1")
    x = layers.MaxPooling2D(name="pool")(x)
    x = _residual_block(x, 2 * width, "block2")
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="digits")


def _convolution(x, filters, name, kernel_size=3, *, relu=True):
    x = layers.Conv2D(filters, kernel_size, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _residual_block(x, filters, name):
    shortcut = x
    if x.shape[-1] != filters:
        shortcut = _convolution(x, filters, f"{name}_shortcut", kernel_size=1, relu=False)
    x = _convolution(x, filters, f"{name}_first")
    x = _convolution(x, filters, f"{name}_second", relu=False)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, shortcut]))
