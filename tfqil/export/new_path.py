"""Paths of files and folders that are written as a whole, or not at all."""

from __future__ import annotations

import pathlib


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
