"""Random weights that behave like trained ones, at any depth.

Random statistics of batch normalizations would let activations explode or vanish over fifty layers. These come from
data instead, as training leaves them: every normalized tensor has about the mean 0 and the variance 1.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import tf_keras as keras

layers = keras.layers


def with_natural_weights(model: keras.Model, images: np.ndarray, seed: int = 0) -> keras.Model:
    """Draws all weights and takes the statistics of all normalizations, in nested models too, from images."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        values = _drawn(weight.name.split("/")[-1].split(":")[0], tuple(weight.shape), random)
        if values is not None:
            weight.assign(values)
    for layer in _all_layers(model, layers.Normalization):
        layer.adapt(keras.Model(model.inputs, layer.input)(images))
    if not _all_layers(model, layers.BatchNormalization):
        _normalize(model, images)
    with _statistics_of_one_batch(model):
        model(images, training=True)
    return model


def _drawn(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray | None:
    """Kernels that keep the variance through a ReLU (He), small biases, gammas around 1, some of them negative."""
    if kind.endswith("kernel"):
        inputs = math.prod(shape[:2] if kind == "depthwise_kernel" else shape[:-1])
        return random.normal(0, math.sqrt(2 / inputs), shape)
    if kind == "gamma":
        return random.uniform(0.6, 1.4, shape) * np.where(random.uniform(size=shape) < 0.05, -1, 1)
    if kind == "beta":
        return random.normal(0, 0.2, shape)
    return random.normal(0, 0.1, shape) if kind == "bias" else None


def _normalize(model: keras.Model, images: np.ndarray) -> None:
    """Gives every channel a mean near 0 and the variance 1 by its kernel and bias, as a batch normalization would.

    Without it, all images look alike behind a dozen random layers.
    """
    for layer in model.layers:
        if getattr(layer, "bias", None) is None:
            continue
        tensor = keras.Model(model.inputs, layer.input)(images, training=False)
        activation, layer.activation = layer.activation, keras.activations.linear
        values = layer(tensor).numpy() - layer.bias.numpy()
        layer.activation = activation
        axes = tuple(range(values.ndim - 1))
        deviation = values.std(axes)
        layer.kernel.assign(layer.kernel / deviation)
        layer.bias.assign_sub(values.mean(axes) / deviation)


@contextlib.contextmanager
def _statistics_of_one_batch(model: keras.Model) -> Iterator[None]:
    """Within, a call with training=True sets the moving statistics to those of its batch, and drops nothing."""
    changed = [(layer, "momentum", layer.momentum) for layer in _all_layers(model, layers.BatchNormalization)]
    changed += [(layer, "rate", layer.rate) for layer in _all_layers(model, layers.Dropout)]
    for layer, name, _ in changed:
        setattr(layer, name, 0.0)
    yield
    for layer, name, value in changed:
        setattr(layer, name, value)


def _all_layers(model: keras.Model, kind: type) -> list[keras.layers.Layer]:
    return [layer for layer in model.submodules if isinstance(layer, kind)]
