"""WaitingQueue: sequences that are not running, in the policy's order.

INVARIANTS
- The order key is frozen while a sequence is queued and ends with a unique number; who changes keys of queued
  sequences calls ``reorder`` before anything else.
- Removal is O(log n) amortised: removed entries are skipped when they surface, and the heap is rebuilt when more than
  half of it is dead. A sequence may come back under another key; an entry counts only under the current one.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator

from xllm.engine.scheduler.sequence import Key, Sequence
from xllm.types.ids import SeqId


class WaitingQueue:
    """A heap with lazy removal."""

    __slots__ = ("_alive", "_heap", "num_tokens")

    def __init__(self) -> None:
        self._heap: list[tuple[Key, SeqId]] = []
        self._alive: dict[SeqId, Sequence] = {}
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._alive)

    def __iter__(self) -> Iterator[Sequence]:
        """In no particular order."""
        return iter(self._alive.values())

    def __contains__(self, seq: Sequence) -> bool:
        return seq.id in self._alive

    def values(self) -> Collection[Sequence]:
        """In no particular order; a live view."""
        return self._alive.values()

    def push(self, seq: Sequence) -> None:
        """Queue a sequence at its key's place."""
        assert seq.id not in self._alive, f"{seq} is queued twice"
        self._alive[seq.id] = seq
        self.num_tokens += len(seq.token_ids)
        heapq.heappush(self._heap, (seq.key, seq.id))

    def peek(self) -> Sequence | None:
        """The first sequence."""
        heap, alive = self._heap, self._alive
        while heap:
            key, seq_id = heap[0]
            seq = alive.get(seq_id)
            if seq is not None and seq.key == key:
                return seq
            heapq.heappop(heap)
        return None

    def remove(self, seq: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        del self._alive[seq.id]
        self.num_tokens -= len(seq.token_ids)
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._alive):
            self.reorder()

    def reorder(self) -> None:
        """Keys have changed: build the order anew; O(n)."""
        self._heap = [(s.key, s.id) for s in self._alive.values()]
        heapq.heapify(self._heap)

    def in_order(self) -> list[Sequence]:
        """All of them, first to run first; O(n log n)."""
        return sorted(self._alive.values(), key=lambda s: s.key)
