"""Loading quantized models."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from tfqil import _host


def load_model(path: str | os.PathLike[str], **arguments: Any) -> Any:
    """Loads a model that `q_model.save` wrote: `.keras`, `.h5` or a SavedModel folder.

    The same as `tf_keras.models.load_model`, which needs nothing else either once tfqil is imported.

    Args:
        path: the file or folder.
        **arguments: of `tf_keras.models.load_model`.

    Raises:
        FileNotFoundError: there is nothing at `path`.
    """
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f"Got the path {str(path)!r}, where nothing is; expected what model.save wrote.")
    return _host.keras.models.load_model(path, **arguments)
