"""Drops what a .tflite file holds but nobody refers to: tensors, buffers and operator codes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfqil.export import flatbuffer


def compact(model: Any) -> None:
    """Removes unused tensors, buffers and operator codes in place.

    Every reference to the others is renumbered. Tensors without values all name buffer 0 afterwards, which
    the format keeps empty for them.
    """
    for number, graph in enumerate(model.subgraphs):
        _drop_tensors(graph, [entry for entry in model.signatureDefs or [] if entry.subgraphIndex == number])
    _drop_operator_codes(model)
    _drop_buffers(model)


def _drop_tensors(graph: Any, signatures: list[Any]) -> None:
    maps = [entry for signature in signatures for entry in [*(signature.inputs or []), *(signature.outputs or [])]]
    used: set[int] = {int(entry.tensorIndex) for entry in maps}
    vectors: list[tuple[Any, tuple[str, ...]]] = [(graph, ("inputs", "outputs"))]
    vectors += [(node, ("inputs", "outputs", "intermediates")) for node in graph.operators or []]
    for owner, names in vectors:
        for name in names:
            used |= {int(index) for index in flatbuffer.items(getattr(owner, name)) if index >= 0}
    new = _numbering(used)
    for owner, names in vectors:
        for name in names:
            indices = getattr(owner, name)
            if indices is not None:
                setattr(owner, name, np.array([new.get(int(index), -1) for index in indices], np.int32))
    for entry in maps:
        entry.tensorIndex = new[int(entry.tensorIndex)]
    graph.tensors = [graph.tensors[index] for index in sorted(used)]


def _drop_operator_codes(model: Any) -> None:
    nodes = [node for graph in model.subgraphs for node in graph.operators or []]
    used = {int(node.opcodeIndex) for node in nodes}
    new = _numbering(used)
    for node in nodes:
        node.opcodeIndex = new[int(node.opcodeIndex)]
    model.operatorCodes = [model.operatorCodes[index] for index in sorted(used)]


def _drop_buffers(model: Any) -> None:
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    for tensor in tensors:
        if not flatbuffer.is_constant(model, tensor):
            tensor.buffer = 0
    metadata = model.metadata or []
    named = [int(index) for index in flatbuffer.items(model.metadataBuffer)]
    used = {0} | {int(tensor.buffer) for tensor in tensors} | {int(entry.buffer) for entry in metadata} | set(named)
    new = _numbering(used)
    if model.buffers and flatbuffer.size_of(model.buffers[0]):
        raise ValueError(
            "got a file with values in buffer 0, expected that buffer to be empty as the format demands: "
            "convert the model again"
        )
    for owner in [*tensors, *metadata]:
        owner.buffer = new[int(owner.buffer)]
    if named:
        model.metadataBuffer = np.array([new[index] for index in named], np.int32)
    model.buffers = [model.buffers[index] for index in sorted(used)] or [schema.BufferT()]


def _numbering(used: Iterable[int]) -> dict[int, int]:
    return {old: new for new, old in enumerate(sorted(used))}
