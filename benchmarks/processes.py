"""Measuring in a process of its own, which starts from nothing, as a user does."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import pathlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Worker:
    """A process that builds a function and then calls it whenever it is asked to; a context manager that ends it."""

    def __init__(self, build: Callable[..., Callable[[], Any]], *arguments: Any) -> None:
        """Starts the process and waits until `build(*arguments)` has returned the function.

        Raises:
            RuntimeError: the process has ended before.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._name = ", ".join(map(str, arguments))
        self._process = context.Process(target=_serve, args=(other, build, arguments))
        self._process.start()
        other.close()
        self._receive()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()

    def call(self) -> Any:
        """What the function returns.

        Raises:
            RuntimeError: the process has ended.
        """
        with contextlib.suppress(OSError):  # Of a process that has ended there may still be a result.
            self._pipe.send(None)
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            why = "see above" if code and code > 0 else "where memory has run out, the system kills: leave out others"
            raise RuntimeError(f"The process of {self._name} has ended with exit code {code}: {why}.") from None


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a new process.

    Raises:
        RuntimeError: the process has ended without a result.
    """
    with Worker(functools.partial, function, *arguments) as worker:
        return worker.call()


def peak_megabytes() -> float:
    """The peak memory of this process so far, on Linux.

    `getrusage` would not do: a new process begins with the peak of the one that has started it.
    """
    (peak,) = (line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024  # "VmHWM:    1234 kB"


def _serve(pipe: Connection, build: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    function = build(*arguments)
    pipe.send(None)
    with contextlib.suppress(EOFError, OSError):  # The other side has closed the pipe.
        while True:
            pipe.recv()
            pipe.send(function())
