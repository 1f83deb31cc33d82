"""Deadlines: when each live request is over whatever happens.

INVARIANT: entries of requests that ended stay at most ``_MAX_STALE`` longer than there are live ones.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from xllm.service.dispatch.live_request import LiveRequest
from xllm.types.ids import RequestId

_MAX_STALE = 1024


class Deadlines:
    """A heap over the live requests of one dispatch; most requests end long before their deadline."""

    def __init__(self, live: Mapping[RequestId, LiveRequest]) -> None:
        self._live = live
        self._heap: list[tuple[float, RequestId]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, live: LiveRequest) -> None:
        """Watch one more."""
        heapq.heappush(self._heap, (live.due_s, live.first.id))
        if len(self._heap) > 2 * len(self._live) + _MAX_STALE:
            self._heap = [entry for entry in self._heap if self._is_current(*entry)]
            heapq.heapify(self._heap)

    def pop_due(self, now_s: float) -> list[LiveRequest]:
        """Those whose time is over, once."""
        due = []
        while self._heap and self._heap[0][0] <= now_s:
            due_s, request_id = heapq.heappop(self._heap)
            if self._is_current(due_s, request_id):
                due.append(self._live[request_id])
        return due

    def check(self) -> None:
        """Raise AssertionError where a live request has no entry."""
        entries = set(self._heap)
        assert all((live.due_s, rid) in entries for rid, live in self._live.items()), "no deadline"

    def _is_current(self, due_s: float, request_id: RequestId) -> bool:
        live = self._live.get(request_id)
        return live is not None and live.due_s == due_s
