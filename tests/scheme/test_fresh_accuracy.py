"""A calibrated network of 8 bits is as good as the float one it was made of, before any training in bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tf_keras as keras

from tests import networks

# Of 4,000 test images.
LARGEST_LOSS = 0.005


def trained_on(family: str) -> Any:
    """A network of a family, trained on after `networks.trained` has set some of its channels to 0."""
    shared = networks.trained(family)
    model = keras.models.clone_model(shared)
    model.set_weights(shared.get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=family != "separable")
    model.compile(keras.optimizers.Adam(1e-3), loss)
    model.fit(*networks.digits(2000), batch_size=50, epochs=3, verbose=0)
    return model


@pytest.mark.parametrize("family", networks.FAMILIES)
def test_8_bits_keep_the_accuracy_within_half_a_point(family):
    model, (images, labels) = trained_on(family), networks.digits(4000)
    q_model = networks.calibrated(model, 8, 8)
    before, after = (np.mean(m.predict(images, verbose=0).argmax(-1) == labels) for m in (model, q_model))
    assert before > 0.6, "the float network has learned something"
    assert before - after <= LARGEST_LOSS, f"{before:.2%} in float, {after:.2%} in 8 bits"
