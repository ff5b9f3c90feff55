"""Networks whose weights are powers of two over more octaves than int8 holds, and the quantizer that keeps them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tfqil import _host
from tfqil.numerics import ste
from tfqil.quantizers import WeightQuantizer

layers = keras.layers


@_host.serializable
@dataclasses.dataclass(frozen=True, kw_only=True)
class PowersOfTwoQuantizer(WeightQuantizer):
    """Weights on 0 and step * 2^j, j = 0 .. octaves, with the largest magnitude as the largest level."""

    octaves: int = 7
    per_channel: bool = False

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        del name
        inner = getattr(layer, "layer", layer)
        return {"channel_rank": len(_host.channel_shape(inner, tensor_shape)) if self.per_channel else 0}

    @property
    def largest_code(self) -> int:
        return 2**self.octaves

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        del training, kwargs
        return ste.replace_forward(inputs, self.codes(inputs, weights) * self.step(inputs, weights))

    def step(self, kernel: Any, variables: Any) -> Any:
        axes = list(range(len(kernel.shape) - variables["channel_rank"]))
        return tf.reduce_max(tf.abs(kernel), axis=axes) * 2.0**-self.octaves

    def codes(self, kernel: Any, variables: Any) -> Any:
        levels = tf.abs(kernel) / self.step(kernel, variables)
        exponents = tf.cast(tf.round(tf.math.log(tf.maximum(levels, 1.0)) / np.log(2)), tf.int32)
        powers = tf.gather(tf.constant(2.0 ** np.arange(self.octaves + 1), tf.float32), exponents)
        return tf.sign(kernel) * tf.where(levels < 0.5, 0.0, powers)


def small(size: int = 8) -> Any:
    """One convolution between the edges."""
    inputs = keras.Input((size, size, 1), name="image")
    x = networks.norm_relu(layers.Conv2D(4, 3, strides=2, use_bias=False, name="stem")(inputs), "stem")
    x = networks.norm_relu(layers.Conv2D(8, 3, name="middle")(x), "middle")
    return keras.Model(inputs, layers.Dense(networks.CLASSES, name="last")(layers.Flatten()(x)), name="small")


def every_kind(size: int = 8) -> Any:
    """Every kind of kernel between the edges, with and without batch normalization, bias and ReLU."""
    inputs = keras.Input((size, size, 1), name="image")
    x = networks.norm_relu(layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs), "stem")
    x = networks.norm_relu(layers.Conv2D(16, 3, strides=2, padding="same", name="spatial")(x), "spatial")
    x = networks.norm_relu(layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x), "depthwise")
    x = layers.Conv2D(16, 1, activation="relu", name="pointwise")(x)
    x = layers.Conv2D(16, 2, use_bias=False, dilation_rate=2, name="dilated")(x)
    x = layers.Dense(12, activation="relu6", name="positions")(x)
    x = networks.norm_relu(layers.Dense(128, name="hidden")(layers.Flatten()(x)), "hidden")
    return keras.Model(inputs, layers.Dense(networks.CLASSES, name="last")(x), name="every_kind")


def with_powers(model: Any, octaves: int, *, per_channel: bool = False, largest: float = 0.5) -> Any:
    """Gives the inner layers kernels of 0 and powers of two, the smallest and the largest one in each channel."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        name = _host.kernel_name(layer)
        if name and layer.name not in ("stem", "last"):
            shape = getattr(layer, name).shape
            exponents = random.integers(-octaves, 1, shape)
            signs = random.choice([-1, 0, 1], shape, p=[0.45, 0.1, 0.45])
            channels = _host.channel_shape(layer, shape)
            for values, smallest in ((exponents, -octaves), (signs, 1)):
                rows = values.reshape(-1, *channels)
                rows[0], rows[1] = 0 if values is exponents else 1, smallest
            scale = 2.0 ** -random.integers(0, 3, channels) if per_channel else 1.0
            getattr(layer, name).assign(largest * scale * signs * 2.0**exponents)
    return model


def quantized(model: Any, images: Any, octaves: int, *, per_channel: bool = False) -> Any:
    """The model with every power of two kept, 4-bit activations and calibrated intervals."""
    config = tfqil.LowBitQuantizeConfig(
        weights=PowersOfTwoQuantizer(octaves=octaves, per_channel=per_channel),
        activations=tfqil.quantizers.QILActivationQuantizer(bits=4),
    )
    return tfqil.calibrate(tfqil.quantize_model(model, tfqil.LowBitScheme(config)), images)
