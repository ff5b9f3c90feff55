"""The classes of tf_keras that this package derives from, and how its objects are stored."""

from __future__ import annotations

import tf_keras as keras

Layer = keras.layers.Layer
Model = keras.Model
Callback = keras.callbacks.Callback
Optimizer = keras.optimizers.Optimizer
# Inputs, labels and weights of what `fit` hands to a step.
unpack = keras.utils.unpack_x_y_sample_weight

# `.keras`, `.h5` and SavedModel all read the legacy form of a nested object; `.h5` does not read the newer one.
serialize_object = keras.utils.legacy.serialize_keras_object
deserialize_object = keras.utils.legacy.deserialize_keras_object


def serializable(cls: type) -> type:
    """Registers a class with Keras, so that models that hold it load without a custom-object scope."""
    registered: type = keras.saving.register_keras_serializable(package="tfqil")(cls)
    return registered
