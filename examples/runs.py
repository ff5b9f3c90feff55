"""The folder of a run: what it is, whether it may go on, and records that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any


class UnusableError(ValueError):
    """What an earlier run has left is damaged, or of something else."""


@contextlib.contextmanager
def ending_where_unusable() -> Iterator[None]:
    """Ends a script with the sentence of an `UnusableError` instead of a traceback."""
    try:
        yield
    except UnusableError as error:
        raise SystemExit(str(error)) from None


def require_same_run(folder: pathlib.Path, description: dict[str, Any], *, creates: bool = True) -> None:
    """Notes in the folder what is trained there, or compares it with the note.

    Args:
        folder: of the run.
        description: what its results follow from.
        creates: whether there may be no note yet.

    Raises:
        ValueError: another run, or a folder of something else; nothing is changed.
    """
    description = json.loads(json.dumps(description))
    note = folder / "run.json"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Got the file {folder}, expected a folder: choose another --directory.")
    if note.is_file():
        noted = _description(note)
        found = dict(noted)
        stages, wanted = found.get("schedule", []), description.get("schedule", [])
        if stages[: len(wanted)] == wanted[: len(stages)]:
            # Stages that a longer schedule has left are those of that schedule.
            found["schedule"] = description["schedule"] = max(stages, wanted, key=len)
        differing = [name for name in description if found.get(name) != description[name]]
        if differing:
            name = differing[0]
            raise ValueError(
                f"Got --{name}={description[name]} for the run in {folder}, which has {found.get(name)}, expected the "
                "same settings: choose another --directory."
            )
        if description == noted:
            return
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"Got the folder {folder}, which holds no run, expected an empty one: choose another --directory."
        )
    elif not creates:
        raise ValueError(
            f"Got the folder {folder}, where worker 0 has noted no run, expected one that all machines share: choose "
            "another --directory."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(note, description)


def _description(note: pathlib.Path) -> dict[str, Any]:
    try:
        found = read_json(note)
    except UnusableError:
        found = None
    if not isinstance(found, dict):
        # Without it nothing says what the folder holds, so that deleting it would not help.
        raise UnusableError(f"Got {note}, which is damaged, expected what a run wrote: choose another --directory.")
    return found


def read_json(path: pathlib.Path) -> Any:
    """What `write_json` wrote.

    Raises:
        UnusableError: something else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UnusableError(
            f"Got {path}, which is damaged, expected what a run wrote: delete it, and that is trained again."
        ) from None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file as a whole or not at all, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)
