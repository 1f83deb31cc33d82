"""HoldQueue: requests that wait in the service while every instance has as much as it should have.

An instance gets the sequences it can run and some more, so that it never idles; what is beyond waits here, where an
order over all instances is possible. Online requests go before offline ones. Within a class, ``tenant_fair`` lets the
tenant go first that has had the least service (virtual token counter; Sheng et al., OSDI 2024): prompt tokens plus
twice the output tokens, divided by its weight, over all instances. A tenant that comes back after a pause is lifted to
the least counter of those that wait: credit cannot be saved up. Within a tenant, and with ``fcfs``, the priority
decides, then arrival. Every ``AGED_TURN``-th release goes to whoever waits longest, offline ones included.

A full class is shared, too: a newcomer whose tenant holds less than another one takes the place of the last request of
the tenant that holds the most (longest queue drop; Suter et al., INFOCOM 1998), which is refused instead. So one tenant
alone may fill the class, and a flood locks nobody out. With ``fcfs`` whoever comes to a full class is refused.

INVARIANTS
- What is held is what was pushed and neither popped, removed nor displaced.
- No class and no tenant holds more than its bound.
- With ``tenant_fair``, a tenant that is refused for a full class holds no less there than any other one, but for one
  request: places per weight.
- Entries of requests that are gone stay in a heap at most ``_MAX_STALE`` longer than there are live ones.
- A request is released after at most ``AGED_TURN`` times as many releases as there were requests before it.
- Counters of at most ``MAX_TENANTS`` tenants are kept.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from xllm.base.clock import Clock
from xllm.base.tenant_counters import MAX_TENANTS, TenantCounters
from xllm.errors import CapacityError
from xllm.types.ids import RequestId
from xllm.types.request import Request

HoldOrder = Literal["tenant_fair", "fcfs"]

AGED_TURN = 16
LONGEST_RETRY_S = 120.0
_PACE_WEIGHT = 0.1
_MAX_STALE = 64
"""Per tenant and class; few, since there may be many tenants."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldLimits:
    """Bounds in requests; 0: none."""

    max_waiting_per_instance: int = 0
    """What an instance gets beyond the sequences it can run; 0: no bound, so that nothing waits here."""
    max_stranded_s: float = 10.0
    """How long requests wait while no instance can take anything."""

    max_online: int = 0
    max_offline: int = 0
    max_per_tenant: int = 0
    order: HoldOrder = "tenant_fair"
    weights: Mapping[str, float] = field(default_factory=dict)
    """Shares of tenants other than 1."""


@dataclass(slots=True)
class Held:
    """One request that waits."""

    request: Request
    number: int
    since_s: float

    @property
    def key(self) -> tuple[str, bool]:
        """Its tenant and class."""
        return self.request.tenant, self.request.offline


@dataclass(frozen=True, slots=True)
class Displaced:
    """A request that waited and has to leave for one of another tenant."""

    held: Held
    error: CapacityError


