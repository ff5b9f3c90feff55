"""The O(N) solver of LBW weights: its time, beside the ternary formula that sorts, and its error beside the paper's.

    python benchmarks/projection.py [--repeats=15] [--kernels=1000] [--output=benchmarks/output/projection.json]

Three tables: the time per weight for growing tensors, with and without XLA; the same problem solved by sorting, both
in turn in one run; and the squared error of the least-squares optimum as a share of that of the threshold scheme with
mu = 0.75. All times are medians, on all threads of the machine.
"""

from __future__ import annotations

import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import rich.console
import rich.table
import tensorflow as tf
from absl import app, flags

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import runs

from tfqil.numerics import lbw

_SIZES = flags.DEFINE_list("sizes", ["100000", "1000000", "10000000"], "Numbers of weights.")
_BITS = flags.DEFINE_list("bits", ["2", "4", "6"], "Widths that are timed.")
_TERNARY_SIZE = flags.DEFINE_integer("ternary_size", 2_400_000, "Weights of the comparison with sorting.")
_KERNELS = flags.DEFINE_integer("kernels", 1000, "Random kernels per width, of 5 shapes.", lower_bound=5)
_REPEATS = flags.DEFINE_integer("repeats", 15, "Timed rounds.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

_MU = 0.75
_SHAPES = ((3, 3, 16, 16), (1, 1, 64, 32), (5, 5, 3, 8), (128, 10), (3, 3, 32, 1))
# Both errors are sums of up to 2,304 terms in float64.
_ERROR_TOLERANCE = 1e-12

Projection = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
Key = TypeVar("Key")


def main(_: list[str]) -> None:
    tf.get_logger().setLevel("ERROR")  # It warns of retracing, but each size has a function of its own here.
    results = {"growth": growth(), "ternary": ternary(), "errors": errors()}
    console = rich.console.Console()
    for name, rows in results.items():
        console.print(table(_TITLES[name], rows))
    if _OUTPUT.value:
        runs.write_json(pathlib.Path(_OUTPUT.value), results)


def growth() -> list[dict[str, object]]:
    """One record per width and size."""
    ways = {"graph": False, "XLA": True}
    sizes = [int(size) for size in _SIZES.value]
    records = []
    for bits in map(int, _BITS.value):
        seconds = median_seconds(
            {
                (size, way): (solver(bits, jit_compile=jit), normal_weights(size))
                for size in sizes
                for way, jit in ways.items()
            }
        )
        for size in sizes:
            record: dict[str, object] = {"bits": bits, "weights": size}
            for way in ways:
                record[f"{way} ms"] = 1e3 * seconds[size, way]
                record[f"{way} ns/weight"] = 1e9 * seconds[size, way] / size
            records.append(record)
    return records


def ternary() -> list[dict[str, object]]:
    """One record per way of compiling: the solver and sorting at 2 bits."""
    weights = normal_weights(_TERNARY_SIZE.value)
    sorting = {way: tf.function(ternary_by_sorting, jit_compile=jit) for way, jit in (("graph", False), ("XLA", True))}
    solvers = {"graph": solver(2), "XLA": solver(2, jit_compile=True)}
    records = []
    for way in sorting:
        found = {
            name: squared_error(weights, *project(weights))
            for name, project in (("O(N)", solvers[way]), ("sorting", sorting[way]))
        }
        assert found["O(N)"] <= found["sorting"] * (1 + _ERROR_TOLERANCE), f"the solver missed the optimum: {found}"
        seconds = median_seconds({"O(N)": (solvers[way], weights), "sorting": (sorting[way], weights)})
        records.append(
            {
                "run as": way,
                "weights": _TERNARY_SIZE.value,
                "O(N) ms": 1e3 * seconds["O(N)"],
                "sorting ms": 1e3 * seconds["sorting"],
                "times faster": seconds["sorting"] / seconds["O(N)"],
            }
        )
    return records


def errors() -> list[dict[str, object]]:
    """One record per width: the error of the optimum as a share of that of the threshold scheme."""
    records = []
    for bits in range(3, 7):
        shares = []
        for shape in _SHAPES:
            best, paper = solver(bits), solver(bits, mu=_MU)
            for kernel in random_kernels(shape, _KERNELS.value // len(_SHAPES)):
                scheme = squared_error(kernel, *paper(kernel))
                shares.append(squared_error(kernel, *best(kernel)) / scheme)
        assert max(shares) <= 1 + _ERROR_TOLERANCE, f"{bits} bits: {max(shares)} times the error of the scheme"
        records.append(
            {
                "bits": bits,
                "kernels": len(shares),
                "mean share": statistics.mean(shares),
                "least": min(shares),
                "most": max(shares),
                "strictly better": sum(share < 1 - _ERROR_TOLERANCE for share in shares) / len(shares),
            }
        )
    return records


def solver(bits: int, *, mu: float | None = None, jit_compile: bool = False) -> Projection:
    return tf.function(lambda weights: lbw.project(weights, 0, bits=bits, mu=mu), jit_compile=jit_compile)


def ternary_by_sorting(weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The codes in {-1, 0, 1} and the step 2^s of least squared error by LBW-Net's exact formula, in O(N log N).

    Forward: S_k the sum of the k largest magnitudes, s(k) = floor(log2(4 S_k / (3 k))); the k that minimises
    4^s(k) k - 2^(s(k)+1) S_k keeps the k largest magnitudes.
    """
    magnitude = tf.abs(weights)
    descending = tf.sort(tf.reshape(magnitude, [-1]), direction="DESCENDING")
    sums = tf.cumsum(tf.cast(descending, tf.float64))  # A float32 sum of a million terms cannot tell neighbours apart.
    counts = tf.cast(tf.range(1, tf.size(descending) + 1), tf.float64)
    exponent_bits = tf.bitwise.bitwise_and(tf.bitcast(4.0 * sums / (3.0 * counts), tf.int64), 0x7FF0_0000_0000_0000)
    steps = tf.bitcast(exponent_bits, tf.float64)  # 2^floor(log2 .), exactly.
    best = tf.argmin(steps * steps * counts - 2.0 * steps * sums)
    codes = tf.where(magnitude >= tf.gather(descending, best), tf.sign(weights), tf.zeros_like(weights))
    return codes, tf.cast(tf.gather(steps, best), weights.dtype)


def median_seconds(runs: dict[Key, tuple[Projection, tf.Tensor]]) -> dict[Key, float]:
    """Median times of projections that run in turn."""
    seconds: dict[Key, list[float]] = {key: [] for key in runs}
    for project, weights in runs.values():
        project(weights)  # Compiles.
    for _ in range(_REPEATS.value):
        for key, (project, weights) in runs.items():
            start = time.perf_counter()
            codes, step = project(weights)
            codes[:1].numpy(), step.numpy()  # Waits for both.
            seconds[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in seconds.items()}


@functools.cache
def normal_weights(size: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(size).normal(0, 0.05, size).astype(np.float32))


def random_kernels(shape: tuple[int, ...], count: int) -> Iterator[tf.Tensor]:
    """Normal and Laplace kernels at random scales."""
    random = np.random.default_rng(0)
    for index in range(count):
        draw = random.normal if index % 2 else random.laplace
        yield tf.constant((draw(size=shape) * 2.0 ** random.uniform(-8, 2)).astype(np.float32))


def squared_error(weights: tf.Tensor, codes: tf.Tensor, step: tf.Tensor) -> float:
    weights, codes, step = (value.numpy().astype(np.float64) for value in (weights, codes, step))
    return float(((weights - codes * step) ** 2).sum())


_TITLES = {
    "growth": "Time of the O(N) solver",
    "ternary": "Ternary weights: the O(N) solver and the formula that sorts",
    "errors": f"Squared error of the optimum as a share of the threshold scheme's with mu = {_MU}",
}


def table(title: str, rows: list[dict[str, object]]) -> rich.table.Table:
    result = rich.table.Table(title=title)
    for heading in rows[0]:
        result.add_column(heading, justify="right")
    previous = rows[0].get("bits")
    for row in rows:
        if title == _TITLES["growth"] and row["bits"] != previous:
            result.add_section()
        previous = row.get("bits")
        result.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    return result


if __name__ == "__main__":
    app.run(main)
