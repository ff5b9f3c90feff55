"""Stores small trained models of this version, for `test_resuming` of later ones: run once per version.

python tests/training/store_models.py
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
import tf_keras as keras

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
import tfqil
from tests import networks

CONFIGS = {
    "qil": tfqil.QILQuantizeConfig(3, 2, per_channel=True, train_gamma=True),
    "lbw": tfqil.LBWQuantizeConfig(4, 8),
    "bcgd": tfqil.BCGDQuantizeConfig(1, 4, relax=True),
    "relu6": tfqil.QILQuantizeConfig(3, 3),
}


def network(method: str) -> Any:
    """The float model that a method is stored of; "relu6" has tensors that a ReLU6 clips."""
    if method != "relu6":
        return networks.randomize_norms(networks.tiny())
    layers = keras.layers
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(3, 3, strides=2, use_bias=False, name="stem")(inputs)
    x = layers.BatchNormalization(gamma_initializer=keras.initializers.Constant(24.0), name="norm")(x)
    x = layers.ReLU(6.0, name="relu")(x)
    x = layers.Conv2D(4, 1, kernel_initializer=keras.initializers.VarianceScaling(9.0), name="pointwise")(x)
    x = layers.Flatten(name="flatten")(layers.ReLU(6.0, name="last_relu")(x))
    return keras.Model(inputs, layers.Dense(networks.CLASSES, activation="softmax", name="last")(x), name="six")


def main() -> None:
    """Writes a model per method, and what it computes."""
    folder = pathlib.Path(__file__).with_name("stored") / tfqil.__version__
    folder.mkdir(parents=True)
    images, labels = networks.digits(64, 8)
    expected = {}
    for method, config in CONFIGS.items():
        keras.utils.set_random_seed(0)
        q_model = tfqil.calibrate(tfqil.quantize_model(network(method), config), images)
        optimizer = tfqil.optimizers.BlendedOptimizer(keras.optimizers.SGD(0.01, momentum=0.9), q_model)
        q_model.compile(tfqil.optimizers.IntervalRateOptimizer(optimizer), "sparse_categorical_crossentropy")
        q_model.fit(images, labels, batch_size=16, verbose=0)
        q_model.save(folder / f"{method}.keras")
        expected[f"{method}_outputs"] = q_model.predict(networks.digits(32, 8)[0], verbose=0)
        expected[f"{method}_file"] = np.frombuffer(tfqil.convert(q_model), np.uint8)
        for name, grid in tfqil.freeze(q_model).items():
            expected[f"{method}_codes_{name}"] = grid.codes
    np.savez_compressed(folder / "expected.npz", **expected)


if __name__ == "__main__":
    main()
