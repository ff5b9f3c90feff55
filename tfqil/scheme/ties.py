"""Groups of tensors that must be on one grid, merged as they are found to overlap."""

from __future__ import annotations

from collections.abc import Iterable


class Ties:
    """Disjoint sets of tensor numbers; a set is named by one of its members."""

    def __init__(self) -> None:
        self._members: dict[int, set[int]] = {}
        self._group: dict[int, int] = {}

    def tie(self, tensors: Iterable[int]) -> None:
        """Puts tensors into one group, and with them the groups that they were in."""
        merged: set[int] = set()
        for tensor in tensors:
            merged |= self._members.pop(self._group.get(tensor, -1), {tensor})
        name = min(merged)
        self._members[name] = merged
        self._group.update(dict.fromkeys(merged, name))

    def group(self, tensor: int) -> int | None:
        """The name of a tensor's group; None if it is in none."""
        return self._group.get(tensor)

    def members(self, group: int) -> frozenset[int]:
        """The tensors of a group."""
        return frozenset(self._members[group])
