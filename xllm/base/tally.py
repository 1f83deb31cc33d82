"""Tally: a Counter that remembers which of its counts have changed, so that whoever shows them need not look at all."""

from __future__ import annotations

from collections import Counter


class Tally(Counter[str]):
    """Counts by name; change them by item assignment and ``del`` only."""

    def __init__(self) -> None:
        super().__init__()
        self._changed: set[str] = set()

    def __setitem__(self, name: str, count: int) -> None:
        self._changed.add(name)
        super().__setitem__(name, count)

    def __delitem__(self, name: object) -> None:
        assert isinstance(name, str)
        self._changed.add(name)
        super().__delitem__(name)

    def take_changed(self) -> set[str]:
        """Names whose count was set since the last call."""
        taken, self._changed = self._changed, set()
        return taken
