"""The support matrix as Markdown: the whole of it for docs/support.md, a summary for the README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from support_cell import CONFIGS, STORAGES, Cell

from tfqil.scheme.plan import BY_LAYER, BY_SCHEME

_LEGEND = """\
# Support matrix

Written by `make matrix` (`benchmarks/support.py`): every architecture of `benchmarks/architectures.py` goes the whole
way, quantized, calibrated, trained for two steps, saved, reloaded, converted, inspected and verified. Weights are
random, with the statistics of trained networks; the images have those of natural ones, and those of the verification
were not seen in calibration.

A cell reads `outputs off / median / 99 %, bytes`:

* **outputs off**: output values of the file that differ from `deployable(q_model)`; 0 is bit-exact.
* **median / 99 %**: distance of the file from the trained Keras model, in steps (LSB) of the output's 8-bit grid: half
  and 99 % of the output values are at most that far. `-` where an output is on no grid.
* **bold**: an integer-only file that `convert` gives without being told to, with every convolution and dense kernel in
  an integer type, the trained integers in it, and no output off. Everything else has a note below, with its reason.

The Keras model computes inference as the file's operators do, in integers (`tfqil/scheme/inference.py`), so that the
two are close by design. What quantization itself costs is in the column **to float**: how far the outputs of the
calibrated model are from those of the float model, as a share of their deviation over the images. Random networks
hardly tell one image from another (see spread), so that this share is large in deep ones even at 8/8; how much of it
other 8-bit quantizers share is not measured here. Operator by operator, `tests/export/test_operators.py` compares with
float.

