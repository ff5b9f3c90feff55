"""Runs the command line, as a process of its own or in this one."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from tfqil.cli import main

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs `python -m tfqil` as a user does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # It would show the logs of the runtimes, which the command line hides by itself.
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    return subprocess.run(
        [sys.executable, "-m", "tfqil", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=300,
    )


def run_here(*arguments: object) -> int:
    """Runs a command in this process; returns the exit status."""
    return main.execute(main.parse(["tfqil", *map(str, arguments)]))


def assert_refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """One sentence on the error stream that says what was got and what was expected, and nothing else."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n"), result.stderr
    assert "Traceback" not in result.stderr
    for part in ("got ", "expected "):
        assert part in result.stderr.lower(), result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr
