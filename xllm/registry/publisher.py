"""Publisher: keeps one record of this process in a store, under a lease, for as long as the process wants.

INVARIANTS
- The record is written by compare-and-set only: over nothing, or over what this incarnation wrote itself. Whoever
  finds the record of another under its name does not write; it waits for that lease to end, then gives up
  (``on_clash``). So of two holders of one name at most one goes on.
- While the registry is away nothing is lost: the record is renewed, or written again, when it returns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from xllm.errors import LeaseExpired, RegistryError
from xllm.registry.store import Store
from xllm.types.store import Lease, StoreItem

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_CLOSE_S = 5.0


class Publisher:
    """See the module. ``start`` it once, ``close`` it at the end."""

    def __init__(
        self,
        store: Store,
        key: str,
        value: bytes,
        *,
        ttl_s: float,
        is_mine: Callable[[bytes], bool],
        on_clash: Callable[[str], None],
    ) -> None:
        self._store = store
        self._key = key
        self._value = value
        self._ttl_s = ttl_s
        self._is_mine = is_mine
        self._on_clash = on_clash
        self._lease: Lease | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_away = False
        self._is_written = False

    @property
    def is_published(self) -> bool:
        """Whether the registry answered last time, and the record was there."""
        return self._is_written and not self._is_away

    def start(self) -> None:
        """Begin to publish; the registry need not be there yet."""
        self._task = asyncio.create_task(self._run())

    async def close(self, last_value: bytes | None = None) -> None:
        """Withdraw the record, leaving ``last_value`` in the history for those who watch; bounded."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        if self._lease is None or not self._is_written:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                found = await self._find()
                if found is not None and self._is_mine(found.value) and last_value is not None:
                    await self._store.try_set(
                        self._key, last_value, expected_revision=found.revision, lease=self._lease.id
                    )
                await self._store.revoke_lease(self._lease.id)
        except (RegistryError, TimeoutError) as exc:
            log.warning("registry: %s stays until its lease ends: %s", self._key, exc)

    # -- private --

    async def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                is_held = self._lease is not None and await self._renew(self._lease)
                if not is_held and not await self._claim():
                    return
                self._note_back()
                pause_s = _FIRST_PAUSE_S
                await asyncio.sleep(self._ttl_s / 4)
            except LeaseExpired:
                self._lease = None
                if self._is_written and pause_s == _FIRST_PAUSE_S:
                    log.warning("registry: the lease of %s ended; publishing again", self._key)
                await asyncio.sleep(
                    pause_s
                )  # a registry that forgets every lease at once must not be hammered
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except RegistryError as exc:
                if not self._is_away:
                    log.warning("registry: %s; the work goes on without it", exc.message)
                self._is_away = True
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _renew(self, lease: Lease) -> bool:
        """Renew; whether the record is still there and ours."""
        await self._store.keep_alive(lease.id)
        found = await self._find()
        return found is not None and self._is_mine(found.value) and found.lease == lease.id

    async def _claim(self) -> bool:
        """Write the record; False when another keeps the name."""
        loop = asyncio.get_running_loop()
        patience_s = 2 * self._ttl_s + 1.0
        deadline_s = loop.time() + patience_s
        while True:
            found = await self._find()
            if found is None or self._is_mine(found.value):
                if self._lease is None:
                    self._lease = await self._store.grant_lease(self._ttl_s)
                revision = await self._store.try_set(
                    self._key,
                    self._value,
                    expected_revision=found.revision if found else 0,
                    lease=self._lease.id,
                )
                if revision is not None:
                    self._is_written = True
                    return True
                if loop.time() >= deadline_s:
                    raise RegistryError(
                        f"the registry has refused to write {self._key} for {patience_s:g} s",
                        hint="somebody else writes this name: does another instance of this id start again and again?",
                    )
            elif loop.time() >= deadline_s:
                message = f"{self._key} has been held by another for {patience_s:g} s"
                log.critical("registry: %s", message)
                self._on_clash(message)
                return False
            await asyncio.sleep(min(0.2, self._ttl_s / 4))

    async def _find(self) -> StoreItem | None:
        items = (await self._store.get_prefix(self._key)).items
        return next((item for item in items if item.key == self._key), None)

    def _note_back(self) -> None:
        if self._is_away:
            log.warning("registry: back; %s is published", self._key)
            self._is_away = False
