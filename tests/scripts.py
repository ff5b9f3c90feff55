"""Scripts of the examples and benchmarks as processes of their own."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

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


Process = subprocess.Popen[str]


def start(script: str, *arguments: str, before: str = "", environment: Mapping[str, str] | None = None) -> Process:
    """The script, a path from the root of the repository, running.

    Args:
        script: such as examples/train_classifier.py.
        arguments: of the command line.
        before: Python statements that the process runs first; the folders of the scripts are on its path.
        environment: what its environment has in addition.
    """
    path = ROOT / script
    folders = [str(path.parent), str(ROOT / "examples")]
    program = _PROGRAM.format(folders=folders, statements=before, script=str(path))
    common = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **common, **(environment or {})},
    )


def run(script: str, *arguments: str, before: str = "", timeout: float = 900) -> str:
    """What the script prints; it has to end well."""
    return finish(start(script, *arguments, before=before), timeout)


def finish(process: Process, timeout: float = 900) -> str:
    """What a running script prints; it has to end well."""
    code, printed, errors = _ended(process, timeout)
    assert code == 0, errors[-3000:]
    return printed


@contextlib.contextmanager
def together(processes: Sequence[Process]) -> Iterator[Sequence[Process]]:
    """Running scripts that wait for each other; none is left running where a test fails."""
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


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
    wait_until(reached, [process], timeout)
    process.kill()
    process.communicate()


def wait_until(reached: Callable[[], bool], processes: Sequence[Process], timeout: float = 600) -> None:
    """Returns as soon as something is reached, which has to be before a process ends."""
    deadline = time.monotonic() + timeout
    while not reached() and all(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert reached()


def _ended(process: Process, timeout: float) -> tuple[int, str, str]:
    try:
        printed, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        pytest.fail(f"The script did not end in {timeout:g} s: {errors[-3000:]}")
    return process.returncode, printed, errors
