"""The folder of a run: what it is, whether it may go on, and records that are there as a whole or not at all."""

from __future__ import annotations

import json
import pathlib
from typing import Any


def require_same_run(folder: pathlib.Path, description: dict[str, Any]) -> None:
    """Notes in the folder what is trained there, or compares it with the note.

    Raises:
        ValueError: another run, or a folder of something else; nothing is changed.
    """
    description = json.loads(json.dumps(description))
    note = folder / "run.json"
    if note.is_file():
        try:
            found = json.loads(note.read_text())
            stages = found["schedule"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"Got {note}, which is damaged, expected what a run wrote: choose another --directory."
            ) from None
        wanted = description["schedule"]
        if stages[: len(wanted)] == wanted[: len(stages)]:
            found["schedule"] = wanted
        differing = [name for name in description if found.get(name) != description[name]]
        if differing:
            name = differing[0]
            raise ValueError(
                f"Got --{name}={description[name]} for the run in {folder}, which has {found.get(name)}, expected the "
                "same settings: choose another --directory."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"Got the folder {folder}, which holds no run, expected an empty one: choose another --directory."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(note, description)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file as a whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)
