"""Reads what a summary writer has written."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf


def events(folder: pathlib.Path) -> list[tuple[str, int, str, np.ndarray]]:
    """Tag, step, plugin and value of everything in the event files of a folder, the oldest file first."""
    return [
        (value.tag, event.step, value.metadata.plugin_data.plugin_name, tf.make_ndarray(value.tensor))
        for path in sorted(folder.glob("events.*"), key=_number)
        for record in tf.data.TFRecordDataset([str(path)])
        for event in [tf.compat.v1.Event.FromString(record.numpy())]
        for value in event.summary.value
    ]


def scalars(folder: pathlib.Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value."""
    return _of(folder, "scalars", float)


def histograms(folder: pathlib.Path) -> dict[str, dict[int, np.ndarray]]:
    """Tag -> step -> buckets: left end, right end, count."""
    return _of(folder, "histograms", np.asarray)


def _of(folder: pathlib.Path, plugin: str, convert: Any) -> dict[str, dict[int, Any]]:
    found: dict[str, dict[int, Any]] = {}
    for tag, step, name, value in events(folder):
        if name == plugin:
            assert step not in found.setdefault(tag, {}), f"{tag} is written twice at step {step}"
            found[tag][step] = convert(value)
    return found


def _number(path: pathlib.Path) -> int:
    """The place of a file among those that a process has written."""
    return int(path.name.split(".")[-2])