Spread is the deviation of an output over the images, in steps too: distances are to be seen against it. Depth is the
number of kernels on the longest way through the network, size the height and width of the images, seconds the time of
all cells of the row on 2 CPU cores.
"""


def document(cells: Iterable[Cell]) -> str:
    """The whole matrix."""
    cells = list(cells)
    notes = _Notes()
    lines = [
        "| architecture | config | weights | depth | size | "
        + " | ".join(STORAGES)
        + " | to float | spread | seconds |",
        "|---|---|---|---|---|" + "---|" * len(STORAGES) + "---|---|---|",
    ]
    for (architecture, config), row in _grouped(cells).items():
        by_storage = {cell.storage: cell for cell in row}
        known = max(row, key=lambda cell: cell.depth)
        shown = [_cell(by_storage.get(storage), notes) for storage in STORAGES]
        facts = [architecture, config, f"{known.weights:,}", str(known.depth or "-"), str(known.size), *shown]
        facts.append(_from_float(row))
        spread = min((cell.spread_lsb for cell in row if cell.spread_lsb is not None), default=None)
        facts.append("-" if spread is None else f"{spread:.0f}")
        lines.append(f"| {' | '.join(facts)} | {_seconds(row):.0f} |")
    parts = [_LEGEND, "\n".join(lines), _notes_section(notes), _phases_section(cells), _placements_section(cells)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def summary(cells: Iterable[Cell]) -> str:
    """One row per architecture: how far its `int8` file is from Keras, or how many of its files are not supported.

    The last column is how far 8/8 is from float.
    """
    cells = list(cells)
    lines = ["| architecture | " + " | ".join(CONFIGS) + " | 8/8 to float |", "|---|" + "---|" * len(CONFIGS) + "---|"]
    groups = _grouped(cells)
    for architecture in dict.fromkeys(cell.architecture for cell in cells):
        rows = (groups.get((architecture, config), []) for config in CONFIGS)
        eight = groups.get((architecture, "QIL 8/8"), [])
        lines.append(f"| {architecture} | {' | '.join(map(_summarized, rows))} | {_from_float(eight)} |")
    return "\n".join(lines) + "\n"


def _summarized(row: Sequence[Cell]) -> str:
    if not row:
        return "not run"
    unsupported = [cell for cell in row if not cell.is_supported]
    if unsupported:
        return f"{len(unsupported)} of {len(row)} no"
    (shown,) = [cell for cell in row if cell.storage == "int8"] or row[-1:]
    return f"{_steps(shown)} LSB"


def _from_float(row: Sequence[Cell]) -> str:
    distances = [cell.from_float for cell in row if cell.from_float is not None]
    return f"{max(distances):.1%}" if distances else "-"


class _Notes:
    """Reasons, numbered in the order in which they come up."""

    def __init__(self) -> None:
        self._cells: dict[str, list[str]] = {}

    def number(self, reason: str, cell: Cell) -> int:
        self._cells.setdefault(reason, []).append(f"{cell.architecture} {cell.config} {cell.storage}")
        return list(self._cells).index(reason) + 1

    def items(self) -> Iterable[tuple[str, list[str]]]:
        return self._cells.items()


def _cell(cell: Cell | None, notes: _Notes) -> str:
    if cell is None:
        return "not run"
    marks = ", ".join(str(notes.number(reason, cell)) for reason in reasons(cell))
    mark = f" [{marks}]" if marks else ""
    if cell.failed_in:
        return f"no{mark}"
    text = f"{cell.differing_from_deployable} / {_steps(cell)}, {cell.bytes:,}"
    return f"**{text}**{mark}" if cell.is_supported else f"{text}{mark}"


def _steps(cell: Cell) -> str:
    if cell.median_lsb is None or cell.high_lsb is None:
        return "-"
    return f"{cell.median_lsb:g} / {cell.high_lsb:.3g}"


def reasons(cell: Cell) -> list[str]:
    """Why a cell is not supported, and what in its file computes in float."""
    found = []
    if cell.failed_in:
        found.append(f"{cell.failed_in}: {cell.reason}")
    if cell.refusal:
        found.append(f"convert refuses: {cell.refusal}")
    if cell.different_weights:
        found.append(f"other weights than the trained ones: {', '.join(cell.different_weights)}")
    if cell.float_kernels:
        found.append(f"kernels in a float type: {', '.join(cell.float_kernels)}")
    if cell.float_operators:
        first = "; ".join(cell.float_operators[:3])
        found.append(f"{len(cell.float_operators)} operators in float: {first}")
    if cell.differing_from_deployable:
        found.append("outputs differ from the deployable model")
    return found


def _notes_section(notes: _Notes) -> str:
    lines = ["## Notes", ""]
    for number, (reason, where) in enumerate(notes.items(), start=1):
        lines.append(f"{number}. {reason.replace('|', '/')} ({', '.join(where)})")
    return "\n".join(lines) if len(lines) > 2 else ""


def _phases_section(cells: Sequence[Cell]) -> str:
    """Seconds of each step, per architecture and over its cells."""
    totals: dict[str, dict[str, float]] = {}
    for (architecture, _), row in _grouped(cells).items():
        phases = totals.setdefault(architecture, {})
        for name, seconds in _phases(row).items():
            phases[name] = phases.get(name, 0.0) + seconds
    names = list(dict.fromkeys(name for phases in totals.values() for name in phases))
    lines = ["## Seconds of each step, all cells of an architecture together", ""]
    lines += ["| architecture | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for architecture, phases in totals.items():
        shown = (f"{phases[name]:.0f}" if name in phases else "-" for name in names)
        lines.append(f"| {architecture} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _placements_section(cells: Sequence[Cell]) -> str:
    """Which kernels stay in float or at the edges' 8 bits, and why; configs that agree are one line."""
    configs: dict[tuple[str, str], list[str]] = {}
    for (architecture, config), row in _grouped(cells).items():
        for reason, count in row[0].placements.items():
            if reason.startswith("kernel") and not reason.endswith((BY_SCHEME, BY_LAYER)):
                configs.setdefault((architecture, f"{count} x {reason}"), []).append(config)
    lines = ["## Kernels that do not take the config's width", ""]
    for (architecture, what), where in configs.items():
        only = "" if len(where) == sum(name == architecture for name, _ in _grouped(cells)) else f", {', '.join(where)}"
        lines.append(f"* {architecture}{only}: {what}")
    return "\n".join(lines) if len(lines) > 2 else ""


def _grouped(cells: Iterable[Cell]) -> dict[tuple[str, str], list[Cell]]:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.architecture, cell.config), []).append(cell)
    return groups


def _phases(row: Sequence[Cell]) -> dict[str, float]:
    """Seconds of the steps of a row: the cells share those before the conversion."""
    shared = {"build", "quantize", "calibrate", "compare with float", "train", "save and reload"}
    phases: dict[str, float] = {}
    for cell in row:
        for name, seconds in cell.seconds.items():
            phases[name] = max(phases.get(name, 0.0), seconds) if name in shared else phases.get(name, 0.0) + seconds
    return phases


def _seconds(row: Sequence[Cell]) -> float:
    return sum(_phases(row).values())
