"""EventQueue: what happens next, in simulated time.

INVARIANTS
- Time never goes back; events of one moment run in the order they were added, so a run is a function of its inputs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from xllm.base.clock import ManualClock


class EventQueue:
    """A heap of (time, number, action) over a manual clock."""

    __slots__ = ("_heap", "_number", "clock")

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        """Run ``action`` at ``when_s`` (now, if that has passed)."""
        self._number += 1
        heapq.heappush(self._heap, (max(when_s, self.clock.now()), self._number, action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run ``action`` in ``delay_s`` seconds."""
        self.at(self.clock.now() + delay_s, action)

    def run(self, until_s: float = float("inf")) -> None:
        """Run events in order until none is left or the next one is later than ``until_s``."""
        while self._heap and self._heap[0][0] <= until_s:
            when_s, _, action = heapq.heappop(self._heap)
            self.clock.advance_to(when_s)
            action()
