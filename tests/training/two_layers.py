"""Two dense layers, the first one quantized: digits in a second, and the same numbers in training and inference."""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras as keras

from tests import networks
from tfqil.quantizers import BinaryWeightQuantizer, WeightQuantizer
from tfqil.scheme import LowBitQuantizeConfig, QuantizedLayer

IMAGES, LABELS = networks.digits(128, 8)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def quantized_dense(units: int, quantizer: WeightQuantizer, **arguments: Any) -> Any:
    """A dense layer whose kernel a quantizer takes."""
    config = LowBitQuantizeConfig(weights=quantizer)
    dense = keras.layers.Dense(units, **arguments)
    return QuantizedLayer(dense, config, dtype=keras.mixed_precision.Policy(dense.dtype_policy.name).variable_dtype)


def network(*quantizers: WeightQuantizer) -> Any:
    """A layer of 16 units for each quantizer (a binary one without any), and a float layer of ten; always the same."""
    keras.utils.set_random_seed(1)
    hidden = [
        quantized_dense(16, quantizer, activation="relu", name=f"hidden_{number}")
        for number, quantizer in enumerate(quantizers or [BinaryWeightQuantizer()])
    ]
    flatten = keras.layers.Flatten(input_shape=(8, 8, 1))
    model = keras.Sequential([flatten, *hidden, keras.layers.Dense(10, name="last")], name="two_layers")
    for layer in hidden:
        layer.initialize()
    return model


def quantized_layers(model: Any) -> list[Any]:
    """The layers whose kernels are quantized."""
    return [layer for layer in model.layers if isinstance(layer, QuantizedLayer)]


def fit(model: Any, epochs: int = 1, **arguments: Any) -> dict[str, list[float]]:
    """Trains on the digits, the same batches in every epoch."""
    history = model.fit(IMAGES, LABELS, batch_size=32, epochs=epochs, shuffle=False, verbose=0, **arguments)
    return history.history


def trained(model: Any, optimizer: Any, epochs: int = 1, **arguments: Any) -> Any:
    """The model after some epochs with an optimizer."""
    model.compile(optimizer, LOSS)
    fit(model, epochs, **arguments)
    return model


def same(one: Any, other: Any) -> bool:
    """Whether two lists of arrays or variables are equal, bit for bit."""
    pairs = zip(one, other, strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
