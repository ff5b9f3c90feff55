"""Small networks of the usual families, digits to run them on, and the one way the tests quantize them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn.datasets
import tensorflow as tf
import tf_keras as keras

import tfqil

layers = keras.layers
CLASSES = 10


@functools.cache
def digits(examples: int = 1000, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits in [0, 1], enlarged, shifted and noisy: (examples, size, size, 1), and their classes."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    chosen = random.integers(0, len(images), examples)
    enlarged = tf.image.resize(images[chosen].reshape(-1, 8, 8, 1) / 16.0, (size, size)).numpy()
    shifted = [np.roll(image, tuple(random.integers(-1, 2, 2)), axis=(0, 1)) for image in enlarged]
    noisy = np.stack(shifted) + random.normal(0, 0.05, enlarged.shape)
    return np.clip(noisy, 0, 1).astype(np.float32), labels[chosen]


def norm_relu(x: Any, name: str, *, six: bool = False) -> Any:
    """Batch normalization and a ReLU."""
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return layers.ReLU(6.0 if six else None, name=f"{name}_relu")(x)


def plain(size: int = 12) -> Any:
    """Conv, batch norm, ReLU; strided, pooled, with a pointwise and a dense layer behind; biases of its own."""
    inputs = keras.Input((size, size, 1), name="image")
    x = norm_relu(layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(inputs), "first")
    x = norm_relu(layers.Conv2D(12, 3, strides=2, padding="same", name="second")(x), "second")
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Conv2D(16, 1, activation="relu", name="pointwise")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(24, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="last")(x), name="plain")


def residual(size: int = 12) -> Any:
    """Two residual blocks, the second with a strided pointwise shortcut; averages over all positions."""
    inputs = keras.Input((size, size, 1), name="image")
    x = norm_relu(layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs), "stem")
    for name, filters, stride in (("one", 8, 1), ("two", 12, 2)):
        y = layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False, name=f"{name}_a")(x)
        y = layers.Conv2D(filters, 3, padding="same", name=f"{name}_b")(norm_relu(y, f"{name}_a"))
        y = layers.BatchNormalization(momentum=0.9, name=f"{name}_b_bn")(y)
        if stride > 1:
            x = layers.Conv2D(filters, 1, strides=stride, use_bias=False, name=f"{name}_shortcut")(x)
            x = layers.BatchNormalization(momentum=0.9, name=f"{name}_shortcut_bn")(x)
        x = layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="last")(x), name="residual")


def separable(size: int = 12) -> Any:
    """Depthwise-separable blocks with ReLU6, one of them a SeparableConv2D; ends with a softmax."""
    inputs = keras.Input((size, size, 1), name="image")
    x = norm_relu(layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(inputs), "stem", six=True)
    x = norm_relu(layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x), "depthwise", six=True)
    x = norm_relu(layers.Conv2D(16, 1, use_bias=False, name="pointwise")(x), "pointwise", six=True)
    x = norm_relu(layers.SeparableConv2D(16, 3, padding="same", name="separable")(x), "separable")
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="last")(x), name="separable")


def dense(size: int = 12) -> Any:
    """Dense layers with batch normalization."""
    inputs = keras.Input((size, size, 1), name="image")
    x = layers.Flatten(name="flatten")(inputs)
    for name in ("first", "second", "third"):
        x = norm_relu(layers.Dense(32, name=name)(x), name)
    return keras.Model(inputs, layers.Dense(CLASSES, name="last")(x), name="dense")


def tiny(size: int = 8) -> Any:
    """The fewest layers that show every kind of variable: a convolution, a separable one, a dense one, batch norm."""
    inputs = keras.Input((size, size, 1), name="image")
    x = norm_relu(layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="stem")(inputs), "stem")
    x = norm_relu(layers.SeparableConv2D(8, 3, padding="same", name="separable")(x), "separable")
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="last")(x), name="tiny")


FAMILIES: dict[str, Callable[..., Any]] = {
    "plain": plain,
    "residual": residual,
    "separable": separable,
    "dense": dense,
}


def randomize_norms(model: Any, seed: int = 0, *, odd: bool = True) -> Any:
    """Gives every batch norm random statistics; if `odd`, every fourth gamma is negative and one is zero."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape[0]
            has = (layer.scale, layer.center, True, True)
            gamma = random.uniform(0.5, 1.5, size)
            if odd:
                gamma[::4] *= -1
                gamma[1] = 0
            values = (gamma, random.normal(0, 0.3, size), random.normal(0, 0.2, size), random.uniform(0.3, 1.5, size))
            layer.set_weights([v.astype(np.float32) for v, kept in zip(values, has, strict=True) if kept])
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(random.normal(0, 0.1, layer.bias.shape))
    return model


@functools.cache
def trained(family: str) -> Any:
    """A network of a family after a short training on digits; some gammas are negative, one per batch norm is 0."""
    keras.utils.set_random_seed(1)
    model = randomize_norms(FAMILIES[family]())
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(tf.where(layer.gamma == 0, 1e-3, layer.gamma))
    images, labels = digits(2000)
    model.compile(
        keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=family != "separable")
    )
    model.fit(images, labels, batch_size=50, epochs=4, verbose=0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            gamma = layer.gamma.numpy()
            gamma[np.abs(gamma).argmin()] = 0
            layer.gamma.assign(gamma)
    return model


def quantized(
    model: Any, weight_bits: int = 4, activation_bits: int = 4, edge_bits: int | None = 8, **config: Any
) -> Any:
    """A model quantized with QIL, not calibrated."""
    scheme = tfqil.LowBitScheme(tfqil.QILQuantizeConfig(weight_bits, activation_bits, **config), edge_bits=edge_bits)
    return tfqil.quantize_model(model, scheme)


def calibrated_on(model: Any, images: Any, *bits: int, **arguments: Any) -> Any:
    """A model quantized with QIL whose intervals are those of some images."""
    return tfqil.calibrate(quantized(model, *bits, **arguments), images)


def calibrated(model: Any, *bits: int, **arguments: Any) -> Any:
    """A model quantized with QIL whose intervals are those of the digits."""
    return calibrated_on(model, digits(256)[0], *bits, **arguments)
