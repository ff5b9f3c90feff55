"""Every test starts from the same random state, whatever ran before it in the process."""

import pytest
import tf_keras as keras


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(1)
