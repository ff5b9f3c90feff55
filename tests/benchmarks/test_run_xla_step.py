"""Steps that JAX runs: what the command refuses, and a program of three lines, where JAX is installed."""

from __future__ import annotations

import importlib.util
import pathlib

import numpy as np
import pytest
from tensorflow.compiler.mlir.stablehlo import stablehlo

from tests import scripts

SCRIPT = "benchmarks/run_xla_step.py"

# The loss is the variable times the sum of the images; a step adds one to the variable. The classes are not read.
PROGRAM = """
module @step {
  func.func public @main(%images: tensor<2xf32>, %classes: tensor<2xi32>, %variable: tensor<f32>)
      -> (tensor<f32>, tensor<f32>) {
    %zero = stablehlo.constant dense<0.0> : tensor<f32>
    %one = stablehlo.constant dense<1.0> : tensor<f32>
    %sum = stablehlo.reduce(%images init: %zero) applies stablehlo.add across dimensions = [0]
      : (tensor<2xf32>, tensor<f32>) -> tensor<f32>
    %loss = stablehlo.multiply %sum, %variable : tensor<f32>
    %next = stablehlo.add %variable, %one : tensor<f32>
    return %loss, %next : tensor<f32>, tensor<f32>
  }
}
"""


@pytest.fixture
def step(tmp_path: pathlib.Path) -> str:
    """A file as xla_step.py writes it."""
    path = tmp_path / "three_lines.npz"
    program = stablehlo.serialize_portable_artifact_str(PROGRAM, "1.0.0")
    arguments = [np.float32([1, 2]), np.int32([0, 1]), np.float32(2)]
    named = {f"argument_{number}": value for number, value in enumerate(arguments)}
    np.savez(path, program=np.frombuffer(program, np.uint8), written=[2], losses=[6.0, 9.0], **named)
    return str(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    one_array, text = tmp_path / "array.npy", tmp_path / "text.npz"
    np.save(one_array, np.zeros(2))
    text.write_text("no archive")
    for path in (one_array, text, tmp_path / "missing.npz"):
        sentence = scripts.refused(SCRIPT, str(path))
        assert sentence == f"Got {str(path)!r}, expected an archive of a training step: write one with xla_step.py."


def test_no_steps_are_refused(step):
    assert "Got --steps=0, expected at least 1" in scripts.refused(SCRIPT, step, "--steps=0")


def test_a_machine_without_jax_is_told_what_to_install(step):
    sentence = scripts.refused(SCRIPT, step, before="sys.modules['jax'] = None")
    assert sentence.startswith("Got no usable JAX (") and sentence.endswith(": pip install jax.")


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is none of the pinned packages.")
def test_a_step_computes_the_losses_that_were_written_and_keeps_its_variable(step):
    printed = scripts.run(SCRIPT, step, "--steps=2").splitlines()
    assert printed[0].endswith("median of 2 steps; of the first file; losses here and there")
    assert printed[1].startswith("three_lines: ") and printed[1].endswith(
        "1.00x; 6.000000 9.000000 / 6.000000 9.000000"
    )
