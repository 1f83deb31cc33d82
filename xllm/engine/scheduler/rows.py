"""RowTable: which persistent row of the body belongs to whom.

A row number is free for reuse at once: the next Batch frees rows before it introduces new ones, and steps run in order.
"""

from __future__ import annotations

from xllm.types.ids import RowId


class RowTable:
    """A stack of free row numbers, and the ones to be freed by the next Batch."""

    __slots__ = ("_free", "_to_free", "_total")

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = list(range(total - 1, -1, -1))
        self._to_free: list[RowId] = []

    @property
    def num_used(self) -> int:
        """Rows that belong to a sequence."""
        return self._total - len(self._free)

    def take(self) -> RowId:
        """A free row; there is one for each of ``max_num_seqs``."""
        return self._free.pop()

    def give_back(self, row: RowId) -> None:
        """The row's sequence is gone."""
        self._free.append(row)
        self._to_free.append(row)

    def take_freed(self) -> tuple[RowId, ...]:
        """Rows given back since the last call."""
        if not self._to_free:
            return ()
        freed, self._to_free = tuple(self._to_free), []
        return freed
