"""Processes that measure: what they return, and that one that has ended says so."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
from collections.abc import Callable

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import processes


def counter(start: int) -> Callable[[], int]:
    """A function that counts, and kills its process at 3."""
    state = [start]

    def count() -> int:
        state[0] += 1
        if state[0] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return state[0]

    return count


def broken(message: str) -> Callable[[], None]:
    raise ValueError(message)


def double(number: int) -> int:
    if number < 0:
        raise ValueError("negative")
    return 2 * number


def test_a_worker_keeps_its_state_between_calls():
    with processes.Worker(counter, 0) as one, processes.Worker(counter, 5) as other:
        assert [one.call(), other.call(), one.call(), other.call()] == [1, 6, 2, 7]


def test_a_killed_worker_is_named_whenever_it_is_called():
    with processes.Worker(counter, 2) as worker:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="The process of 2 has ended with exit code -9: where memory"):
                worker.call()


def test_a_worker_that_cannot_be_built_is_named():
    with pytest.raises(RuntimeError, match="The process of resnet, QIL has ended with exit code 1: see above"):
        processes.Worker(broken_pair, "resnet", "QIL")


def broken_pair(network: str, candidate: str) -> Callable[[], None]:
    return broken(network + candidate)


def test_a_call_returns_what_the_function_returns_or_names_its_arguments():
    assert processes.call(double, 21) == 42
    with pytest.raises(RuntimeError, match="The process of <function double at .*>, -1 has ended with exit code 1"):
        processes.call(double, -1)


def grown_by(megabytes: int) -> tuple[float, int]:
    before = processes.peak_megabytes()
    held = b"1" * (megabytes * 2**20)
    return processes.peak_megabytes() - before, len(held)


def test_the_peak_of_memory_grows_with_what_is_held():
    grown, _ = processes.call(grown_by, 200)
    assert 190 < grown < 260
