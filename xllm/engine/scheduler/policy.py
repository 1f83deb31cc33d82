"""Who goes first, and who may enter: pure functions and small objects behind two Protocols.

Keys end in the arrival number, which is unique, so an order is total and never changes while a sequence waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from xllm.engine.cache.kv_cache import KVCache, PrefixHit
from xllm.engine.scheduler.sequence import Sequence
from xllm.types.request import Request

OrderKey = Callable[[Request, int], tuple[int, ...]]
"""(request, arrival number) -> key; smaller runs first."""


def fcfs_key(request: Request, arrival: int) -> tuple[int, ...]:
    """Online before offline, then first come."""
    return (int(request.offline), arrival)


def priority_key(request: Request, arrival: int) -> tuple[int, ...]:
    """Online before offline, lower ``priority`` first, then first come."""
    return (int(request.offline), request.priority, arrival)


ORDER_KEYS: dict[str, OrderKey] = {"fcfs": fcfs_key, "priority": priority_key}


class AdmissionPolicy(Protocol):
    """Decides whether the first waiting sequence may start now."""

    def may_admit(self, seq: Sequence, hit: PrefixHit, cache: KVCache, num_running: int) -> bool:
        """Pure: whether ``seq`` with what it would hit may enter."""
        ...


class WatermarkAdmission:
    """Admit when all known tokens of the sequence fit and ``watermark`` of every pool stays available for growth.

    Known tokens count at once, not per chunk: a half-prefilled sequence that starves for blocks helps nobody. With
    nothing running the watermark does not apply, so a lone sequence always starts.
    """

    __slots__ = ("_watermark",)

    def __init__(self, watermark: float) -> None:
        self._watermark = watermark

    def may_admit(self, seq: Sequence, hit: PrefixHit, cache: KVCache, num_running: int) -> bool:
        """See the class."""
        margin = self._watermark if num_running else 0.0
        return cache.room_after(hit, len(seq.token_ids)) >= margin
