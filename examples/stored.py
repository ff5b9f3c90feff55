"""Generated data sets on disk: drawn once, checked whenever they are read."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MANIFEST = "manifest.json"
DEFAULT_FOLDER = pathlib.Path.home() / ".cache" / "tfqil"

Arrays = Mapping[str, np.ndarray]


def stored(folder: str | os.PathLike[str], settings: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """The arrays of a generated data set, from its folder, or made and written there.

    Args:
        folder: where the set is, one `.npy` file per array and a manifest with the SHA-256 of each.
        settings: what the set follows from, as JSON values; a set of others is not read.
        make: makes the arrays.

    Returns:
        Name -> array, mapped from the files and read-only.

    Raises:
        ValueError: there is another set, an unfinished one or a damaged one; nothing is changed.
    """
    path = pathlib.Path(folder)
    if not path.exists() or not any(path.iterdir()):
        _write(path, settings, make())
    manifest = _manifest(path)
    if manifest["settings"] != json.loads(json.dumps(settings)):
        raise ValueError(
            f"Got the data set of {path}, whose settings are {manifest['settings']}, expected {dict(settings)}: choose "
            "another folder, or delete this one to draw the set again."
        )
    for name, digest in manifest["sha256"].items():
        if not (path / name).is_file() or _digest(path / name) != digest:
            raise ValueError(
                f"Got {path / name}, which is missing or damaged, expected the file that was written: delete the "
                "folder, and the set is drawn again."
            )
    return {pathlib.Path(name).stem: np.load(path / name, mmap_mode="r") for name in manifest["sha256"]}


def _write(path: pathlib.Path, settings: Mapping[str, Any], arrays: Arrays) -> None:
    """Writes a set to another folder and renames that, so that there is never half a set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        unfinished = pathlib.Path(temporary, path.name)
        unfinished.mkdir()
        for name, array in arrays.items():
            np.save(unfinished / f"{name}.npy", array)
        digests = {file.name: _digest(file) for file in sorted(unfinished.iterdir())}
        text = json.dumps({"settings": dict(settings), "sha256": digests}, indent=2)
        (unfinished / MANIFEST).write_text(text + "\n")
        try:
            unfinished.rename(path)
        except OSError:
            if not (path / MANIFEST).is_file():  # Else another process has drawn the set meanwhile.
                raise


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        settings, digests = manifest["settings"], manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Got the folder {path}, which has no readable {MANIFEST}, expected a generated data set: choose another "
            "folder, or delete this one to draw the set again."
        ) from error
    return {"settings": settings, "sha256": digests}


def _digest(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:  # Not `hashlib.file_digest`, which Python 3.10 does not have.
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
