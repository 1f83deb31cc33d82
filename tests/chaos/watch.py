"""Watch: polls the replicas all the time: when a fault was noticed, and who was doubted without one."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.schedule import AFTERMATH_S, ENGINE_KINDS, Fault
from tests.chaos.world import World

POLL_S = 0.1
DOUBTS = ("suspect", "lost", "degraded")
FAST_POLL_S = 0.02
"""While a fault waits to be noticed."""


@dataclass
class Mark:
    """One fault, as it went."""

    fault: Fault
    struck_s: float = 0.0
    is_alone: bool = True
    """No other fault was active or fresh."""
    noticed_s: dict[str, float] = field(default_factory=dict)
    """Per replica, from the strike until it did not call the engine ready."""
    healed_s: float | None = None
    back_s: float | None = None
    """From the healing (or the start of a new process) until every live replica called it ready again."""
    worst_gap_s: float = 0.0
    """From the strike to the next event of the stream that waited longest for it."""
    waiting: set[int] = field(default_factory=set)
    """Streams that were open at the strike and have had no event since."""
    states: set[str] = field(default_factory=set)
    witnesses: set[str] = field(default_factory=set)
    """Replicas that were well at the strike and have been since: their notice counts."""
    num_streams: int = 0
    """Open at the strike."""
    num_right: int | None = None
    """Right answers that came while it lasted."""

    def as_row(self) -> dict[str, Any]:
        return {
            "kind": self.fault.kind,
            "target": self.fault.target,
            "at_s": self.fault.at_s,
            "lasts_s": self.fault.lasts_s,
            "alone": self.is_alone,
            "noticed_s": {name: round(value, 3) for name, value in sorted(self.noticed_s.items())},
            "called": sorted(self.states),
            "streams": self.num_streams,
            "right_meanwhile": self.num_right,
            "worst_gap_s": round(self.worst_gap_s, 3),
            "back_s": None if self.back_s is None else round(self.back_s, 3),
        }


class Watch:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.marks: list[Mark] = []
        self.false_alarms: list[dict[str, Any]] = []
        """A replica called an engine suspect or lost that nothing had struck."""
        self.worst_lag_s = 0.0
        """How late this very loop was woken at worst: the resolution of all times here."""
        self._doubted: set[tuple[str, str]] = set()
        self._clear_s: dict[str, float] = defaultdict(float)
        self._tasks: list[asyncio.Task[None]] = []
        self._began_s = time.monotonic()

    def start(self) -> None:
        self._began_s = time.monotonic()
        self._tasks = [
            asyncio.create_task(self._follow(service), name=service) for service in self._world.services
        ]
        self._tasks.append(asyncio.create_task(self._measure_lag()))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def struck(self, fault: Fault, streams: set[int]) -> Mark:
        """A fault begins now; ``streams`` are open."""
        now_s = time.monotonic()
        mark = Mark(fault, now_s, waiting=set(streams), num_streams=len(streams))
        mark.witnesses = {name for name in self._world.services if not self._is_fresh(name)}
        for other in self.marks:
            other.witnesses.discard(fault.target)
            if other.healed_s is None or now_s - other.healed_s < AFTERMATH_S / 2:
                mark.is_alone = other.is_alone = False
        self.marks.append(mark)
        return mark

    def healed(self, mark: Mark) -> None:
        """Its cause is gone; engines may take a while to be trusted again."""
        mark.healed_s = time.monotonic()
        self._clear_s[mark.fault.target] = mark.healed_s + 3 * AFTERMATH_S

    def saw_event(self, stream: int, service: str) -> None:
        """A stream goes on."""
        now_s = time.monotonic()
        for mark in self.marks[-8:]:
            if stream in mark.waiting:
                mark.waiting.discard(stream)
                mark.worst_gap_s = max(mark.worst_gap_s, now_s - mark.struck_s)

    # -- private --

    async def _follow(self, service: str) -> None:
        while True:
            open_marks = [
                mark for mark in self.marks if mark.healed_s is None and not mark.noticed_s.get(service)
            ]
            await asyncio.sleep(FAST_POLL_S if open_marks else POLL_S)
            asked_s = time.monotonic()
            states = await self._world.health(service)
            if states is not None:
                self._compare(service, states, asked_s)

    def _compare(self, service: str, states: dict[str, str], asked_s: float) -> None:
        now_s = time.monotonic()
        for mark in self.marks:
            name = mark.fault.target
            if mark.fault.kind not in ENGINE_KINDS:
                continue
            state = states.get(name, "unknown")
            if state != "ready" and asked_s >= mark.struck_s and mark.back_s is None:
                if service in mark.witnesses:
                    mark.states.add(state)
                    mark.noticed_s.setdefault(service, now_s - mark.struck_s)
            elif (
                state == "ready"
                and mark.healed_s is not None
                and asked_s >= mark.healed_s
                and mark.back_s is None
            ):
                mark.back_s = now_s - mark.healed_s
        for name in self._world.engines:
            is_struck = any(m.fault.target == name and m.back_s is None for m in self.marks)
            state = states.get(name, "unknown")
            if state not in DOUBTS:
                self._doubted.discard((service, name))
            elif not is_struck and now_s > self._clear_s[name] and (service, name) not in self._doubted:
                if self._is_fresh(service):
                    continue
                self._doubted.add((service, name))
                struck = [m.fault.kind for m in self.marks if m.healed_s is None]
                self.false_alarms.append(
                    {"at_s": round(now_s - self._began_s, 2), "engine": name, "by": service, "state": state,
                     "meanwhile": struck}
                )  # fmt: skip

    def _is_fresh(self, service: str) -> bool:
        """A replica that was started or frozen has a view to build first."""
        now_s = time.monotonic()
        mine = [mark for mark in self.marks if mark.fault.target == service]
        return any(mark.healed_s is None or now_s - mark.healed_s < 3 * AFTERMATH_S for mark in mine)

    async def _measure_lag(self) -> None:
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(0.05)
            self.worst_lag_s = max(self.worst_lag_s, time.monotonic() - began_s - 0.05)
