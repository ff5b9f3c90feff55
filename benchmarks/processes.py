"""Measuring in a process of its own, which starts from nothing, as a user does."""

from __future__ import annotations

import multiprocessing
import pathlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a new process.

    Raises:
        RuntimeError: the process has ended without a result.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"The process of {arguments} ended with exit code {process.exitcode}.") from None
    finally:
        process.join()


def peak_megabytes() -> float:
    """The peak memory of this process so far, on Linux.

    `getrusage` would not do: a new process begins with the peak of the one that has started it.
    """
    (peak,) = (line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024  # "VmHWM:    1234 kB"


def _send(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(function(*arguments))
