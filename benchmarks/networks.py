"""The networks that the benchmarks measure: they are timed and weighed, not trained."""

from __future__ import annotations

import numpy as np
import tf_keras as keras

layers = keras.layers


def _convolution(x, filters, kernel_size=3, strides=1, *, relu=True):
    x = layers.Conv2D(filters, kernel_size, strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x) if relu else x


def _residual_block(x, filters, strides=1):
    shortcut = x
    if strides != 1 or x.shape[-1] != filters:
        shortcut = _convolution(x, filters, 1, strides, relu=False)
    x = _convolution(_convolution(x, filters, strides=strides), filters, relu=False)
    return layers.ReLU()(layers.Add()([x, shortcut]))


def residual(size: int = 224, width: int = 32) -> keras.Model:
    """Four stages of residual blocks with 3x3 convolutions; 1.6 million weights at width 32."""
    inputs = keras.Input((size, size, 3))
    x = _convolution(inputs, width, strides=2)
    x = layers.MaxPooling2D()(x)
    for stage in range(4):
        x = _residual_block(x, width * min(2**stage, 6), strides=1 if stage == 0 else 2)
        x = _residual_block(x, width * min(2**stage, 6))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(100)(x), name="residual")


def separable(size: int = 224, width: int = 32) -> keras.Model:
    """Depthwise-separable blocks, as in MobileNet; 1.1 million weights at width 32."""
    inputs = keras.Input((size, size, 3))
    x = _convolution(inputs, width, strides=2)
    for filters, strides in ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), (16, 1), (16, 1), (16, 1)):
        x = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = _convolution(x, width * filters, 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(100)(x), name="separable")


def dense(units: int = 1024) -> keras.Model:
    """Three hidden dense layers behind 64 features; 2.2 million weights at 1,024 units."""
    inputs = keras.Input((64,))
    x = inputs
    for _ in range(3):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(units, use_bias=False)(x)))
    return keras.Model(inputs, layers.Dense(10)(x), name="dense")


def plain(size: int = 32) -> keras.Model:
    """A chain of convolutions with biases and without batch normalization."""
    inputs = keras.Input((size, size, 3))
    x = inputs
    for filters in (16, 32, 32):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(32, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(10)(x), name="plain")


def with_random_statistics(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives biases and batch normalizations the spread that trained ones have, some gammas being negative."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            shape = layer.gamma.shape
            signs = np.where(random.uniform(size=shape) < 0.05, -1, 1)
            mean, variance = random.normal(0, 0.1, shape), random.uniform(0.5, 1.5, shape)
            layer.set_weights([signs * random.uniform(0.6, 1.4, shape), random.normal(0, 0.2, shape), mean, variance])
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(random.normal(0, 0.1, layer.bias.shape))
    return model


def smooth_images(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Inputs with the statistics of natural images (power falls with the square of the frequency), in [-1, 1]."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(count, *shape))
    if len(shape) == 3:
        rows, columns = np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), indexing="ij")
        amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / max(shape[:2]))
        noise = np.fft.ifft2(np.fft.fft2(noise, axes=(1, 2)) * amplitude[None, ..., None], axes=(1, 2)).real
    noise /= np.abs(noise).max(axis=tuple(range(1, noise.ndim)), keepdims=True)
    return noise.astype(np.float32)
