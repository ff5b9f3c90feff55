"""Names and order of a file's inputs and outputs: the converter sorts by name, users expect the model's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfqil import _host
from tfqil.export import flatbuffer
from tfqil.scheme.output_names import noted_output_names


def signature_names(names: Sequence[str]) -> list[str]:
    """Names for the inputs or outputs of a model in a signature: the model's own, unless they are no scopes.

    The converter writes a file without a signature if one of the names has a space or begins with an underscore.
    """
    taken: list[str] = []
    for name in names:
        base = unique = _host.scope_name(name).lstrip("_") or "tensor"
        number = 1
        while unique in taken or (unique != name and unique in names):
            number += 1
            unique = f"{base}_{number}"
        taken.append(unique)
    return taken


def output_names(q_model: Any, others: Sequence[str]) -> list[str]:
    """What the outputs of a quantized model are called in the float model; `others` are for what it does not know.

    It knows nothing if an earlier version has quantized it.
    """
    noted = noted_output_names(q_model)
    return [noted.get(own, other) for own, other in zip(q_model.output_names, others, strict=True)]


def note_names_in_file(plain: Any, names: Sequence[str]) -> None:
    """Notes in a deployable model what its outputs are called in its file."""
    _host.set_note(plain, "output_names", tuple(names))


def names_in_file(plain: Any) -> list[str]:
    """What the outputs of a deployable model are called in its file."""
    return list(_host.note(plain, "output_names", plain.output_names))


def places_of(names: Sequence[str], in_file: Sequence[str]) -> list[int]:
    """Where a model's inputs or outputs stand in a file: by their names, or in order where the file has others.

    Args:
        names: in the model's order, as `signature_names` makes them.
        in_file: in the order of the file.
    """
    if len(names) == len(in_file) and set(names) == set(in_file):
        return [in_file.index(name) for name in names]
    return list(range(len(in_file)))


def order_like(tflite: bytes, input_names: Sequence[str], output_names: Sequence[str]) -> bytes:
    """Puts the inputs and outputs of a file in the order of a Keras model, by the names of its signature.

    Args:
        tflite: what TFLiteConverter wrote from the model.
        input_names: names of the model's inputs, in its order.
        output_names: names of the model's outputs, in its order.

    Returns:
        The file with the reordered main graph; the file itself where its signature names them otherwise.
    """
    model = flatbuffer.load(tflite)
    signatures = model.signatureDefs or []
    if len(signatures) != 1:
        return tflite
    graph = model.subgraphs[signatures[0].subgraphIndex]
    for names, entries, attribute in (
        (input_names, signatures[0].inputs, "inputs"),
        (output_names, signatures[0].outputs, "outputs"),
    ):
        indices = {entry.name.decode(): int(entry.tensorIndex) for entry in entries}
        if set(indices) == set(names) and len(indices) == len(flatbuffer.items(getattr(graph, attribute))):
            setattr(graph, attribute, np.array([indices[name] for name in names], np.int32))
    return flatbuffer.serialize(model)
