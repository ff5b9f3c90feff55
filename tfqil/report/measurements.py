"""Numbers that take long to measure, kept in a file so that an interrupted measurement goes on."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class Measurements:
    """What has been measured, by name; with a path also in a JSON file, which each new number replaces as a whole.

    Args:
        path: of the file, which need not exist; None for none.
        settings: all that the numbers follow from, as plain values.

    Raises:
        ValueError: the path cannot be written, or holds something else, or numbers of other settings.
    """

    def __init__(self, path: pathlib.Path | None, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings = json.loads(json.dumps(settings))
        self._numbers: dict[str, float] = {}
        if path is not None:
            if path.exists():
                self._numbers = self._read(path)
            else:
                self._write()

    def value(self, name: str, measure: Callable[[], float]) -> float:
        """The number of a name, measured unless it is there."""
        if name not in self._numbers:
            self._numbers[name] = measure()
            self._write()
        return self._numbers[name]

    def _read(self, path: pathlib.Path) -> dict[str, float]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            settings, numbers = content["settings"], dict(content["measured"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"Got resume={str(path)!r}, which holds no measurements, expected a file that an interrupted call "
                "wrote: choose another path."
            ) from None
        differing = [name for name in self._settings if settings.get(name) != self._settings[name]]
        if differing:
            raise ValueError(
                f"Got resume={str(path)!r}, which was measured with another {differing[0]}, expected the same "
                "arguments: choose another path."
            )
        return numbers

    def _write(self) -> None:
        if self._path is None:
            return
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        content = json.dumps({"settings": self._settings, "measured": self._numbers}, indent=2)
        try:
            temporary.write_text(f"{content}\n", encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            raise ValueError(
                f"Got resume={str(self._path)!r} ({error.strerror}), expected a path that can be written."
            ) from error


def fingerprint(model: Any) -> str:
    """A digest of the layers of a model, their settings and weights."""
    digest = hashlib.sha256()
    for layer in model.layers:
        settings = json.dumps(layer.get_config(), sort_keys=True, default=lambda value: type(value).__name__)
        digest.update(f"{type(layer).__name__} {settings}".encode())
        for array in layer.get_weights():
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
