"""Whole quantized models, activations included, train on several replicas."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_two_replicas_set_the_same_grids_and_train_the_same_weights():
    script = pathlib.Path(__file__).with_name("two_replicas.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("equal"), done.stderr[-3000:]
