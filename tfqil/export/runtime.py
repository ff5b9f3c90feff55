"""Runs and times a .tflite file with a chosen set of kernels, and says what XNNPACK takes over.

LiteRT has three sets of CPU kernels, and they round differently (`arithmetic.py`):

    xnnpack     what a phone runs by default; what XNNPACK refuses falls back to builtin
    builtin     the optimized kernels of the runtime itself
    reference   the plain kernels
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

KERNELS = ("xnnpack", "builtin", "reference")

_RESOLVERS = {
    "xnnpack": OpResolverType.AUTO,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}
# What open heights and widths are tried with: images of one pixel are smaller than many a window.
_OPEN_SIZES = (1, 32, 64, 128, 256, 512)


def run(tflite: bytes, inputs: Sequence[np.ndarray], *, kernels: str = "xnnpack", threads: int = 1) -> list[np.ndarray]:
    """Runs the file once and returns all outputs, in the order of the file.

    Args:
        tflite: content of the file.
        inputs: one array per input of the file, in its order and of its type; a dimension that the file
            leaves open, and the first dimension in any case, takes the size of the array.
        kernels: one of `KERNELS`.
        threads: number of threads of the runtime.

    Raises:
        ValueError: wrong number, shape or type of inputs, unknown kernels, or a file the runtime refuses.
    """
    interpreter = loaded(tflite, inputs, kernels=kernels, threads=threads)
    invoke(interpreter, kernels)
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def loaded(tflite: bytes, inputs: Sequence[np.ndarray], *, kernels: str = "xnnpack", threads: int = 1) -> Interpreter:
    """An interpreter with its inputs set; arguments and errors are those of `run`."""
    interpreter = _interpreter(tflite, kernels, threads)
    details = interpreter.get_input_details()
    arrays = [np.asarray(array) for array in inputs]
    if len(arrays) != len(details):
        raise ValueError(
            f"got {len(arrays)} input arrays, expected {len(details)}, one per input of the file: pass them "
            f"in the order {[detail['name'] for detail in details]}"
        )
    for array, detail in zip(arrays, details, strict=True):
        _check_input(array, detail)
        if tuple(detail["shape"]) != array.shape:
            interpreter.resize_tensor_input(detail["index"], array.shape)
    _allocate(interpreter, kernels)
    for array, detail in zip(arrays, details, strict=True):
        interpreter.set_tensor(detail["index"], array)
    return interpreter


def benchmark(
    tflites: Mapping[str, bytes], *, threads: int = 1, repeats: int = 50, seconds: float = 10.0, seed: int = 0
) -> dict[str, list[float]]:
    """Times the files against each other: seconds of each run, with the default kernels and batch 1.

    The files take turns (A B C A B C ...), so that a change of the machine's speed meets all of them alike.
    Compare medians. The first tenth of the rounds, at least one, warms up and is not returned.

    Args:
        tflites: name -> content of the file.
        threads: number of threads of the runtime.
        repeats: rounds to return, at most.
        seconds: stops early after the round that exceeds this time; at least one round is returned.
        seed: of the random inputs, uniform over [-1, 1] or over all integers of the type.

    Raises:
        ValueError: no file, repeats below 1, or a file the runtime refuses.
    """
    if not tflites:
        raise ValueError("got no file to time, expected at least one: pass {name: content of the file}")
    if repeats < 1:
        raise ValueError(f"got repeats={repeats}, expected at least 1: pass the number of rounds to time")
    interpreters = {name: ready(tflite, threads=threads, seed=seed) for name, tflite in tflites.items()}
    return time_in_turn(interpreters, repeats=repeats, seconds=seconds)


def time_in_turn(interpreters: Mapping[Any, Interpreter], *, repeats: int, seconds: float) -> dict[Any, list[float]]:
    """Seconds of each run of interpreters whose inputs are set, as `benchmark` takes them."""
    for _ in range(max(1, repeats // 10)):
        for interpreter in interpreters.values():
            invoke(interpreter, "xnnpack")
    times: dict[Any, list[float]] = {name: [] for name in interpreters}
    deadline = time.perf_counter() + seconds
    for _ in range(repeats):
        for name, interpreter in interpreters.items():
            start = time.perf_counter()
            interpreter.invoke()
            times[name].append(time.perf_counter() - start)
        if time.perf_counter() > deadline:
            break
    return times


def ready(
    tflite: bytes, *, kernels: str = "xnnpack", threads: int = 1, seed: int = 0, keep: bool = False
) -> Interpreter:
    """An interpreter with one random example as its input; sizes that the file leaves open are small ones.

    Args:
        tflite: content of the file.
        kernels: one of `KERNELS`.
        threads: number of threads of the runtime.
        seed: of the inputs, uniform over [-1, 1] or over all integers of the type.
        keep: keep the values of all tensors, to be read after a run; not with the XNNPACK kernels.

    Raises:
        ValueError: unknown kernels, or a file the runtime refuses.
    """
    interpreter = _allocated(tflite, kernels, threads, keep=keep)
    _set_random_inputs(interpreter, np.random.default_rng(seed))
    return interpreter


def input_names(tflite: bytes) -> list[str]:
    """The names of the file's inputs, in its order.

    Raises:
        ValueError: the runtime refuses the file.
    """
    return [str(detail["name"]) for detail in _interpreter(tflite, "builtin", 1).get_input_details()]


def fixed_batch(tflite: bytes) -> int | None:
    """The number of examples that the file takes at a time; None if it takes any.

    Raises:
        ValueError: the runtime refuses the file.
    """
    details = _interpreter(tflite, "builtin", 1).get_input_details()
    sizes = {int(detail["shape_signature"][0]) for detail in details if len(detail["shape_signature"])}
    return None if not sizes or -1 in sizes else max(sizes)


def delegated_operators(tflite: bytes) -> list[bool]:
    """For each operator of the file's first subgraph, in its order: does XNNPACK take it?

    The runtime keeps the operators of the file and appends one node per partition that it handed over. Such
    a node names the tensors it reads and writes, and everything computed in between belongs to it. An
    operator whose result nobody reads counts as not taken.

    Raises:
        ValueError: the runtime refuses the file.
    """
    nodes, partitions = _nodes_and_partitions(tflite)
    producers = {tensor: index for index, node in enumerate(nodes) for tensor in node["outputs"]}
    taken = [False] * len(nodes)
    for partition in partitions:
        given = set(partition["inputs"])
        wanted = [tensor for tensor in partition["outputs"] if tensor not in given]
        while wanted:
            producer = producers.get(wanted.pop())
            if producer is None or taken[producer]:
                continue
            taken[producer] = True
            wanted += [tensor for tensor in nodes[producer]["inputs"] if tensor not in given]
    return taken


def delegate_partitions(tflite: bytes) -> int:
    """Number of connected parts of the graph that XNNPACK takes over; one is best.

    Raises:
        ValueError: the runtime refuses the file.
    """
    return len(_nodes_and_partitions(tflite)[1])


def _interpreter(tflite: bytes, kernels: str, threads: int, *, keep: bool = False) -> Interpreter:
    if kernels not in _RESOLVERS:
        raise ValueError(f"got kernels={kernels!r}, expected one of {KERNELS}: name a set of CPU kernels")
    if threads < 1:
        raise ValueError(f"got threads={threads}, expected at least 1: pass the number of threads to use")
    try:
        return Interpreter(
            model_content=bytes(tflite),
            num_threads=threads,
            experimental_op_resolver_type=_RESOLVERS[kernels],
            experimental_preserve_all_tensors=keep,
        )
    except (ValueError, RuntimeError) as error:
        raise _refused(kernels, error) from error


def _allocate(interpreter: Interpreter, kernels: str) -> None:
    try:
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise _refused(kernels, error) from error


def invoke(interpreter: Interpreter, kernels: str) -> None:
    """Runs an interpreter whose inputs are set.

    Raises:
        ValueError: the kernels refuse to.
    """
    try:
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise _refused(kernels, error) from error


def _refused(kernels: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(
        f"got a file that the {kernels} kernels refuse ({reason}), expected a .tflite file that runs: check "
        "the file with tfqil.inspect, or convert the model again"
    )


def _check_input(array: np.ndarray, detail: dict) -> None:
    # The signature holds -1 where the size is open; the batch may differ in files with a fixed batch too.
    expected = [int(size) for size in detail["shape_signature"]]
    if not expected:
        expected = [int(size) for size in detail["shape"]]
    free = [-1, *expected[1:]] if expected else []
    matches = array.ndim == len(free) and all(e in (-1, size) for e, size in zip(free, array.shape, strict=True))
    if not matches:
        shape = tuple("any" if size == -1 else size for size in free)
        raise ValueError(
            f"got shape {array.shape} for input {detail['name']!r}, expected "
            f"({', '.join(map(str, shape))}): pass a batch of inputs of that shape"
        )
    if array.dtype != detail["dtype"]:
        wanted = np.dtype(detail["dtype"]).name
        raise ValueError(
            f"got {array.dtype.name} values for input {detail['name']!r}, expected {wanted}: convert the "
            f"array with astype({wanted!r})"
        )


def _resize_open(interpreter: Interpreter, size: int) -> None:
    """Gives dimensions that the file leaves open a size, the first one 1."""
    for detail in interpreter.get_input_details():
        shape = [size if open_size == -1 else int(open_size) for open_size in detail["shape_signature"]]
        if shape:
            shape[0] = 1
        interpreter.resize_tensor_input(detail["index"], shape)


def _allocated(tflite: bytes, kernels: str, threads: int, *, keep: bool = False) -> Interpreter:
    """An interpreter that is ready for one example, open dimensions of the smallest of some sizes that will do."""

    def allocated_at(size: int) -> Interpreter:
        interpreter = _interpreter(tflite, kernels, threads, keep=keep)
        _resize_open(interpreter, size)
        _allocate(interpreter, kernels)
        return interpreter

    *smaller, last = _OPEN_SIZES
    for size in smaller:
        with contextlib.suppress(ValueError):
            return allocated_at(size)
    return allocated_at(last)


def _set_random_inputs(interpreter: Interpreter, random: np.random.Generator) -> None:
    for detail in interpreter.get_input_details():
        dtype = np.dtype(detail["dtype"])
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            values = random.integers(limits.min, limits.max, detail["shape"], dtype, endpoint=True)
        else:
            values = random.uniform(-1, 1, detail["shape"]).astype(dtype)
        interpreter.set_tensor(detail["index"], values)


def _nodes_and_partitions(tflite: bytes) -> tuple[list[dict], list[dict]]:
    interpreter = _allocated(tflite, "xnnpack", 1)
    # The only view of the execution plan that the Python package offers; public in the C++ API.
    details = interpreter._get_ops_details()
    is_partition = ["DELEGATE" in detail["op_name"].upper() for detail in details]
    nodes = [detail for detail, partition in zip(details, is_partition, strict=True) if not partition]
    return nodes, [detail for detail, partition in zip(details, is_partition, strict=True) if partition]
