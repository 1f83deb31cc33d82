"""Supervisor: keeps a fixed number of engine processes of this machine running.

INVARIANTS
- Per slot at most one engine process exists; a slot's instance id stays, its incarnation changes with every start.
- An engine that ended by itself with status 0 was told to (drained): it is not started again.
- After ``close`` every engine has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from xllm.base.clock import Clock, MonotonicClock
from xllm.errors import XllmError
from xllm.launch.engine_process import EngineProcess
from xllm.launch.starting_engine import StartingEngine

log = logging.getLogger(__name__)

POLL_S = 0.1


@dataclass(slots=True)
class Backoff:
    """How long to wait before the next start: longer each time, short again after a good while up."""

    first_s: float = 0.5
    longest_s: float = 30.0
    good_s: float = 60.0
    """An engine that lived this long was well."""
    _pause_s: float = 0.0

    def next_pause_s(self, lived_s: float) -> float:
        """After an engine that lived ``lived_s`` (0: it did not start)."""
        if lived_s >= self.good_s or self._pause_s == 0.0:
            self._pause_s = self.first_s
        else:
            self._pause_s = min(2 * self._pause_s, self.longest_s)
        return self._pause_s


class Supervisor:
    """See the module. ``start``, then ``close`` at the end; inside one event loop."""

    def __init__(
        self,
        starts: list[Callable[[], EngineProcess]],
        *,
        on_ended: Callable[[EngineProcess], Awaitable[None]],
        on_started_again: Callable[[EngineProcess], object] = lambda process: None,
        clock: Clock | None = None,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        """``starts`` has one blocking function per slot; ``on_ended`` hears of every process that ended by itself,
        ``on_started_again`` of every one that took its place."""
        self._starts = starts
        self._on_ended = on_ended
        self._on_started_again = on_started_again
        self._clock = clock or MonotonicClock()
        self._backoff = backoff
        self._processes: list[EngineProcess | None] = [None] * len(starts)
        self._minders: list[asyncio.Task[None]] = []

    @property
    def processes(self) -> list[EngineProcess]:
        """Those that run now."""
        return [process for process in self._processes if process is not None and process.is_alive]

    async def start(self) -> None:
        """Start every engine and wait until all are ready.

        Raises:
            XllmError: one could not start; none is left running.
        """
        tries = [asyncio.create_task(self._try_start(slot)) for slot in range(len(self._starts))]
        try:
            await asyncio.gather(*tries)
        except BaseException:
            for task in tries:
                task.cancel()
            await asyncio.gather(*tries, return_exceptions=True)
            await self.close()
            raise
        self._begin()

    def adopt(self, processes: Sequence[EngineProcess]) -> None:
        """In place of :meth:`start`: one engine per slot runs already."""
        assert len(processes) == len(self._starts)
        self._processes = list(processes)
        self._begin()

    async def close(self) -> None:
        """End every engine, all at the same time; bounded by the ends of the processes."""
        for task in self._minders:
            task.cancel()
        await asyncio.gather(*self._minders, return_exceptions=True)
        running = [process for process in self._processes if process is not None]
        self._processes = [None] * len(self._starts)
        await asyncio.gather(*(asyncio.to_thread(process.close) for process in running))

    def _begin(self) -> None:
        self._minders = [asyncio.create_task(self._mind(slot)) for slot in range(len(self._starts))]

    async def _try_start(self, slot: int) -> None:
        starting = StartingEngine(self._starts[slot])
        try:
            while not starting.is_done:  # bounded by the start's own deadline
                await asyncio.sleep(POLL_S / 4)
        except asyncio.CancelledError:
            starting.abandon()
            raise
        self._processes[slot] = starting.wait()

    async def _mind(self, slot: int) -> None:
        backoff = self._backoff()
        began_s = self._clock.now()
        while True:
            process = self._processes[slot]
            if process is not None:
                while process.is_alive:
                    await asyncio.sleep(POLL_S)
                await self._on_ended(process)
                await asyncio.to_thread(process.close)  # reaps it
                if process.returncode == 0:
                    log.info("engine %s has left; it is not started again", process.info.id)
                    return
                log.error("engine %s ended with status %s", process.info.id, process.returncode)
            lived_s = 0.0 if process is None else self._clock.now() - began_s
            pause_s = backoff.next_pause_s(lived_s)
            log.info("engine %d is started again in %.1f s", slot, pause_s)
            await asyncio.sleep(pause_s)
            self._processes[slot] = None
            began_s = self._clock.now()
            try:
                await self._try_start(slot)
            except XllmError as exc:
                log.error("engine %d could not be started: %s", slot, exc.message)
                continue
            started = self._processes[slot]
            assert started is not None
            self._on_started_again(started)
