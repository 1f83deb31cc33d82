"""Which requests run out of time next."""

from __future__ import annotations

import heapq

from xllm.engine.scheduler.sequence import Sequence


class Deadlines:
    """A heap of (deadline, id, sequence); finished sequences are skipped when they surface."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []

    def add(self, seq: Sequence) -> None:
        """Watch a sequence that has a deadline."""
        if seq.deadline_s is not None:
            heapq.heappush(self._heap, (seq.deadline_s, seq.id, seq))

    def next_s(self) -> float | None:
        """Time of the next deadline of an unfinished sequence."""
        heap = self._heap
        while heap and heap[0][2].is_finished:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now_s: float) -> list[Sequence]:
        """Unfinished sequences whose time has passed."""
        due = []
        while (at_s := self.next_s()) is not None and at_s <= now_s:
            due.append(heapq.heappop(self._heap)[2])
        return due
