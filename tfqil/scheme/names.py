"""Names for layers that a model did not have."""

from __future__ import annotations

from collections.abc import Iterable

from tfqil import _host


class Names:
    """Makes names that no layer of a model has.

    Args:
        taken: the names that there are.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)

    def fresh(self, name: str) -> str:
        """The name, made a scope of TensorFlow; with a number behind it if there is such a layer."""
        base = unique = _host.scope_name(name)
        number = 1
        while unique in self._taken:
            number += 1
            unique = f"{base}_{number}"
        self._taken.add(unique)
        return unique
