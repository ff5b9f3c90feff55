"""The examples that train on digits run from the shell, and leave integer-only files and a figure."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from matplotlib.image import imread

import tfqil

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
NETWORKS = {
    "binary_relax": {"ternary", "relaxed"},
    "blended_descent": {"rho_0", "rho_1e-05", "rho_0.01"},
    "power_of_two": {"LBW_2_bits", "LBW_3_bits", "LBW_4_bits", "LBW_5_bits"},
}


def run(script: str, *arguments: str) -> str:
    """What an example prints; a short training shows that it works, not how well."""
    command = [
        sys.executable,
        str(EXAMPLES / f"{script}.py"),
        "--float_epochs=2",
        "--epochs=2",
        "--width=8",
        *arguments,
    ]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.recipe
@pytest.mark.parametrize("script", NETWORKS)
def test_each_network_ends_in_an_integer_only_file_and_a_row(script, tmp_path):
    printed = run(script, f"--output={tmp_path}")
    files = {path.stem: tfqil.inspect(path) for path in tmp_path.glob("*.tflite")}
    assert set(files) == NETWORKS[script] | {"float"}
    assert {name for name, report in files.items() if not report.integer_only} == {"float"}
    figure = imread(tmp_path / f"{script}.png")
    assert figure.std() > 0.05, "the figure is empty"
    for name in NETWORKS[script]:
        (row,) = (line for line in printed.splitlines() if f" {name.replace('_', ' ')} " in line)
        # Outputs that differ from the integer model, then those from Keras.
        assert " yes " in row and " 0 / " in row, row
    if script == "power_of_two":
        require_powers_of_two(files)


def require_powers_of_two(files: dict) -> None:
    """Raises unless the five inner kernels of each file are zero or powers of two, on as many levels as there are."""
    for bits, levels in ((2, 3), (3, 5), (4, 9), (5, 15)):
        inner = [weight for weight in files[f"LBW_{bits}_bits"].weights if weight.powers_of_two]
        assert len(inner) == 5, [weight.name for weight in inner]
        assert all(weight.distinct_codes <= levels for weight in inner)
