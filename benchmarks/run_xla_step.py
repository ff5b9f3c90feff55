"""Runs training steps that xla_step.py has written, on the first device of JAX, and times them. Needs no TensorFlow.

    pip install jax  # Or jax[cuda12] where there is a GPU. Tried with JAX 0.10.2, whose internals this reaches for.
    python run_xla_step.py steps/*.npz

The files take turns, a step each. The variables stay on the device, as those of a training do, so that only the loss is
transferred. The losses of the first steps are compared with those of the machine that wrote the file.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import time
import zipfile

import numpy as np

try:
    import jax
    import jax.numpy as jnp
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jaxlib.mlir.dialects import stablehlo
except ImportError as error:  # The arguments are checked, and --help answers, without it.
    jax, missing = None, str(error)


class Step:
    """A program on the device, with its arguments."""

    def __init__(self, path: pathlib.Path) -> None:
        """Compiles a program and moves its arguments to the device."""
        with np.load(path) as file:
            self.expected = file["losses"].tolist()
            self._written = file["written"].tolist()
            count = sum(name.startswith("argument_") for name in file.files)
            self._arguments = [jnp.asarray(file[f"argument_{number}"]) for number in range(count)]
            program = file["program"].tobytes()
        context = mlir.make_ir_context()
        with context:
            bytecode = mlir.module_to_bytecode(stablehlo.deserialize_portable_artifact(context, program))
        device = jax.devices()[0]
        self._executable = device.client.compile_and_load(
            bytecode, xla_client.DeviceList((device,)), xla_client.CompileOptions()
        )

    def __call__(self) -> float:
        """Takes a step; returns its loss."""
        shards = self._executable.execute_sharded(self._arguments).disassemble_into_single_device_arrays()
        loss, *values = (one for (one,) in shards)
        for number, value in zip(self._written, values, strict=True):
            self._arguments[number] = value
        jax.block_until_ready(values)
        return float(np.asarray(loss))


def require_usable(arguments: argparse.Namespace) -> None:
    """Ends with one sentence where an argument, or JAX, is not as it has to be."""
    if arguments.steps < 1:
        raise SystemExit(f"Got --steps={arguments.steps}, expected at least 1: give the number of steps to time.")
    for path in arguments.files:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (OSError, zipfile.BadZipFile):
            names = []
        if not {"program.npy", "written.npy", "losses.npy"} <= set(names):
            raise SystemExit(f"Got {str(path)!r}, expected an archive of a training step: write one with xla_step.py.")
    if jax is None:
        raise SystemExit(f"Got no usable JAX ({missing}), expected version 0.10.2 or one like it: pip install jax.")


def main() -> None:
    """Prints a line per file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path, help="of xla_step.py")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each file")
    arguments = parser.parse_args()
    require_usable(arguments)
    jax.config.update("jax_enable_x64", True)  # The optimizer's count of steps is an int64.
    steps = {path: Step(path) for path in arguments.files}
    losses = {path: [step() for _ in step.expected] for path, step in steps.items()}
    seconds: dict[pathlib.Path, list[float]] = {path: [] for path in steps}
    for _ in range(arguments.steps):
        for path, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[path].append(time.perf_counter() - start)
    medians = {path: statistics.median(values) for path, values in seconds.items()}
    print(
        f"{jax.devices()[0].device_kind}, median of {arguments.steps} steps; of the first file; losses here and there"
    )
    for path, step in steps.items():
        ratio = medians[path] / medians[arguments.files[0]]
        here, there = (" ".join(f"{loss:.6f}" for loss in values) for values in (losses[path], step.expected))
        print(f"{path.stem}: {1e3 * medians[path]:.2f} ms, {ratio:.2f}x; {here} / {there}")


if __name__ == "__main__":
    main()
