"""WaitingQueue: sequences that are not running, in the policy's order.

INVARIANTS
- The order key is frozen while a sequence is queued and ends with a unique number.
- Removal is O(log n) amortised: removed entries are skipped when they surface, and the heap is rebuilt when more than
  half of it is dead.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from xllm.engine.scheduler.sequence import Sequence
from xllm.types.ids import SeqId


class WaitingQueue:
    """A heap with lazy removal."""

    __slots__ = ("_alive", "_heap", "num_tokens")

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, ...], SeqId]] = []
        self._alive: dict[SeqId, Sequence] = {}
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._alive)

    def __iter__(self) -> Iterator[Sequence]:
        """In no particular order."""
        return iter(self._alive.values())

    def __contains__(self, seq: Sequence) -> bool:
        return seq.id in self._alive

    def push(self, seq: Sequence) -> None:
        """Queue a sequence at its key's place."""
        assert seq.id not in self._alive, f"{seq} is queued twice"
        self._alive[seq.id] = seq
        self.num_tokens += len(seq.token_ids)
        heapq.heappush(self._heap, (seq.key, seq.id))

    def peek(self) -> Sequence | None:
        """The first sequence."""
        heap, alive = self._heap, self._alive
        while heap and heap[0][1] not in alive:
            heapq.heappop(heap)
        return alive[heap[0][1]] if heap else None

    def remove(self, seq: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        del self._alive[seq.id]
        self.num_tokens -= len(seq.token_ids)
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._alive):
            self._heap = [(s.key, s.id) for s in self._alive.values()]
            heapq.heapify(self._heap)

    def in_order(self) -> list[Sequence]:
        """All of them, first to run first; O(n log n)."""
        return sorted(self._alive.values(), key=lambda s: s.key)
