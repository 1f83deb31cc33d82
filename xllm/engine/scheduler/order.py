"""Who goes first: an OrderPolicy gives every sequence a key; smaller runs first.

Keys end in the arrival number, which is unique, so an order is total. A key is frozen while a sequence is stored:
static policies give it once; dynamic ones (urgency, fairness) give new keys to everybody at once, at the begin of a
step, and the scheduler rebuilds its queue then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from xllm.engine.scheduler.sequence import Key, Sequence
from xllm.types.request import Request

OrderKey = Callable[[Request, int], Key]
"""(request, arrival number) -> key; smaller runs first."""


def fcfs_key(request: Request, arrival: int) -> Key:
    """Online before offline, then first come."""
    return (int(request.offline), arrival)


def priority_key(request: Request, arrival: int) -> Key:
    """Online before offline, lower ``priority`` first, then first come."""
    return (int(request.offline), request.priority, arrival)


ORDER_KEYS: dict[str, OrderKey] = {"fcfs": fcfs_key, "priority": priority_key}


class OrderPolicy(Protocol):
    """See the module; the scheduler calls it, nobody else."""

    def key(self, seq: Sequence, now_s: float) -> Key:
        """The key of a sequence that is about to be queued (new, or preempted)."""
        ...

    def rank(self, waiting: Collection[Sequence], running: Collection[Sequence], now_s: float) -> bool:
        """A step begins: give new keys (``seq.key``) where the order has changed; True when any key is new."""
        ...

    def ahead(
        self, seq: Sequence, others: Collection[Sequence], running: Collection[Sequence], now_s: float
    ) -> list[Sequence]:
        """Which of ``others``, who have no first token yet, would get theirs before ``seq``, which is not queued."""
        ...

    def on_admit(self, seq: Sequence, num_cached: int) -> None:
        """It starts to run (again); ``num_cached`` of its tokens need not be computed."""
        ...

    def on_sample(self, seq: Sequence) -> None:
        """A token of it is being sampled."""
        ...


class StaticOrder:
    """A key function as a policy: keys never change."""

    __slots__ = ("_key_of",)

    def __init__(self, key_of: OrderKey) -> None:
        self._key_of = key_of

    def key(self, seq: Sequence, now_s: float) -> Key:
        """What the function says."""
        return self._key_of(seq.request, seq.arrival)

    def rank(self, waiting: Collection[Sequence], running: Collection[Sequence], now_s: float) -> bool:
        """Nothing changes."""
        return False

    def ahead(
        self, seq: Sequence, others: Collection[Sequence], running: Collection[Sequence], now_s: float
    ) -> list[Sequence]:
        """Those with a smaller key."""
        return [s for s in others if s.key < seq.key]

    def on_admit(self, seq: Sequence, num_cached: int) -> None:
        """Of no interest."""

    def on_sample(self, seq: Sequence) -> None:
        """Of no interest."""


class DeadlineOrder:
    """Earliest deadline first: arrival plus the TTFT budget; requests without one behind those with one."""

    __slots__ = ()

    def key(self, seq: Sequence, now_s: float) -> Key:
        """Online before offline, then by deadline of the first token."""
        return (int(seq.request.offline), seq.due_s, seq.arrival)

    def rank(self, waiting: Collection[Sequence], running: Collection[Sequence], now_s: float) -> bool:
        """Deadlines do not move."""
        return False

    def ahead(
        self, seq: Sequence, others: Collection[Sequence], running: Collection[Sequence], now_s: float
    ) -> list[Sequence]:
        """Those with a smaller key."""
        return [s for s in others if s.key < seq.key]

    def on_admit(self, seq: Sequence, num_cached: int) -> None:
        """Of no interest."""

    def on_sample(self, seq: Sequence) -> None:
        """Of no interest."""
