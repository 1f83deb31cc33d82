"""WatchQueue: from a callback that must not block to an async iteration, with a bound on what waits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from xllm.errors import Compacted, RegistryError
from xllm.registry.store import Watch
from xllm.types.store import StoreEvent

MAX_WAITING = 10_000
"""Events a watcher may be behind; beyond it must list again."""


class WatchQueue:
    """``put`` and ``end`` from callbacks, ``drain`` by the one reader. Used from one event loop."""

    def __init__(self) -> None:
        self._events: deque[StoreEvent] = deque()
        self._error: RegistryError | None = None
        self._changed = asyncio.Event()

    def put(self, events: tuple[StoreEvent, ...]) -> None:
        """More events."""
        if self._error is None:
            self._events.extend(events)
            if len(self._events) > MAX_WAITING:
                self._events.clear()
                self._error = Compacted(f"the watcher is more than {MAX_WAITING} events behind")
            self._changed.set()

    def end(self, error: RegistryError) -> None:
        """Nothing follows; the reader sees what has come, then ``error``."""
        self._error = self._error or error
        self._changed.set()

    async def drain(self, on_close: Callable[[], object]) -> Watch:
        """Batches as they come; ``on_close`` is called when the reader stops."""
        try:
            while True:
                while not self._events and self._error is None:
                    self._changed.clear()
                    await self._changed.wait()  # unbounded by nature: the reader bounds it
                if not self._events:
                    assert self._error is not None
                    raise self._error
                batch = tuple(self._events)
                self._events.clear()
                yield batch
        finally:
            on_close()
