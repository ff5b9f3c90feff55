"""Runs cells of the support matrix, each architecture in a process of its own.

A process returns its memory when it ends, and when it crashes, that is one unsupported cell with its reason.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import pathlib
import queue
import signal
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection

from absl import logging
from support_cell import Cell, measure

# Names of an architecture, a config and a storage.
Key = tuple[str, str, str]


def run(keys: Iterable[Key], processes: int = 1) -> Iterator[Cell]:
    """The cells as they are done, several architectures at a time."""
    by_architecture: dict[str, list[Key]] = {}
    for key in dict.fromkeys(keys):
        by_architecture.setdefault(key[0], []).append(key)
    done: queue.Queue[Cell | None] = queue.Queue()
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:  # Each thread waits for a process of its own.
        for wanted in by_architecture.values():
            pool.submit(_run_into, done, wanted)
        for _ in by_architecture:
            yield from iter(done.get, None)


def _run_into(done: queue.Queue[Cell | None], wanted: list[Key]) -> None:
    """Puts the cells of one architecture, and None when there are no more."""
    try:
        for cell in _run_one(wanted):
            done.put(cell)
    finally:
        done.put(None)


def _run_one(wanted: list[Key]) -> Iterator[Cell]:
    """The cells of one architecture; after a crash another process goes on behind the cell that crashed."""
    context = multiprocessing.get_context("spawn")  # Not forked: TensorFlow's threads do not survive that.
    while wanted:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_measure_all, args=(wanted, sender))
        process.start()
        sender.close()  # The process has its own end; when that closes, nothing more will come.
        for cell in _received(receiver):
            wanted = [key for key in wanted if key != cell.key]
            yield cell
        process.join()
        if wanted:
            (architecture, config, storage), *wanted = wanted
            reason = _cause(process.exitcode)
            yield Cell(architecture=architecture, config=config, storage=storage, failed_in="process", reason=reason)


def _received(receiver: Connection) -> Iterator[Cell]:
    while True:
        try:
            yield receiver.recv()
        except EOFError:
            return


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"the process was ended by {name}" + (", as for lack of memory" if name == "SIGKILL" else "")
    return f"the process ended with exit code {exit_code} before this cell was done"


def _measure_all(wanted: list[Key], sender: Connection) -> None:
    """What the process of an architecture does."""
    logging.set_verbosity(logging.ERROR)
    by_config: dict[str, list[str]] = {}
    for _, config, storage in wanted:
        by_config.setdefault(config, []).append(storage)
    for config, storages in by_config.items():
        for cell in measure(wanted[0][0], config, storages):
            sender.send(cell)


def read(path: pathlib.Path) -> dict[Key, Cell]:
    """The cells of a file that `write` wrote; none if there is no file."""
    if not path.exists():
        return {}
    cells = [_from_plain(values) for values in json.loads(path.read_text(encoding="utf-8"))]
    return {cell.key: cell for cell in cells}


def write(cells: dict[Key, Cell], path: pathlib.Path) -> None:
    """Writes all cells in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    plain = [dataclasses.asdict(cell) for cell in cells.values()]
    partial.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    partial.rename(path)


def _from_plain(values: dict) -> Cell:
    return Cell(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
