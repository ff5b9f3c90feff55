"""Three dense layers, with tensors of low bits between them: quantized and traced in a second."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

import tfqil
from tests import networks

IMAGES, LABELS = networks.digits(64, 8)


def float_model() -> Any:
    """Layers `first`, `second` and `last` on digits of 8 x 8; always the same."""
    keras.utils.set_random_seed(1)
    hidden = [keras.layers.Dense(16, activation="relu", name=name) for name in ("first", "second")]
    last = keras.layers.Dense(networks.CLASSES, name="last")
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), *hidden, last], name="three_layers")


def quantized(config: Any) -> Any:
    """The model with a config or a scheme; the tensor of `first` is that of `quantize_first_activation`."""
    return tfqil.quantize_model(float_model(), config)


def calibrated(config: Any) -> Any:
    """The same with intervals from the images."""
    return tfqil.calibrate(quantized(config), IMAGES)
