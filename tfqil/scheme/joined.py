"""Slices of concatenations: they are the tensors that were joined.

Detectors join what belongs to one place, boxes and classes, and take it apart again at the end. Joined tensors share a
grid; where the slices follow the joints, the detour over one tensor, and with it the shared grid, is needless.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tfqil import _host
from tfqil.scheme.kinds import activation_name
from tfqil.scheme.names import Names

layers = _host.keras.layers

# Makes the tensor that a part is, when it is asked for.
Part = Callable[[], Any]


class JoinedTensors:
    """Which tensors of a graph under construction are concatenations along their last axis, and of what."""

    def __init__(self, names: Names) -> None:
        self._names = names
        # By the id of a tensor: the sizes of its parts, and what makes them.
        self._parts: dict[int, tuple[tuple[int, ...], list[Part]]] = {}

    def note(self, layer: Any, tensors: Sequence[Any], outputs: Any) -> None:
        """Follows the parts through a Concatenate, a Reshape that keeps the last axis, and what does nothing."""
        if isinstance(layer, layers.Concatenate):
            self._note_concatenation(layer, tensors, outputs)
            return
        sizes, parts = self._parts.get(id(tensors[0]), ((), []))
        keeps_last_axis = parts and outputs.shape[-1] == tensors[0].shape[-1]
        if keeps_last_axis and isinstance(layer, layers.Activation) and activation_name(layer) == "linear":
            self._parts[id(outputs)] = sizes, parts
        elif keeps_last_axis and type(layer) is layers.Reshape:
            self._parts[id(outputs)] = (
                sizes,
                [
                    functools.cache(functools.partial(self._reshaped, layer, number, size, part))
                    for number, (size, part) in enumerate(zip(sizes, parts, strict=True))
                ],
            )

    def sliced(self, tensor: Any, arguments: Sequence[Any]) -> Any:
        """The part that a slice of a tensor is; None if it is no part.

        Args:
            tensor: what is sliced.
            arguments: an index for each axis, as Keras records them: {"start", "stop", "step"}, or an Ellipsis.
        """
        if id(tensor) not in self._parts or not isinstance(arguments, (list, tuple)):
            return None
        bounds = _last_axis_bounds(arguments, len(tensor.shape), tensor.shape[-1])
        if bounds is None:
            return None
        start = 0
        for size, part in zip(*self._parts[id(tensor)], strict=True):
            if (start, start + size) == bounds:
                return part()
            start += size
        return None

    def _note_concatenation(self, layer: Any, tensors: Sequence[Any], outputs: Any) -> None:
        """Along the last axis it has parts; along another one the parts of its inputs, if they have equal joints."""
        if layer.axis in (-1, len(outputs.shape) - 1):
            sizes = tuple(tensor.shape[-1] for tensor in tensors)
            self._parts[id(outputs)] = sizes, [functools.partial(_itself, tensor) for tensor in tensors]
            return
        joints = {self._parts[id(tensor)][0] if id(tensor) in self._parts else () for tensor in tensors}
        (sizes, *others) = joints
        if sizes and not others:
            rows = zip(*(self._parts[id(tensor)][1] for tensor in tensors), strict=True)
            self._parts[id(outputs)] = (
                sizes,
                [
                    functools.cache(functools.partial(self._concatenated, layer, number, row))
                    for number, row in enumerate(rows)
                ],
            )

    def _reshaped(self, layer: Any, number: int, size: int, part: Part) -> Any:
        name = self._names.fresh(f"{layer.name}_part_{number}")
        return layers.Reshape((*layer.target_shape[:-1], size), name=name)(part())

    def _concatenated(self, layer: Any, number: int, parts: Sequence[Part]) -> Any:
        name = self._names.fresh(f"{layer.name}_part_{number}")
        return layers.Concatenate(layer.axis, name=name)([part() for part in parts])


def _itself(tensor: Any) -> Any:
    return tensor


def _last_axis_bounds(arguments: Sequence[Any], rank: int, channels: int) -> tuple[int, int] | None:
    """Start and stop along the last axis of a slice that keeps all others; None for other slices."""
    indices = list(arguments)
    if not all(index is Ellipsis or isinstance(index, dict) for index in indices):
        return None
    if Ellipsis in indices:
        indices[indices.index(Ellipsis) : indices.index(Ellipsis) + 1] = [{}] * (rank - len(indices) + 1)
    if len(indices) != rank:
        return None
    if any(index.get(key) is not None for index in indices[:-1] for key in ("start", "stop", "step")):
        return None
    last = indices[-1]
    if last.get("step") not in (None, 1):
        return None
    start, stop, _ = slice(last.get("start"), last.get("stop")).indices(channels)
    return start, stop
