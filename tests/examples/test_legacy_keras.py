"""keras-cv builds on the Keras that TensorFlow finds when it is imported: commands see to it, and no shell has to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import scripts

PROGRAM = """
import sys
sys.path[:0] = ["examples", "benchmarks"]
import {module}, keras_cv, tf_keras
print(issubclass(keras_cv.models.YOLOV8Backbone, tf_keras.Model))
"""


@pytest.mark.recipe
@pytest.mark.parametrize("module", ["classifiers", "train_detector", "architectures", "xla_step"])
def test_a_command_that_builds_networks_of_keras_cv_gets_them_on_tf_keras(module):
    environment = {**os.environ, "PYTHONPATH": str(scripts.ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("TF_USE_LEGACY_KERAS", None)
    command = [sys.executable, "-c", PROGRAM.format(module=module)]
    printed = subprocess.run(
        command, cwd=scripts.ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines()[-1] == "True"