class HoldQueue:
    """See the module."""

    def __init__(self, clock: Clock, limits: HoldLimits | None = None) -> None:
        self._clock = clock
        self._limits = limits or HoldLimits()
        self._held: dict[RequestId, Held] = {}
        """In order of arrival."""
        self._heaps: dict[tuple[str, bool], list[tuple[int, int, RequestId]]] = defaultdict(list)
        self._num: Counter[tuple[str, bool]] = Counter()
        self._counters = TenantCounters(self._limits.weights)
        self._floor = 0.0
        """Counter of the tenant that left last."""
        self._numbers = itertools.count()
        self._num_popped = 0
        self._gap_s = 0.0
        self._last_pop_s: float | None = None
        self.num_refused = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._held

    def num_held(self, *, offline: bool) -> int:
        """Requests of a class that wait."""
        return sum(num for (_, is_offline), num in self._num.items() if is_offline == offline)

    def counter(self, tenant: str) -> float:
        """Weighted service a tenant has had."""
        return self._counters.of(tenant)

    def push(self, request: Request) -> Displaced | None:
        """Let it wait; whoever has to leave for it is not held any more, and its submitter is to be told.

        Raises:
            CapacityError: 429, its class or its tenant has as many waiting as it may.
        """
        limits, offline, tenant = self._limits, request.offline, request.tenant
        mine = self._num[tenant, False] + self._num[tenant, True]
        if tenant and 0 < limits.max_per_tenant <= mine:
            message = f"{mine} requests of this client wait, the limit is {limits.max_per_tenant}"
            raise self._refusal(message, request)
        bound = limits.max_offline if offline else limits.max_online
        displaced = None
        if 0 < bound <= self.num_held(offline=offline):
            displaced = self._displace(request, bound)
        if not mine:
            waiting = {name for (name, _), count in self._num.items() if count}
            floor = min((self.counter(name) for name in waiting), default=self._floor)
            self._counters.lift((tenant,), floor)
        held = Held(request, next(self._numbers), self._clock.now())
        self._held[request.id] = held
        self._num[held.key] += 1
        heapq.heappush(self._heaps[held.key], (request.priority, held.number, request.id))
        return displaced

    def try_pop(self) -> Held | None:
        """Who goes next; None: nobody waits."""
        if not self._held:
            self._last_pop_s = None
            return None
        self._num_popped += 1
        if self._num_popped % AGED_TURN == 0:
            held = next(iter(self._held.values()))
        else:
            held = self._held[self._first()[2]]
        self._floor = max(self._floor, self.counter(held.request.tenant))
        self._measure_pace()
        self._forget(held)
        return held

    def remove(self, request_id: RequestId) -> bool:
        """It need not wait any more; False: it does not."""
        held = self._held.get(request_id)
        if held is None:
            return False
        self._forget(held)
        return True

    def overdue(self) -> list[Held]:
        """Those whose deadline passed while they waited."""
        now_s = self._clock.now()
        return [
            held
            for held in self._held.values()
            if held.request.deadline_in_s is not None and now_s - held.since_s >= held.request.deadline_in_s
        ]

    def charge(self, tenant: str, *, prompt_tokens: float = 0.0, output_tokens: int = 0) -> None:
        """A tenant gets service; of what went to an instance at once, too."""
        self._counters.charge(tenant, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        if len(self._counters) > MAX_TENANTS:
            waiting = {name for (name, _), count in self._num.items() if count}
            self._counters.forget_away(waiting, down_to=MAX_TENANTS // 2)

    def predicted_wait_s(self, request: Request) -> float | None:
        """How long it would wait at the pace of the last releases; None: nothing was released lately."""
        if not self._gap_s:
            return None
        ahead = self.num_held(offline=False) + (self.num_held(offline=True) if request.offline else 0)
        return (ahead + 1) * self._gap_s

    def check(self) -> None:
        """Raise AssertionError where the invariants do not hold."""
        found = Counter(held.key for held in self._held.values())
        assert found == +self._num, f"{found} is not {self._num}"
        assert self._heaps.keys() == found.keys(), "a heap of nobody"
        for key, num in found.items():
            heap = self._heaps[key]
            live = {entry[2] for entry in heap if self._is_current(entry)}
            assert len(live) == num, f"{len(live)} entries for {num} requests of {key}"
            assert len(heap) <= 2 * num + _MAX_STALE, f"{len(heap)} entries for {num} requests of {key}"
        for offline, bound in ((False, self._limits.max_online), (True, self._limits.max_offline)):
            assert not bound or self.num_held(offline=offline) <= bound, "more than the bound wait"
        assert len(self._counters) <= MAX_TENANTS + 1

    # -- private --

    def _first(self) -> tuple[float, int, RequestId]:
        """(order, number, request) of the first one, online before offline."""
        for offline in (False, True):
            best: tuple[float, int, int, RequestId] | None = None
            for key in [key for key, num in self._num.items() if num and key[1] == offline]:
                priority, number, request_id = self._top(key)
                is_fair = self._limits.order == "tenant_fair"
                rank = (self.counter(key[0]) if is_fair else 0.0, priority, number, request_id)
                best = rank if best is None or rank < best else best
            if best is not None:
                return best[0], best[2], best[3]
        raise AssertionError("nobody waits")

    def _top(self, key: tuple[str, bool]) -> tuple[int, int, RequestId]:
        """First entry of a heap that still waits under that number."""
        heap = self._heaps[key]
        while not self._is_current(heap[0]):
            heapq.heappop(heap)
        return heap[0]

    def _is_current(self, entry: tuple[int, int, RequestId]) -> bool:
        held = self._held.get(entry[2])
        return held is not None and held.number == entry[1]

    def _displace(self, request: Request, bound: int) -> Displaced:
        """Make room in a full class.

        Raises:
            CapacityError: no other tenant holds more than this one would.
        """
        offline, weights = request.offline, self._limits.weights
        kind = "offline" if offline else "online"
        places = {
            key: num / weights.get(key[0], 1.0) for key, num in self._num.items() if num and key[1] == offline
        }
        most = max(places, key=places.__getitem__)
        wanted = (self._num[request.tenant, offline] + 1) / weights.get(request.tenant, 1.0)
        if self._limits.order != "tenant_fair" or wanted >= places[most]:
            raise self._refusal(f"{bound} {kind} requests wait, the limit is {bound}", request)
        heap = self._heaps[most]
        heap.sort()  # sorted is a heap, too, and nearly free to sort again for the next newcomer
        while not self._is_current(heap[-1]):
            heap.pop()
        held = self._held[heap.pop()[2]]
        error = self._refusal(
            f"{bound} {kind} requests wait, the limit is {bound}, and this client has the most of them:"
            " one of another client has taken the place of its last",
            held.request,
        )
        self._forget(held)
        return Displaced(held, error)

    def _forget(self, held: Held) -> None:
        del self._held[held.request.id]
        self._num[held.key] -= 1
        num, heap = self._num[held.key], self._heaps[held.key]
        if not num:
            del self._num[held.key], self._heaps[held.key]
        elif len(heap) > 2 * num + _MAX_STALE:
            self._heaps[held.key] = heap = [entry for entry in heap if self._is_current(entry)]
            heapq.heapify(heap)

    def _measure_pace(self) -> None:
        now_s = self._clock.now()
        if self._last_pop_s is not None:
            gap_s = now_s - self._last_pop_s
            self._gap_s += _PACE_WEIGHT * (gap_s - self._gap_s) if self._gap_s else gap_s
        self._last_pop_s = now_s

    def _refusal(self, message: str, request: Request) -> CapacityError:
        self.num_refused += 1
        wait_s = self.predicted_wait_s(request)
        retry_s = 1.0 if wait_s is None else min(LONGEST_RETRY_S, max(1.0, wait_s))
        return CapacityError(message, retry_after_s=retry_s, hint="send fewer requests at once")
