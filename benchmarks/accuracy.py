"""Accuracy of every method and of its peers on the same work: one float network per seed, same optimizer and epochs.

    python benchmarks/accuracy.py [--seeds=0,1,2] [--cells=qil,lsq] [--markdown=accuracy.md --plot=accuracy.png]

VGG-11 on glyphs (`examples/glyphs.py`). Cells that the records of a seed hold already are not trained again, so that a
run that was stopped goes on; within ours, with the epoch where it stopped. A seed takes an hour of 2 cores. The rows of
QKeras and larq need `pip install --no-deps -r benchmarks/requirements-peers.txt`, and are left out without.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Any

import accuracy_cells
import accuracy_table
from absl import app, flags, logging

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import classifiers
import data as image_data
import protocol
import results
import runs

_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of weights and batches.")
_CELLS = flags.DEFINE_list("cells", [], "Parts of the names of cells to train; all without.")
_RECORDS = flags.DEFINE_string("records", "benchmarks/output/accuracy", "Folder of the records, a JSON file per seed.")
_DIRECTORY = flags.DEFINE_string("directory", "benchmarks/output/accuracy", "Folder of models and checkpoints.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the generated set is stored.")
_TRAIN = flags.DEFINE_bool("train", True, "Train the cells that are missing; without, the table has what there is.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "Markdown file of the table, such as docs/accuracy.md.")
_PLOT = flags.DEFINE_string("plot", None, "Picture of the table, such as docs/accuracy.png.")
_WIDTH = flags.DEFINE_float("width", 0.25, "Share of the network's channels.", lower_bound=0.01)
_FLOAT_EPOCHS = flags.DEFINE_integer("float_epochs", 30, "Epochs of the float network.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of a stage of progressive finetuning.", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", None, "Training images to use; all without.", lower_bound=1)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    records_folder = pathlib.Path(_RECORDS.value)
    if not all(seed.isdecimal() for seed in _SEEDS.value):
        raise SystemExit(f"Got --seeds={','.join(_SEEDS.value)}, expected numbers such as 0,1,2.")
    try:
        wanted = _wanted()
        settings = {flag.name: flag.value for flag in (_WIDTH, _FLOAT_EPOCHS, _EPOCHS, _EXAMPLES)}
        all_records = [_measured(int(seed), wanted, settings, records_folder) for seed in _SEEDS.value]
    except ValueError as error:
        raise SystemExit(str(error)) from None
    rows = accuracy_table.rows(all_records)
    results.console().print(accuracy_table.table(rows))
    if _MARKDOWN.value:
        pathlib.Path(_MARKDOWN.value).write_text(accuracy_table.document(rows, settings), encoding="utf-8")
    if _PLOT.value:
        accuracy_table.plot(rows, pathlib.Path(_PLOT.value))


def _wanted() -> list[accuracy_cells.Cell]:
    names = [cell.name for cell in accuracy_cells.CELLS]
    for part in _CELLS.value:
        if not any(part in name for name in names):
            raise ValueError(f"Got --cells={part}, expected a part of one of {', '.join(names)}.")
    return [
        cell for cell in accuracy_cells.CELLS if not _CELLS.value or any(part in cell.name for part in _CELLS.value)
    ]


def _measured(
    number: int, wanted: list[accuracy_cells.Cell], settings: dict[str, Any], folder: pathlib.Path
) -> dict[str, dict[str, Any]]:
    """The records of a seed by name of cell, after those that are wanted and not there have been trained."""
    path = folder / f"seed{number}.json"
    found = runs.read_json(path) if path.is_file() else {"settings": settings, "records": {}}
    if found["settings"] != settings:
        raise ValueError(
            f"Got the settings {settings} for {path}, which has {found['settings']}, expected the same: choose other "
            "--records, and another --directory."
        )
    records: dict[str, dict[str, Any]] = found["records"]
    if not _TRAIN.value:
        if not records:
            raise ValueError(f"Got no records in {path}, expected some for --notrain: name their folder by --records.")
        return records
    for cell in wanted:
        if cell.missing and cell.name not in records:
            print(f"{cell.name}: left out, {cell.needs} is not installed", flush=True)
    missing = [cell for cell in wanted if cell.name not in records and not cell.missing]
    if missing:
        seed = _seed(number)
        runs.require_same_run(seed.folder, settings)
        float_record = accuracy_cells.float_record(seed)
        for cell in missing:
            records[cell.name] = {**accuracy_cells.measure(cell, seed), "float_accuracy": float_record["file_accuracy"]}
            folder.mkdir(parents=True, exist_ok=True)
            runs.write_json(path, found)
            print(f"seed {number}, {cell.name}: {accuracy_table.result(records[cell.name])}", flush=True)
    return records


def _seed(number: int) -> accuracy_cells.Seed:
    settings = dataclasses.replace(protocol.SETTINGS["glyphs"], float_epochs=_FLOAT_EPOCHS.value, epochs=_EPOCHS.value)
    arrays = image_data.glyph_arrays(_DATA_DIR.value)
    data = image_data.glyph_set(arrays, batch=settings.batch, seed=number, examples=_EXAMPLES.value)
    if data.train_examples < settings.batch:
        raise ValueError(f"Got --examples={_EXAMPLES.value}, expected a batch of {settings.batch} at least.")
    return accuracy_cells.Seed(
        seed=number,
        folder=pathlib.Path(_DIRECTORY.value, f"seed{number}"),
        data=data,
        network=lambda: classifiers.build("vgg11", data.shape, data.classes, width=_WIDTH.value),
        settings=settings,
    )


if __name__ == "__main__":
    app.run(main)
