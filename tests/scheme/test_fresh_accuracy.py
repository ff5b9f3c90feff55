"""A calibrated network of 8 bits is as good as the float one it was made of, before any training."""

import numpy as np
import pytest

from tests import networks

# Of 4,000 test images.
LARGEST_LOSS = 0.005


@pytest.mark.parametrize("family", networks.FAMILIES)
def test_8_bits_keep_the_accuracy_within_half_a_point(family):
    model, (images, labels) = networks.trained(family), networks.digits(4000)
    q_model = networks.calibrated(model, 8, 8)
    before, after = (np.mean(m.predict(images, verbose=0).argmax(-1) == labels) for m in (model, q_model))
    assert before > 0.5, "the float network has learned something"
    assert before - after <= LARGEST_LOSS, f"{before:.2%} in float, {after:.2%} in 8 bits"
