"""What a training step costs, and steps as programs: the commands on a small network."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from tests import scripts

SMALL = ["--networks=alexnet_narrow", "--size=67", "--batch=16"]

pytestmark = pytest.mark.recipe


def test_steps_of_all_candidates_are_timed_in_one_run(tmp_path):
    path = tmp_path / "folder" / "steps.json"
    printed = scripts.run(
        "benchmarks/train_step.py", *SMALL, "--candidates=TFMOT 8-bit,QIL 4/4", "--steps=3", f"--output={path}"
    )
    records = json.loads(path.read_text())
    assert [record["candidate"] for record in records] == ["float", "TFMOT 8-bit", "QIL 4/4"]
    for record in records:
        assert record["candidate"].split()[0] in printed and f"{record['of_float']:.2f}x" in printed
        assert record["milliseconds"] > 0
        assert 100 < record["megabytes_before"] < record["peak_megabytes"]
    assert records[0]["of_float"] == 1


def test_a_candidate_that_is_none_is_refused():
    sentence = scripts.refused("benchmarks/train_step.py", *SMALL, "--candidates=QIL 9/9")
    assert "Got --candidates=QIL 9/9, expected some of float; TFMOT 8-bit;" in sentence


def test_a_program_trains_as_the_model_that_it_was_written_from(tmp_path):
    scripts.run("benchmarks/xla_step.py", *SMALL, "--candidates=BCGD 1/4", f"--directory={tmp_path}")
    assert {path.name for path in tmp_path.iterdir()} == {"alexnet_narrow_float.npz", "alexnet_narrow_BCGD_1-4.npz"}
    for path in tmp_path.iterdir():
        file = np.load(path)
        losses = run(file["program"].tobytes(), arguments_of(file), file["written"], len(file["losses"]))
        np.testing.assert_allclose(losses, file["losses"], rtol=1e-3)
        assert len(set(losses)) == len(losses), "the variables do not change"


def arguments_of(file: np.lib.npyio.NpzFile) -> list[tf.Tensor]:
    count = sum(name.startswith("argument_") for name in file.files)
    return [tf.constant(file[f"argument_{number}"]) for number in range(count)]


def run(program: bytes, arguments: list[tf.Tensor], written: np.ndarray, steps: int) -> list[float]:
    """The losses of some steps, for which TensorFlow is but an XLA runtime."""

    @tf.function(jit_compile=True)
    def step(*arguments):
        outputs = [tf.TensorSpec((), tf.float32), *(arguments[number] for number in written)]
        return xla.call_module(
            list(arguments),
            version=9,
            module=program,
            Tout=[output.dtype for output in outputs],
            Sout=[output.shape for output in outputs],
            platforms=["CPU"],
        )

    losses = []
    for _ in range(steps):
        loss, *values = step(*arguments)
        losses.append(float(loss))
        for number, value in zip(written, values, strict=True):
            arguments[number] = value
    return losses
