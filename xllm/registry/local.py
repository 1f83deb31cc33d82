"""LocalStore: a MemoryStore on the event loop of this process, with a timer that ends its leases."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from xllm.base.clock import Clock, MonotonicClock
from xllm.errors import RegistryError
from xllm.registry.memory_store import MAX_EVENTS, MemoryStore
from xllm.registry.store import Watch
from xllm.registry.watch_queue import WatchQueue
from xllm.types.store import Lease, Snapshot

_LONGEST_SLEEP_S = 1.0


class LocalStore:
    """See :class:`~xllm.registry.store.Store`. Made inside a running event loop."""

    def __init__(self, clock: Clock | None = None, *, max_events: int = MAX_EVENTS) -> None:
        self.state = MemoryStore(clock or MonotonicClock(), max_events=max_events)
        self._queues: set[WatchQueue] = set()
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write a key."""
        return self._open().put(key, value, lease=lease)

    async def try_set(
        self, key: str, value: bytes | None, *, expected_revision: int, lease: int = 0
    ) -> int | None:
        """Compare-and-set."""
        return self._open().try_set(key, value, expected_revision=expected_revision, lease=lease)

    async def get_prefix(self, prefix: str) -> Snapshot:
        """Every key under ``prefix``."""
        return self._open().get_prefix(prefix)

    async def watch(self, prefix: str, after_revision: int) -> Watch:
        """Every later change under ``prefix``."""
        async with aclosing(self.begin_watch(prefix, after_revision)) as batches:
            async for batch in batches:
                yield batch

    async def grant_lease(self, ttl_s: float) -> Lease:
        """A new lease."""
        return self.grant(ttl_s)

    async def keep_alive(self, lease: int) -> Lease:
        """Begin the lease's time anew."""
        return self._open().keep_alive(lease)

    async def revoke_lease(self, lease: int) -> None:
        """End a lease."""
        self._open().revoke_lease(lease)

    async def close(self) -> None:
        """End every watch and the timer."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for queue in list(self._queues):
            queue.end(RegistryError("the registry was closed"))

    def begin_watch(self, prefix: str, after_revision: int) -> Watch:
        """:meth:`watch` that begins, or raises, at once."""
        queue = WatchQueue()
        unwatch = self._open().watch(prefix, after_revision, queue.put)
        self._queues.add(queue)

        def close() -> None:
            unwatch()
            self._queues.discard(queue)

        return queue.drain(close)

    def grant(self, ttl_s: float) -> Lease:
        """:meth:`grant_lease` without waiting."""
        lease = self._open().grant_lease(ttl_s)
        self._plan_expiry()
        return lease

    def _open(self) -> MemoryStore:
        if self._is_closed:
            raise RegistryError("the registry is closed")
        return self.state

    def _plan_expiry(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        in_s = self.state.next_expiry_in_s()
        if in_s is not None and not self._is_closed:
            # Leases are renewed all the time: looking at most once a second is cheaper than following each.
            self._timer = asyncio.get_running_loop().call_later(min(in_s, _LONGEST_SLEEP_S), self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.state.expire()
        self._plan_expiry()
