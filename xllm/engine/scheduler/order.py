"""Who goes first: pure functions from a request and its arrival number to a key; smaller runs first.

Keys end in the arrival number, which is unique, so an order is total and never changes while a sequence waits.
"""

from __future__ import annotations

from collections.abc import Callable

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
