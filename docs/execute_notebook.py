"""Executes a notebook and writes it with its outputs.

    python docs/execute_notebook.py docs/tutorial.ipynb

The cells run in a temporary folder, in a process of their own, without the settings of the user's IPython. A cell that
fails ends the command, and nothing is written.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile
from typing import Any

import nbclient
import nbformat
from absl import app, flags, logging
from traitlets.config import Config

_OUTPUT = flags.DEFINE_string("output", None, "Path of the executed notebook; by default it replaces the one given.")
_TIMEOUT = flags.DEFINE_integer("timeout", 600, "Seconds that one cell may take.", lower_bound=1)

# What differs from machine to machine has no place in a committed notebook.
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def main(arguments: list[str]) -> None:
    """Executes the notebook that the command line names."""
    if len(arguments) != 2:
        raise app.UsageError(f"Got {len(arguments) - 1} paths, expected one: name the notebook.")
    path = pathlib.Path(arguments[1])
    if not path.is_file():
        sys.exit(f"Got the path {str(path)!r}, expected an existing notebook: check the path.")
    logging.set_verbosity(logging.WARNING)
    executed = execute(nbformat.read(path, as_version=4), _TIMEOUT.value)
    output = pathlib.Path(_OUTPUT.value or path)
    partial = output.with_name(output.name + ".partial")
    nbformat.write(executed, partial)
    partial.replace(output)


def execute(notebook: Any, timeout: int) -> Any:
    """The notebook with the outputs of all its cells.

    Args:
        notebook: of nbformat; it is changed.
        timeout: seconds that one cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
        nbclient.exceptions.CellTimeoutError: a cell takes longer.
    """
    with tempfile.TemporaryDirectory() as private, tempfile.TemporaryDirectory() as folder:
        # Files instead of ports: nobody else can connect, and nothing has to be free.
        manager = {"transport": "ipc", "connection_file": str(pathlib.Path(private) / "kernel.json")}
        client = nbclient.NotebookClient(
            notebook,
            config=Config({"KernelManager": manager}),
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            # What libraries in C++ say of the machine goes to the terminal; warnings of Python go into the notebook.
            extra_arguments=["--IPKernelApp.capture_fd_output=False"],
            resources={"metadata": {"path": folder}},
        )
        client.execute(env={**os.environ, "IPYTHONDIR": private})
    notebook.metadata = nbformat.from_dict(_METADATA)
    nbformat.validate(notebook)
    return notebook


if __name__ == "__main__":
    app.run(main)
