"""Scripts of the examples and benchmarks as processes of their own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Runs a script after statements such as those that make its data set smaller.
_PROGRAM = """
import runpy, sys
sys.path[:0] = {folders!r}
{statements}
sys.argv[0] = {script!r}
runpy.run_path({script!r}, run_name="__main__")
"""


def start(script: str, *arguments: str, before: str = "") -> subprocess.Popen[str]:
    """The script, a path from the root of the repository, running.

    Args:
        script: such as examples/train_classifier.py.
        arguments: of the command line.
        before: Python statements that the process runs first; the folders of the scripts are on its path.
    """
    path = ROOT / script
    folders = [str(path.parent), str(ROOT / "examples")]
    program = _PROGRAM.format(folders=folders, statements=before, script=str(path))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def run(script: str, *arguments: str, before: str = "", timeout: float = 900) -> str:
    """What the script prints; it has to end well."""
    code, printed, errors = _ended(start(script, *arguments, before=before), timeout)
    assert code == 0, errors[-3000:]
    return printed


def refused(script: str, *arguments: str, before: str = "", timeout: float = 600) -> str:
    """The sentence that the script ends with; it has to fail."""
    code, _, errors = _ended(start(script, *arguments, before=before), timeout)
    assert code == 1, errors[-3000:]
    return errors.strip().splitlines()[-1]


def kill_when(
    reached: Callable[[], bool], script: str, *arguments: str, before: str = "", timeout: float = 600
) -> None:
    """Starts the script and kills it as soon as it has reached something."""
    process = start(script, *arguments, before=before)
    deadline = time.monotonic() + timeout
    while not reached() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert reached()


def _ended(process: subprocess.Popen[str], timeout: float) -> tuple[int, str, str]:
    try:
        printed, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        pytest.fail(f"The script did not end in {timeout:g} s: {errors[-3000:]}")
    return process.returncode, printed, errors
