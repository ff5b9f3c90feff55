"""The table and the picture of the accuracy benchmark."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import rich.table

_HEADINGS = ("bits W/A", "package", "method", "epochs", "Keras %", "file %", "to float", "per seed", "integer-only")
# What is not alike in the rows.
_DIFFERENCES = (
    "What differs beside the method: tfqil gives the first and the last layer 8 bits, and its intervals a hundredth of",
    "the learning rate, as QIL's authors do (all of it where they learn alone); TFMOT's n-bit scheme gives all layers",
    "and the input the bits of the row;",
    "QKeras, larq, LSQ and PACT leave the weights of the first and the last layer in float, as their authors do, and",
    "their steps learn as fast as weights. larq's DoReFa clips activations to 0 ... 1. The learning rate was chosen",
    "for QIL, on seed 0. QKeras and larq are not measured at 3/3. The batch normalizations of LBW see 100 batches",
    "again after training (`reestimate_norms`), since its steps may move to the next power of two late.",
)
# Points; the bars of larger losses are cut off, and say how long they are.
_LARGEST_SHOWN_LOSS = -20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A cell over the seeds.

    Attributes:
        records: one per seed that has the cell.
    """

    records: list[dict[str, Any]]

    def __getitem__(self, name: str) -> Any:
        return self.records[0][name]

    @property
    def trained(self) -> list[dict[str, Any]]:
        """The records of those that could be trained."""
        return [record for record in self.records if "keras_accuracy" in record]

    @property
    def gaps(self) -> list[float]:
        """Points above the float network of the same seed: of the file, or of Keras where there is no file."""
        return [
            record.get("file_accuracy", record["keras_accuracy"]) - record["float_accuracy"] for record in self.trained
        ]

    def mean(self, name: str) -> float | None:
        """The mean over the seeds, if all have the value."""
        values = [record[name] for record in self.trained if name in record]
        return statistics.fmean(values) if values and len(values) == len(self.records) else None


def result(record: dict[str, Any]) -> str:
    """A record as a few words."""
    if "reason" in record:
        return str(record["reason"])
    file = f"file {record['file_accuracy']:.2f}" if "file_accuracy" in record else record["no_file"]
    return f"{record['keras_accuracy']:.2f} %, {file}, {record['seconds']:.0f} s"


def rows(all_records: Sequence[dict[str, dict[str, Any]]]) -> list[Row]:
    """The rows, with equal bits together, the widest first and the best of them first."""
    names = dict.fromkeys(name for records in all_records for name in records)
    found = [Row(records=[records[name] for records in all_records if name in records]) for name in names]

    def order(row: Row) -> tuple[list[int], float]:
        weights, activations = map(int, row["bits"].split("/"))
        return [-min(weights, 9), -activations], -statistics.fmean(row.gaps or [-100.0])

    return sorted(found, key=order)


def table(all_rows: Sequence[Row]) -> rich.table.Table:
    """For the terminal."""
    made = rich.table.Table(title="Accuracy on glyphs, VGG-11", caption=_caption(all_rows))
    for heading in _HEADINGS:
        made.add_column(heading, justify="left" if heading in ("package", "method") else "right")
    for row in all_rows:
        made.add_row(*_texts(row))
    return made


def document(all_rows: Sequence[Row], settings: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [
        "# Accuracy",
        "",
        f"What `make accuracy` measured: VGG-11 x {settings['width']:g} on glyphs, {settings['float_epochs']} epochs "
        "in float, then each row from the float network of its seed, with SGD and the same rates, batches and epochs "
        f"({settings['epochs']} for each stage of progressive finetuning; a direct method has as many as the stages up "
        f"to its widths, unless its name says one stage). {_caption(all_rows)}",
        "",
        *_DIFFERENCES,
        "",
        "![Accuracy against the float network](accuracy.png)",
        "",
        "| " + " | ".join(_HEADINGS) + " |",
        "|" + "---|" * len(_HEADINGS),
        *("| " + " | ".join(_texts(row)) + " |" for row in all_rows),
    ]
    reasons = {
        f"{row['package']} {row['method']}": text
        for row in all_rows
        for record in row.records
        if (text := _reason(record))
    }
    return "\n".join([*lines, "", *(f"- {name}: {reason}." for name, reason in sorted(reasons.items())), ""])


def plot(all_rows: Sequence[Row], path: pathlib.Path) -> None:
    """Points above or below float, one panel per widths, a bar per method and a dot per seed."""
    shown = [row for row in all_rows if row.gaps]
    labels = [f"{row['bits']}  {_name(row)}" for row in shown]
    figure = matplotlib.figure.Figure(figsize=(9, 0.28 * len(shown) + 1.2), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:blue" if row["package"] == "tfqil" else "tab:gray" for row in shown]
    places = range(len(shown))
    axes.barh(places, [statistics.fmean(row.gaps) for row in shown], color=colors, alpha=0.6)
    for place, row in zip(places, shown, strict=True):
        axes.plot(row.gaps, [place] * len(row.gaps), "k.", markersize=3)
    for place, (before, row) in enumerate(itertools.pairwise(shown), start=1):
        if before["bits"] != row["bits"]:
            axes.axhline(place - 0.5, color="black", linewidth=0.5)
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("points of accuracy above the float network (bar: mean, dots: seeds; blue: tfqil)")
    gaps = [gap for row in shown for gap in row.gaps]
    axes.set_xlim(max(_LARGEST_SHOWN_LOSS, min(gaps) - 0.5), max(gaps) + 0.5)
    axes.margins(y=0.01)
    for place, row in enumerate(shown):
        if (mean := statistics.fmean(row.gaps)) < _LARGEST_SHOWN_LOSS:
            axes.text(_LARGEST_SHOWN_LOSS + 0.2, place, f"{mean:.1f}", va="center", fontsize=8)
    figure.savefig(path, dpi=120)


def _name(row: Row) -> str:
    return row["method"] if row["package"] == "tfqil" else f"{row['package']} {row['method']}"


def _texts(row: Row) -> list[str]:
    keras_mean, file_mean = row.mean("keras_accuracy"), row.mean("file_accuracy")
    no_file = "no integer file" if row.trained else "-"
    return [
        row["bits"],
        row["package"],
        row["method"],
        str(row["epochs"]),
        "fails" if keras_mean is None else f"{keras_mean:.2f}",
        no_file if file_mean is None else f"{file_mean:.2f}",
        f"{statistics.fmean(row.gaps):+.2f}" if row.gaps else "-",
        " ".join(f"{gap:+.2f}" for gap in row.gaps) or "-",
        "yes" if row.trained and all(record.get("integer_only") for record in row.records) else "no",
    ]


def _caption(all_rows: Sequence[Row]) -> str:
    seeds = max((len(row.records) for row in all_rows), default=0)
    return (
        f"Means over {seeds} seed{'s' if seeds != 1 else ''}; to float: points above the float network of the seed, of "
        "the file, or of Keras where there is none."
    )


def _reason(record: dict[str, Any]) -> str | None:
    """Why a cell has no accuracy, or none of a file; the same at all widths, but for what a refusal quotes."""
    reason = record.get("reason") or record.get("no_file")
    return reason and str(reason).split(", but got")[0]
