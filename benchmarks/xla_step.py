"""Training steps as XLA programs: written as StableHLO, so that a device without TensorFlow can run and time them.

    python benchmarks/xla_step.py --networks=resnet18_unscaled --candidates="QIL 4/4" --directory=steps
    python benchmarks/run_xla_step.py steps/*.npz

Candidates and networks are those of train_step.py, whose flags this command takes. A step is what `fit` compiles: the
forward and backward pass, and the optimizer. Each file is an archive of numpy: the program (a portable artifact of
StableHLO), its arguments (images, classes, then every variable), and the losses of the first steps on this machine, to
compare others with.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable

# Before TensorFlow is imported: keras-cv then builds on tf_keras, as TFMOT does, and not on Keras 3.
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import rich.console
import tensorflow as tf
import tf_keras as keras
import train_step
from absl import app, flags, logging
from tensorflow.compiler.mlir.stablehlo import stablehlo
from tensorflow.python.framework import auto_control_deps_utils

_DIRECTORY = flags.DEFINE_string("directory", "benchmarks/output/xla_steps", "Folder of the files.")
_BFLOAT16 = flags.DEFINE_bool("bfloat16", False, "Compute in bfloat16, with float32 variables.")

# The oldest that all its operations have; later runtimes read it.
_STABLEHLO_VERSION = "1.0.0"
# Losses that are written down: enough to see that gradients and variables are right too.
_LOSSES = 3


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    if _BFLOAT16.value:
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    folder = pathlib.Path(_DIRECTORY.value)
    folder.mkdir(parents=True, exist_ok=True)
    for network in flags.FLAGS.networks:
        for name in train_step.chosen():
            model, images, labels = train_step.candidate(network, name)
            path = folder / f"{network}_{name.translate(str.maketrans(' /,', '_--'))}.npz"
            write(path, *exported(model, images, labels))
            rich.console.Console().print(f"{path}: {path.stat().st_size / 2**20:.1f} MB")


def exported(
    model: keras.Model, images: np.ndarray, labels: np.ndarray
) -> tuple[bytes, list[np.ndarray], list[int], list[float]]:
    """The step of a compiled model as a program.

    Returns:
        The program, its arguments, which argument each output after the first, the loss, is the new value of, and the
        losses of the first steps.
    """
    model.optimizer.build(model.trainable_variables)
    inputs = tf.constant(images), tf.constant(labels, tf.int32)
    step = _step(model)
    concrete = step.get_concrete_function(*inputs)
    by_handle = {id(variable.handle): variable for variable in concrete.variables}
    variables = [by_handle[id(handle)] for handle in concrete.captured_inputs]
    # Before the first step, which changes them.
    arguments = [tensor.numpy() for tensor in (*inputs, *variables)]
    program = _portable(step.experimental_get_compiler_ir(*inputs)(stage="stablehlo"))
    losses = [float(step(*inputs)) for _ in range(_LOSSES)]
    # The program returns the variables that it assigns to, in the order of its arguments.
    read_only = auto_control_deps_utils.get_read_only_resource_input_indices_graph(concrete.graph)
    written = [number for number in range(len(inputs), len(arguments)) if number not in read_only]
    return program, arguments, written, losses


def _portable(module: str) -> bytes:
    """A module without what only TensorFlow's own compiler knows: its notes, and copies, which change no value."""
    module = re.sub(r"^(module @\S+) attributes \{.*\} \{", r"\1 {", module, count=1, flags=re.MULTILINE)
    for note in (r"mhlo\.frontend_attributes = \{[^{}]*\}, ", r"(, )?mhlo\.frontend_attributes = \{[^{}]*\}"):
        module = re.sub(note, "", module)
    module = module.replace(" = mhlo.copy ", " = stablehlo.optimization_barrier ")
    artifact: bytes = stablehlo.serialize_portable_artifact_str(module, _STABLEHLO_VERSION)
    return artifact


def _step(model: keras.Model) -> Callable[..., tf.Tensor]:
    variables = model.trainable_variables

    @tf.function(jit_compile=True)
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = model.loss(labels, model(images, training=True))
        model.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


def write(
    path: pathlib.Path, program: bytes, arguments: list[np.ndarray], written: list[int], losses: list[float]
) -> None:
    """Writes a program with all that is needed to run it."""
    named = {f"argument_{number}": value for number, value in enumerate(arguments)}
    np.savez(path, program=np.frombuffer(program, np.uint8), written=written, losses=losses, **named)


if __name__ == "__main__":
    app.run(main)
