"""Images from a network alone: noise, changed until its batch normalizations see the statistics that they have stored.

The moving means and variances are what a trained network still knows of the images that it learned from. Quantizers
that follow the activations of such images find the intervals that those of the training images have.
Reference: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion" (CVPR 2020), equation (4);
Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework" (CVPR 2020), section 3.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras


def matched(
    model: keras.Model, start: np.ndarray, *, steps: int = 150, rate: float = 0.05, batch: int = 256
) -> np.ndarray:
    """Images whose activations have the mean and the deviation that every batch normalization expects.

    Loss, summed over normalizations, mean over channels, of m, s of a batch and M, S of the network:
    (m - M)^2 / S^2 + (s / S - 1)^2, by Adam, whose rate falls to 0 as a cosine.

    Args:
        model: trained, with batch normalizations; it does not change.
        start: images from -1 to 1, a multiple of `batch`; the result lies in the same range.
        steps: how often each image is changed.
        rate: of Adam.
        batch: images that have the statistics together.
    """
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    before_norms = keras.Model(model.inputs, [layer.input for layer in norms])
    images = tf.Variable(start[:batch])
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
    optimizer.build([images])
    unused = [variable.numpy() for variable in optimizer.variables]

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            found = tf.nest.flatten(before_norms(images, training=False))
            loss = tf.add_n([_distance(tensor, norm) for tensor, norm in zip(found, norms, strict=True)])
        # In proportion to the batch, or Adam's epsilon is not small beside it.
        optimizer.apply_gradients([(batch * tape.gradient(loss, images), images)])
        images.assign(tf.clip_by_value(images, -1.0, 1.0))

    results = []
    for first in range(0, len(start), batch):
        images.assign(start[first : first + batch])
        for variable, value in zip(optimizer.variables, unused, strict=True):
            variable.assign(value)
        for _ in range(steps):
            step()
        results.append(images.numpy())
    return np.concatenate(results)


def _distance(tensor: tf.Tensor, norm: Any) -> tf.Tensor:
    """How far the statistics of a tensor are from those of a normalization."""
    mean, variance = tf.nn.moments(tensor, list(range(tensor.shape.rank - 1)))
    expected = norm.moving_variance + norm.epsilon
    deviation = tf.sqrt((variance + norm.epsilon) / expected)
    return tf.reduce_mean((mean - norm.moving_mean) ** 2 / expected + (deviation - 1.0) ** 2)
