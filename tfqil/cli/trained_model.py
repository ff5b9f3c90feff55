"""Reading the file of a trained model for a command."""

from __future__ import annotations

from typing import Any

from tfqil.cli import console

MODEL = "a quantized model that model.save wrote (.keras, .h5 or a SavedModel folder)"
# Keras explains itself at length; the start says what is wrong.
_LONGEST_REASON = 200


def load(path: str) -> Any:
    """The model in a file or folder.

    Raises:
        InputError: there is none, or it does not load.
    """
    console.require_path(path, what=MODEL)
    from tfqil.scheme import load_model  # Loads TensorFlow: only after the file was found to be there.

    try:
        return load_model(path)
    except Exception as error:  # For what is no model, Keras raises anything from KeyError to OSError.
        reason = console.one_sentence(error)
        if len(reason) > _LONGEST_REASON:
            reason = reason[:_LONGEST_REASON] + " ..."
        raise console.InputError(
            f"got {path!r}, which does not load ({reason}), expected {MODEL}: save the model again"
        ) from error
