"""What the commands share: reading their input files, and writing tables, JSON and errors to the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import rich.console
import rich.table
import rich.text

# A pipe has no width: wide enough that no name of a tensor is cut before `grep` sees it.
_WIDTH_OF_A_PIPE = 240


# Who runs an operator, as reports call it and as tables say it.
RUN_BY = {"xnnpack": "XNNPACK", "builtin": "built-in kernel", "unknown": "unknown"}


class InputError(Exception):
    """One sentence about an input: what was got, what was expected, what to do."""


def read_file(path: str, *, what: str) -> bytes:
    """The content of a file.

    Args:
        path: as given by the user.
        what: what the file should be, as in "a .tflite file".

    Raises:
        InputError: there is no such file, or it cannot be read, or it is empty.
    """
    require_path(path, what=what)
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"got {path!r} ({reason}), expected {what}: give a file that can be read") from error
    if not content:
        raise InputError(f"got the empty file {path!r}, expected {what}: write the file again")
    return content


def require_path(path: str, *, what: str) -> None:
    """Raises one sentence if nothing is at a path."""
    if not pathlib.Path(path).exists():
        raise InputError(f"got {path!r}, which does not exist, expected {what}: check the path")


def one_sentence(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def native_logs_hidden() -> Iterator[None]:
    """Keeps off the error stream what TensorFlow and LiteRT log about devices and delegates.

    They write to the file descriptor, TensorFlow before any of it can be told not to, and bury the one
    sentence that matters. Nothing is hidden where TF_CPP_MIN_LOG_LEVEL is set, and an exception that is no
    `InputError` brings the log back.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    sys.stderr.flush()
    error_stream = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except Exception as error:
            if not isinstance(error, InputError):
                log.seek(0)
                os.write(error_stream, log.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(error_stream, 2)
            os.close(error_stream)


def print_error(command: str, message: str) -> None:
    """Writes one line to the error stream."""
    print(f"{command}: {message}", file=sys.stderr)  # noqa: T201  (the program's own output)


def print_json(content: Mapping[str, Any]) -> None:
    """Writes one JSON object."""
    print(json.dumps(content, indent=2, default=_plain))  # noqa: T201


def print_blocks(*blocks: rich.table.Table | str) -> None:
    """Writes tables and lines of text, each as wide as it needs to be where the output is not a terminal."""
    console = rich.console.Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE)
    for block in blocks:
        # As Text: names of tensors may hold brackets, which rich would read as markup.
        console.print(rich.text.Text(block) if isinstance(block, str) else block)


def _plain(value: Any) -> Any:
    """Numpy scalars and arrays as JSON knows them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"got a {type(value).__name__} in a report, expected what JSON can hold: use plain numbers")
