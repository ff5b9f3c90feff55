"""Times .tflite files against each other on this machine, and the operators of each.

The files take turns, so that a change of the machine's speed meets all of them alike. The ratio is that of
the medians, to the first file: below 1 is faster. Naming a file twice shows how far apart equal files are
measured.

Each operator is timed alone, as a file of its own: to start it costs one or two microseconds, which the whole file
pays once, and to fetch its inputs less than there. Who runs it is what happens in the whole file: XNNPACK, the delegate
that phones use by default, or a built-in kernel of the runtime.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.table

from tfqil._tables import add_row, empty_table, size
from tfqil.cli import console
from tfqil.export import runtime
from tfqil.export.operator_times import OperatorTime, operator_times

USAGE = "FILE.tflite [FILE.tflite ...] [--threads=1] [--runs=50] [--no-operators] [--json]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """What is said about the runs of one file; times in seconds."""

    file: str
    bytes: int
    runs: int
    median: float
    minimum: float
    maximum: float
    # Median divided by the first file's.
    ratio: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operators:
    """What is said about the operators of one file.

    Attributes:
        file: its name.
        operators: in the order of the file; seconds of each alone.
        partitions: in how many connected parts XNNPACK takes those that it takes.
    """

    file: str
    operators: Sequence[OperatorTime]
    partitions: int

    @property
    def delegated(self) -> int:
        """How many operators XNNPACK takes."""
        return sum(entry.kernels == "xnnpack" for entry in self.operators)

    @property
    def total(self) -> float:
        """Seconds of all operators together, each alone."""
        return sum(entry.seconds or 0.0 for entry in self.operators)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the arguments of the command."""
    parser.add_argument("files", metavar="FILE.tflite", nargs="+", help="files to time; the first is the yardstick")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (default: 1)")
    parser.add_argument("--runs", type=int, default=50, help="timed runs per file and operator (default: 50)")
    parser.add_argument("--no-operators", action="store_true", help="time the files as a whole only")


def run(arguments: argparse.Namespace) -> int:
    """Times the files and prints the result."""
    contents = {
        name: console.read_file(path, what="a .tflite file")
        for name, path in zip(_distinct(arguments.files), arguments.files, strict=True)
    }
    try:
        seconds = runtime.benchmark(contents, threads=arguments.threads, repeats=arguments.runs)
        operators = [
            operators_of(name, content, threads=arguments.threads, runs=arguments.runs)
            for name, content in ({} if arguments.no_operators else contents).items()
        ]
    except ValueError as error:
        raise console.InputError(_culprit(contents) + console.one_sentence(error)) from error
    timings = timings_of(contents, seconds)
    if arguments.json:
        console.print_json(to_dict(timings, operators, threads=arguments.threads))
    else:
        whole = {timing.file: timing.median for timing in timings}
        blocks = (block for entry in operators for block in render_operators(entry, whole[entry.file]))
        console.print_blocks(*blocks, render(timings, threads=arguments.threads))
    return 0


def operators_of(name: str, content: bytes, *, threads: int, runs: int) -> Operators:
    """Times the operators of a file that runs."""
    return Operators(
        file=name,
        operators=operator_times(content, threads=threads, repeats=runs),
        partitions=runtime.delegate_partitions(content),
    )


def timings_of(contents: Mapping[str, bytes], seconds: Mapping[str, Sequence[float]]) -> list[Timing]:
    """Summarises the measured times, in the order of the files."""
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    yardstick = medians[next(iter(contents))]
    return [
        Timing(
            file=name,
            bytes=len(content),
            runs=len(seconds[name]),
            median=medians[name],
            minimum=min(seconds[name]),
            maximum=max(seconds[name]),
            ratio=medians[name] / yardstick,
        )
        for name, content in contents.items()
    ]


def to_dict(timings: Sequence[Timing], operators: Sequence[Operators], *, threads: int) -> dict[str, Any]:
    """The result as JSON holds it."""
    return {
        "threads": threads,
        "unit": "seconds",
        "files": [dataclasses.asdict(timing) for timing in timings],
        "operators": [{**dataclasses.asdict(entry), "delegated": entry.delegated} for entry in operators],
    }


def render(timings: Sequence[Timing], *, threads: int) -> rich.table.Table:
    """The result as a table."""
    numbers = ("size", "runs", "median ms", "min ms", "max ms", "ratio")
    plural = "s" if threads > 1 else ""
    result = empty_table({"file": "left", **dict.fromkeys(numbers, "right")}, f"{threads} thread{plural}, runs in turn")
    for timing in timings:
        times = (f"{1000 * value:.3f}" for value in (timing.median, timing.minimum, timing.maximum))
        add_row(result, (timing.file, size(timing.bytes), timing.runs, *times, f"{timing.ratio:.3f}"))
    return result


def render_operators(entry: Operators, whole: float) -> Iterator[rich.table.Table | str]:
    """The operators of a file as a table, and who runs them in one sentence.

    Args:
        entry: the operators.
        whole: median seconds of the whole file.
    """
    table = empty_table(
        {"operator": "left", "output tensor": "left", "run by": "left", "time us": "right", "share": "right"},
        f"{entry.file}: operators, each timed alone",
    )
    for operator in entry.operators:
        times = (
            ("-", "-")
            if operator.seconds is None
            else (f"{1e6 * operator.seconds:.1f}", f"{operator.seconds / entry.total:.1%}")
        )
        # The converter joins the names of what it fused by ';'.
        tensor = operator.result.partition(";")[0]
        add_row(table, (operator.name, tensor, console.RUN_BY[operator.kernels], *times))
    yield table
    number, parts = len(entry.operators), entry.partitions
    others = number - entry.delegated
    in_parts = f", in {parts} part{'' if parts == 1 else 's'}" if entry.delegated else ""
    by_others = f"; built-in kernels run {others}" if others else ""
    yield f"XNNPACK runs {entry.delegated} of {number} operators{in_parts}{by_others}"
    yield (
        f"all operators, each alone: {1000 * entry.total:.3f} ms, with the start of each; the whole file: "
        f"{1000 * whole:.3f} ms"
    )


def _distinct(paths: Sequence[str]) -> list[str]:
    """The paths, numbered from the second time on that one is given."""
    names = []
    for position, path in enumerate(paths):
        earlier = paths[:position].count(path)
        names.append(f"{path} ({earlier + 1})" if earlier else path)
    return names


def _culprit(contents: Mapping[str, bytes]) -> str:
    """The first file that does not run alone, as a prefix of the message: the runtime knows no names."""
    for name, content in contents.items():
        try:
            runtime.benchmark({name: content}, repeats=1)
        except ValueError:
            return f"{name}: "
    return ""
