"""One small network for each operator, around it what trains and reads low-bit integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

layers = keras.layers

# What an operator is applied to: (height, width, channels), or (width, channels).
IMAGE, ANY_IMAGE, SERIES = (8, 8, 3), (None, None, 3), (12, 3)

_SLOPES = keras.initializers.RandomUniform(-0.3, 0.6, seed=1)


def conv(x: Any, filters: int = 8, **options: Any) -> Any:
    """A convolution that keeps the size of the image."""
    return layers.Conv2D(filters, 3, **{"padding": "same", **options})(x)


def norm(x: Any, **options: Any) -> Any:
    """A batch normalization."""
    return layers.BatchNormalization(**options)(x)


def prelu(x: Any, *axes: int) -> Any:
    """A PReLU with random slopes, shared along some axes."""
    return layers.PReLU(_SLOPES, shared_axes=axes or None)(x)


def between(operator: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The operator between two convolutions, on signed values."""
    return lambda x: conv(operator(conv(x)))


def of_two(operator: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The operator on a non-negative and a signed tensor."""
    return lambda x: conv(operator([conv(x, activation="relu"), conv(x)]))


def series(operator: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The operator between two one-dimensional convolutions."""
    return lambda x: layers.Conv1D(4, 3)(operator(layers.Conv1D(8, 3, padding="same")(x)))


def gated(x: Any, activation: str) -> Any:
    """Squeeze and excitation."""
    y = layers.Activation("swish")(conv(x))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = layers.Conv2D(8, 1, activation=activation)(layers.Conv2D(4, 1, activation="relu")(gate))
    return conv(layers.Multiply()([y, gate]))


def gated_first(x: Any) -> Any:
    """The same with the gate as the first factor, from dense layers."""
    y = conv(x, activation="relu")
    gate = layers.Dense(8, activation="sigmoid")(layers.GlobalAveragePooling2D()(y))
    return conv(layers.Multiply()([layers.Reshape((1, 1, 8))(gate), y]))


def hard_swish(x: Any) -> Any:
    """As MobileNetV3 writes it."""
    y = conv(x)
    return conv(y * (layers.ReLU(6.0)(y + 3.0) * (1.0 / 6.0)))


def concatenated_and_added(x: Any) -> Any:
    """A concatenation of tensors that others read too."""
    a, b = conv(x, activation="relu"), conv(x)
    return layers.Add()([conv(layers.Concatenate()([a, b])), conv(a), conv(b)])


def concatenated_pools(x: Any) -> Any:
    """A concatenation of what passes grids on, averages and multiplies."""
    a, b = conv(x, activation="relu"), conv(x)
    branches = [layers.MaxPooling2D(2)(a), layers.AveragePooling2D(2)(b), layers.Conv2D(4, 1, strides=2)(a)]
    return conv(layers.Concatenate()(branches))


def dense_block(x: Any) -> Any:
    """Concatenations whose parts go through batch normalizations before convolutions."""
    for _ in range(2):
        x = layers.Concatenate()([x, conv(layers.ReLU()(norm(x)), 4)])
    return layers.GlobalAveragePooling2D()(layers.ReLU()(norm(x)))


def pool_read_by_average(*kept: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What keeps a grid, read by an average pooling and by a convolution, on 8-bit activations."""

    def network(x: Any) -> Any:
        y = conv(conv(x, activation="relu"), activation="relu")
        branches = [keep(y) for keep in kept]
        y = branches[0] if len(branches) == 1 else layers.Concatenate()(branches)
        average = layers.AveragePooling2D(3, 1, padding="same")(y)
        return layers.Concatenate()([conv(y), conv(average)])

    return network


def upsampled_and_joined(x: Any) -> Any:
    """A transposed convolution of a smaller image, joined with the larger one, as U-Net does."""
    y = conv(x, activation="relu")
    up = layers.Conv2DTranspose(8, 2, strides=2, activation="relu")(layers.MaxPooling2D(2)(y))
    return conv(layers.Concatenate()([up, y]))


def split_call(x: Any) -> Any:
    """tf.split and tf.concat."""
    a, b = tf.split(conv(x), 2, axis=-1)
    return tf.concat([conv(a), b], -1)


def uneven_split_call(x: Any) -> Any:
    """tf.split into parts of different sizes."""
    a, b = tf.split(conv(x), [3, 5], axis=-1)
    return layers.Add()([conv(a), conv(b)])


def slices(x: Any) -> Any:
    """Every other pixel, twice."""
    y = conv(x, activation="relu")
    return layers.Add()([conv(y[:, ::2, ::2]), conv(y[:, 1::2, 1::2, :])])


def called_at_two_widths(x: Any) -> Any:
    """A shared convolution of a signed and of a low-bit tensor, whose results have readers of both kinds."""
    shared = layers.Conv2D(8, 3, padding="same", name="shared")
    signed, low = norm(conv(x)), conv(x, activation="relu")
    first, second = layers.ReLU()(shared(low)), shared(signed)
    return conv(layers.Add()([conv(first), second]))


def called_twice(layer: Any) -> Callable[[Any], Any]:
    """A layer that is called on its own output."""
    return lambda x: conv(layer(layer(conv(x, activation="relu"))))


def nested_twice(x: Any) -> Any:
    """A model in a model, called twice."""
    inputs = keras.Input(IMAGE)
    inner = keras.Model(inputs, layers.ReLU()(norm(conv(inputs))))
    return conv(layers.Add()([inner(x), inner(x * 0.5)]))


def two_averages(x: Any) -> Any:
    """Two operators with equal kernels."""
    return layers.AveragePooling2D(2)(conv(layers.AveragePooling2D(2)(conv(x))))


def transposed(size: Any, stride: int, padding: str) -> Callable[[Any], Any]:
    """A transposed convolution with batch normalization and ReLU."""
    return lambda x: layers.ReLU()(norm(layers.Conv2DTranspose(6, size, strides=stride, padding=padding)(conv(x))))


def depthwise(**options: Any) -> Callable[[Any], Any]:
    """A depthwise convolution."""
    return lambda x: layers.DepthwiseConv2D(3, **options)(conv(x))


def series_conv(**options: Any) -> Callable[[Any], Any]:
    """A one-dimensional convolution."""
    return lambda x: layers.Conv1D(6, 3, **options)(layers.Conv1D(8, 3, padding="same", activation="relu")(x))


Networks = dict[str, tuple[tuple[int | None, ...], Callable[[Any], Any]]]

# Layers with kernels, which each storage packs in its own way.
KERNELS: Networks = {
    "dilated depthwise": (IMAGE, depthwise(padding="same", dilation_rate=2)),
    "dilated depthwise with multiplier": (IMAGE, depthwise(dilation_rate=3, depth_multiplier=2)),
    "dilated separable": (IMAGE, lambda x: layers.SeparableConv2D(6, 3, dilation_rate=2, activation="relu")(conv(x))),
    "dilated": (IMAGE, lambda x: conv(conv(x), dilation_rate=2)),
    "grouped": (IMAGE, lambda x: norm(conv(conv(x), groups=2, strides=2))),
    "grouped dilated": (IMAGE, lambda x: conv(conv(x), groups=4, dilation_rate=2)),
    "transposed, 3 by 2, same": (IMAGE, transposed(3, 2, "same")),
    "transposed, 3 by 2, valid": (IMAGE, transposed((3, 2), 2, "valid")),
    "transposed, 4 by 2, same": (IMAGE, transposed(4, 2, "same")),
    "transposed, 1 by 2, same": (IMAGE, transposed(1, 2, "same")),
    "transposed, 3 by 1, same": (IMAGE, transposed(3, 1, "same")),
    "transposed, 2 by 3, valid": (IMAGE, transposed(2, 3, "valid")),
    "transposed, any size": (ANY_IMAGE, transposed(3, 2, "same")),
    "transposed and joined": (IMAGE, upsampled_and_joined),
    "1D, same": (SERIES, series_conv(padding="same")),
    "1D, valid": (SERIES, series_conv()),
    "1D, causal and dilated": (SERIES, series_conv(padding="causal", dilation_rate=2)),
    "1D, causal and strided": (SERIES, series_conv(padding="causal", strides=2)),
    "1D, grouped": (SERIES, series_conv(groups=2)),
    "dense over a series": (SERIES, lambda x: layers.Dense(4)(layers.ReLU()(layers.Dense(6)(x)))),
    "convolution called twice": (IMAGE, lambda x: called_twice(layers.Conv2D(8, 3, activation="relu"))(x)),
    "convolution called at two widths": (IMAGE, called_at_two_widths),
    "depthwise called twice": (IMAGE, lambda x: called_twice(layers.DepthwiseConv2D(3))(x)),
    "transposed called twice": (IMAGE, lambda x: called_twice(layers.Conv2DTranspose(8, 2, strides=2))(x)),
    "dense called twice": (SERIES, lambda x: called_twice(layers.Dense(8, activation="relu"))(x[:, None])),
}

# Operators without kernels.
OPERATORS: Networks = {
    "leaky ReLU": (IMAGE, between(layers.LeakyReLU(0.1))),
    "leaky ReLU behind a norm": (IMAGE, lambda x: conv(layers.LeakyReLU(0.3)(norm(conv(x))))),
    "leaky ReLU with slope 0": (IMAGE, between(layers.LeakyReLU(0.0))),
    "leaky ReLU with a negative slope": (IMAGE, between(layers.LeakyReLU(-0.5))),
    "leaky ReLU in a convolution": (IMAGE, lambda x: conv(conv(x, activation="leaky_relu"))),
    "tf.nn.leaky_relu": (IMAGE, between(lambda y: tf.nn.leaky_relu(y, 0.2))),
    "bilinear": (IMAGE, between(layers.UpSampling2D(2, interpolation="bilinear"))),
    "bilinear, factor 3": (IMAGE, between(layers.UpSampling2D(3, interpolation="bilinear"))),
    "bilinear, any size": (ANY_IMAGE, between(layers.UpSampling2D(2, interpolation="bilinear"))),
    "tf.image.resize": (IMAGE, between(lambda y: tf.image.resize(y, (16, 16)))),
    "nearest": (IMAGE, between(layers.UpSampling2D(2))),
    "nearest, any size": (ANY_IMAGE, between(layers.UpSampling2D(2))),
    "PReLU per channel": (IMAGE, lambda x: conv(prelu(norm(conv(x)), 1, 2))),
    "PReLU per position": (IMAGE, between(prelu)),
    "PReLU with one slope": (IMAGE, between(lambda y: prelu(y, 1, 2, 3))),
    "PReLU with slopes of 0": (IMAGE, between(layers.PReLU(shared_axes=[1, 2]))),
    "PReLU of a series": (SERIES, series(lambda y: prelu(y, 1))),
    "PReLU of a vector": ((16,), lambda x: layers.Dense(5)(prelu(layers.Dense(8)(x)))),
    "GELU": (IMAGE, between(layers.Activation("gelu"))),
    "GELU at the end": (IMAGE, lambda x: layers.Dense(5, activation="gelu")(layers.Flatten()(conv(x)))),
    "tf.nn.gelu": (IMAGE, between(tf.nn.gelu)),
    "tf.nn.gelu with tanh": (IMAGE, between(lambda y: tf.nn.gelu(y, approximate=True))),
    "maximum": (IMAGE, of_two(layers.Maximum())),
    "maximum of three": (IMAGE, lambda x: conv(layers.Maximum()([conv(x), conv(x), conv(x)]))),
    "minimum": (IMAGE, of_two(layers.Minimum())),
    "average pool": (IMAGE, between(layers.AveragePooling2D(3, 2))),
    "average pool with a border": (IMAGE, between(layers.AveragePooling2D(3, 1, padding="same"))),
    "average pool with two strides": (IMAGE, between(layers.AveragePooling2D((2, 1), (1, 2), padding="same"))),
    "two equal average pools": (IMAGE, two_averages),
    "average of a maximum": (IMAGE, pool_read_by_average(layers.MaxPooling2D(2))),
    "average of a concatenation": (
        IMAGE,
        pool_read_by_average(layers.MaxPooling2D(2), layers.MaxPooling2D(3, 2, "same")),
    ),
    "global maximum": (IMAGE, lambda x: layers.Dense(5)(layers.GlobalMaxPooling2D()(conv(x)))),
    "cropping": (IMAGE, between(layers.Cropping2D(((1, 2), (0, 1))))),
    "zero padding": (IMAGE, between(layers.ZeroPadding2D(2))),
    "permute": (IMAGE, between(layers.Permute((2, 1, 3)))),
    "depth to space": (IMAGE, between(lambda y: tf.nn.depth_to_space(y, 2))),
    "space to depth": (IMAGE, between(lambda y: tf.nn.space_to_depth(y, 2))),
    "subtract": (IMAGE, of_two(layers.Subtract())),
    "multiply": (IMAGE, of_two(layers.Multiply())),
    "squeeze and excitation": (IMAGE, lambda x: gated(x, "sigmoid")),
    "squeeze and excitation, hard": (IMAGE, lambda x: gated(x, "hard_sigmoid")),
    "gate as first factor": (IMAGE, gated_first),
    "concatenation with other readers": (IMAGE, concatenated_and_added),
    "concatenation of pools": (IMAGE, concatenated_pools),
    "dense block": (IMAGE, dense_block),
    "maximum of a series": (SERIES, series(layers.MaxPooling1D(2))),
    "average of a series": (SERIES, series(layers.AveragePooling1D(2))),
    "global average of a series": (SERIES, lambda x: layers.Dense(4)(layers.GlobalAveragePooling1D()(x))),
    "tf.reduce_mean": (IMAGE, lambda x: layers.Dense(4)(tf.reduce_mean(conv(x), [1, 2]))),
    "tf.reduce_max": (IMAGE, lambda x: conv(tf.reduce_max(conv(x), (1, 2), keepdims=True))),
    "tf.reduce_mean of a series": (SERIES, lambda x: layers.Dense(4)(tf.reduce_mean(layers.Conv1D(8, 3)(x), 1))),
    "tf.reduce_max of a series": (SERIES, lambda x: layers.Dense(4)(tf.reduce_max(layers.Conv1D(8, 3)(x), axis=-2))),
    "padded series": (SERIES, series(layers.ZeroPadding1D(2))),
    "longer series": (SERIES, series(lambda y: layers.UpSampling1D(2)(layers.Cropping1D(1)(y)))),
    "rescaled input": (IMAGE, lambda x: conv(conv(layers.Rescaling(2.0, -1.0)(x), activation="relu"))),
    "rescaled tensor": (IMAGE, between(layers.Rescaling([0.5] * 8, [1.0] * 7 + [-1.0]))),
    "normalized input": (IMAGE, lambda x: conv(layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[0.5, 1, 2])(x))),
    "norm without scale": (IMAGE, between(layers.BatchNormalization(scale=False))),
    "norm without center": (IMAGE, between(layers.BatchNormalization(center=False))),
    "norm before a convolution": (IMAGE, lambda x: conv(layers.ReLU()(norm(conv(x, activation="relu"))))),
    "norm behind a dense layer": ((16,), lambda x: layers.Dense(4)(layers.ReLU()(norm(layers.Dense(8)(x))))),
    "tf.split": (IMAGE, split_call),
    "uneven tf.split": (IMAGE, uneven_split_call),
    "slices": (IMAGE, slices),
    "tf.reshape": (IMAGE, lambda x: layers.Conv1D(4, 3)(tf.reshape(conv(x), (-1, 64, 8)))),
    "x * 0.5 + 1.0": (IMAGE, between(lambda y: y * 0.5 + 1.0)),
    "swish": (IMAGE, between(layers.Activation("swish"))),
    "hard swish": (IMAGE, hard_swish),
    "hard sigmoid": (IMAGE, between(layers.Activation("hard_sigmoid"))),
    "tanh": (IMAGE, between(layers.Activation("tanh"))),
    "clip at 1": (IMAGE, lambda x: conv(layers.ReLU(1.0)(norm(conv(x))))),
    "average of tensors": (IMAGE, lambda x: conv(layers.Average()([conv(x), conv(x), conv(x)]))),
    "nested models": (IMAGE, nested_twice),
}
