"""AlexNet as one functional model, with or without batch normalization.

Krizhevsky, Sutskever, Hinton, *ImageNet Classification with Deep Convolutional Neural Networks*, NeurIPS 2012, section
3.5, in one column: no split over two processors, and no local response normalization, which later networks dropped for
batch normalization.
"""

from __future__ import annotations

import tf_keras as keras

layers = keras.layers

# Smaller images leave nothing for the last pooling.
SMALLEST_SIZE = 67
# Kernel height and width, channels, and whether a pooling follows, of each convolution.
_CONVOLUTIONS = ((11, 96, True), (5, 256, True), (3, 384, False), (3, 384, False), (3, 256, True))
_HIDDEN_UNITS = 4096
_DROPOUT = 0.5


def alexnet(size: int = 227, classes: int = 1000, *, batch_norm: bool = True, width: float = 1.0) -> keras.Model:
    """Five convolutions and three dense layers that end in logits; 62 million weights at the paper's size.

    Args:
        size: height and width of the images; the paper's shapes (55, 27, 13, 6) belong to 227.
        classes: number of logits.
        batch_norm: normalize before each ReLU; without it the layers have biases, and the dense ones dropout.
        width: share of the paper's channels and hidden units.

    Raises:
        ValueError: images that are too small for three poolings.
    """
    if size < SMALLEST_SIZE:
        raise ValueError(
            f"Got images of {size} x {size}, expected at least {SMALLEST_SIZE} x {SMALLEST_SIZE}: enlarge them first."
        )
    inputs = keras.Input((size, size, 3), name="image")
    x = inputs
    for number, (kernel_size, channels, is_pooled) in enumerate(_CONVOLUTIONS, start=1):
        convolution = layers.Conv2D(
            round(channels * width),
            kernel_size,
            strides=4 if number == 1 else 1,
            padding="valid" if number == 1 else "same",
            use_bias=not batch_norm,
            name=f"conv{number}",
        )
        x = _norm_relu(convolution(x), f"conv{number}", batch_norm)
        if is_pooled:
            x = layers.MaxPooling2D(3, strides=2, name=f"pool{number}")(x)
    x = layers.Flatten(name="flatten")(x)
    for name in ("dense6", "dense7"):
        x = layers.Dense(round(_HIDDEN_UNITS * width), use_bias=not batch_norm, name=name)(x)
        x = _norm_relu(x, name, batch_norm)
        if not batch_norm:
            x = layers.Dropout(_DROPOUT, name=f"{name}_dropout")(x)
    name = "alexnet_batch_norm" if batch_norm else "alexnet"
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)


def _norm_relu(x, name: str, batch_norm: bool):
    if batch_norm:
        x = layers.BatchNormalization(name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
