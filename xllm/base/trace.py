"""Always-on ring of scheduling decisions: why a request waited, when it was admitted, by whom it was
preempted.

INVARIANTS
- Memory is bounded: exactly ``capacity`` slots, the oldest record is overwritten.
- ``record`` is a clock read, a tuple and a list store; it never formats, allocates per field or takes a lock.
- One writer thread (the one that steps the engine core, or the service's event loop); readers only look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xllm.base.clock import Clock, MonotonicClock

_Record = tuple[float, str, str, Mapping[str, Any] | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One recorded decision about one request."""

    age_s: float
    """Seconds ago, by the clock of the process that recorded it."""
    request_id: str
    """The request; records of its sequences and attempts carry the same id and say more in ``fields``."""
    event: str
    """A short verb: queued, admitted, scheduled, preempted, resumed, finished, aborted ..."""
    fields: Mapping[str, Any]
    """The facts behind the decision, JSON-able."""


class DecisionTrace:
    """A fixed-size ring of decisions; see the module's invariants."""

    __slots__ = ("_capacity", "_clock", "_next", "_now", "_slots")

    def __init__(self, clock: Clock | None = None, *, capacity: int = 65_536) -> None:
        if capacity < 1:
            raise ValueError(f"a ring needs at least one slot: capacity={capacity}")
        self._clock: Clock = clock or MonotonicClock()
        self._now = self._clock.now
        self._capacity = capacity
        self._slots: list[_Record | None] = [None] * capacity
        self._next = 0

    def record(self, request_id: str, event: str, fields: Mapping[str, Any] | None = None) -> None:
        """Store one decision. ``fields`` is kept by reference: pass a fresh dict and do not change it
        later."""
        index = self._next
        self._slots[index] = (self._now(), request_id, event, fields)
        index += 1
        self._next = index if index < self._capacity else 0

    def for_request(self, request_id: str) -> list[Decision]:
        """Decisions about one request still in the ring, oldest first. O(capacity): for people, not for
        steps."""
        return [decision for decision in self.recent(self._capacity) if decision.request_id == request_id]

    def recent(self, max_decisions: int = 100) -> list[Decision]:
        """The newest ``max_decisions`` decisions, oldest of them first."""
        now_s = self._now()
        ordered = self._slots[self._next :] + self._slots[: self._next]
        records = [record for record in ordered if record is not None]
        chosen = records[-max_decisions:] if max_decisions > 0 else []
        return [
            Decision(age_s=now_s - at_s, request_id=request_id, event=event, fields=fields or {})
            for at_s, request_id, event, fields in chosen
        ]


class NullTrace:
    """Records nothing; the off switch."""

    __slots__ = ()

    def record(self, request_id: str, event: str, fields: Mapping[str, Any] | None = None) -> None:
        """Do nothing."""

    def for_request(self, request_id: str) -> list[Decision]:
        """Return an empty list."""
        return []

    def recent(self, max_decisions: int = 100) -> list[Decision]:
        """Return an empty list."""
        return []
