"""Paths of files and folders that are written as a whole, or not at all."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator


def require_new_path(path: pathlib.Path) -> None:
    """Raises one sentence unless nothing is at a path yet, in a folder that exists.

    Raises:
        FileExistsError, FileNotFoundError: it is not so.
    """
    if path.exists():
        raise FileExistsError(f"Got the existing path {str(path)!r}, expected a new one: remove it first.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"Got the path {str(path)!r}, expected one in an existing folder: create {str(path.parent)!r} first."
        )


@contextlib.contextmanager
def written_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path beside a new one to write a file or a folder at; it becomes the new one when all went well.

    Nothing is left of it otherwise. Two that write the same path at a time do not meet.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        partial = folder / path.name
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
