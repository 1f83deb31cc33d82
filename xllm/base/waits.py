"""Every wait of a process: who waits, for what, since when and until when.

INVARIANTS
- An entry exists exactly while its ``with`` block (or ``bounded`` await) is in progress; an exception
  removes it too.
- Every entry has a finite deadline. ``bounded`` enforces it; ``watch`` leaves that to the block, and a
  block that outlives its deadline shows up as ``overdue``.
- Entering and leaving are O(1) and take no lock: one dict store and one dict delete, atomic under the GIL.
"""

from __future__ import annotations

import asyncio
import math
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import TypeVar

from xllm.base.clock import Clock, MonotonicClock
from xllm.errors import DeadlineExceeded

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitInfo:
    """One wait in progress, as durations (absolute times mean nothing outside the process)."""

    owner: str
    """Who waits: a component and, where there is one, the request, e.g. ``dispatch req-12``."""
    reason: str
    """What it waits for, e.g. ``first token``."""
    age_s: float
    """Seconds since the wait began."""
    remaining_s: float
    """Seconds until the deadline; negative when overdue."""

    @property
    def overdue(self) -> bool:
        """True when the deadline has passed and the wait is still there."""
        return self.remaining_s < 0


class Wait:
    """Context manager of one entry of a :class:`WaitTable`."""

    __slots__ = ("_key", "_table", "deadline_s", "owner", "reason", "since_s", "timeout_s")

    def __init__(self, table: WaitTable, owner: str, reason: str, timeout_s: float) -> None:
        self._table = table
        self._key = 0
        self.owner = owner
        self.reason = reason
        self.timeout_s = timeout_s
        self.since_s = 0.0
        self.deadline_s = 0.0

    def __enter__(self) -> Wait:
        self.since_s = self._table.clock.now()
        self.deadline_s = self.since_s + self.timeout_s
        self._key = self._table._insert(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._table._remove(self._key)


class WaitTable:
    """The waits of one process; listed at ``/debug/waits`` and on SIGUSR1."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or MonotonicClock()
        self._keys = count(1)
        self._entries: dict[int, Wait] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __bool__(self) -> bool:
        return True  # an empty table is a table: ``waits or WaitTable()`` must not replace it

    def watch(self, owner: str, reason: str, timeout_s: float) -> Wait:
        """Register a wait for the length of a ``with`` block; the block itself must end by the deadline."""
        if not (math.isfinite(timeout_s) and timeout_s >= 0):
            raise ValueError(f"a wait needs a finite deadline: {owner} for {reason}: timeout_s={timeout_s}")
        return Wait(self, owner, reason, timeout_s)

    async def bounded(self, awaitable: Awaitable[T], *, owner: str, reason: str, timeout_s: float) -> T:
        """Await with a registered, enforced deadline.

        Raises:
            DeadlineExceeded: ``timeout_s`` passed; the awaitable has been cancelled.
        """
        with self.watch(owner, reason, timeout_s):
            scope = asyncio.timeout(timeout_s)
            try:
                async with scope:
                    return await awaitable
            except TimeoutError as exc:
                if not scope.expired():
                    raise  # the awaited thing's own time-out, not ours
                raise DeadlineExceeded(f"{owner} waited {timeout_s:g} s for {reason}") from exc

    def snapshot(self) -> list[WaitInfo]:
        """All waits in progress, the one nearest its deadline first."""
        now_s = self.clock.now()
        entries = list(self._entries.values())
        infos = [
            WaitInfo(
                owner=wait.owner,
                reason=wait.reason,
                age_s=now_s - wait.since_s,
                remaining_s=wait.deadline_s - now_s,
            )
            for wait in entries
        ]
        return sorted(infos, key=lambda info: info.remaining_s)

    def _insert(self, wait: Wait) -> int:
        key = next(self._keys)
        self._entries[key] = wait
        return key

    def _remove(self, key: int) -> None:
        del self._entries[key]


def format_waits(infos: Iterable[WaitInfo]) -> str:
    """Render a snapshot as a table, one wait per line."""
    lines = [
        f"{'OVERDUE ' if info.overdue else ''}{info.owner}: {info.reason}"
        f" (for {info.age_s:.1f} s, {info.remaining_s:.1f} s left)"
        for info in infos
    ]
    return "\n".join(lines) if lines else "no waits"


def format_process_state(table: WaitTable) -> str:
    """Waits and the Python stack of every thread: what a person needs to see why a process stands still."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = ["== waits ==", format_waits(table.snapshot())]
    for ident, frame in sys._current_frames().items():
        parts.append(f"== thread {names.get(ident, ident)} ==")
        parts.append("".join(traceback.format_stack(frame)).rstrip())
    return "\n".join(parts)


def install_dump_signal(
    table: WaitTable,
    *,
    write: Callable[[str], object] | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
) -> None:
    """Write :func:`format_process_state` (with a loop also how many tasks it has) on SIGUSR1; call from the main
    thread."""
    emit = write or sys.stderr.write

    def dump() -> None:
        text = format_process_state(table)
        if loop is not None:
            text += f"\n== loop ==\n{len(asyncio.all_tasks(loop))} asyncio tasks"
        emit(text + "\n")

    if loop is not None:
        loop.add_signal_handler(signal.SIGUSR1, dump)
    else:
        signal.signal(signal.SIGUSR1, lambda signum, frame: dump())
