"""Directory: the instances of a store as an InstanceRegistry, kept up to date, and kept when the store is gone.

INVARIANTS
- While the store cannot be reached nothing is told: who watches goes on with what it knows.
- A record that vanished without a farewell is *lapsed*, not removed: its lease ended, which is no proof of death (the
  store may have been restarted, or lost its data). A farewell, or another incarnation under the same id, removes it.
- After every break the whole list is read again, and every ``reconcile_s`` anyway: no watch is trusted for long.
- Per id a watcher sees added, then any number of lapsed and added, then removed; between added and removed the
  incarnation is the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from xllm.errors import Compacted, RegistryError
from xllm.registry.records import decode_instance
from xllm.registry.registry import InstanceRecord, OnEvent, RegistryEvent
from xllm.registry.store import Store
from xllm.types.ids import InstanceId
from xllm.types.store import Snapshot, StoreEvent, StoreItem

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_MAX_BAD = 1000
_KEEP_LAPSED_S = 600.0
"""Lapsed records are forgotten here after this long, without a word: whoever has a connection judges by it."""


class Directory:
    """See the module. ``start`` it once, ``close`` it at the end. Used from one event loop."""

    def __init__(self, store: Store, prefix: str, *, token: str = "", reconcile_s: float = 10.0) -> None:
        """``token`` is what engines ask for whose record holds none."""
        self._store = store
        self._prefix = prefix
        self._token = token
        self._reconcile_s = reconcile_s
        self._records: dict[InstanceId, InstanceRecord] = {}
        self._lapsed: dict[InstanceId, float] = {}
        """Since when, by the loop's clock."""
        self._watchers: dict[int, OnEvent] = {}
        self._next_key = 0
        self._bad: set[tuple[str, bytes]] = set()
        self._task: asyncio.Task[None] | None = None
        self.is_connected = False
        """Whether the store answered last time."""

    def start(self) -> None:
        """Begin to list and watch; the store need not be there yet."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop; the store stays open."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def watch(self, on_event: OnEvent) -> Callable[[], None]:
        """See :class:`~xllm.registry.registry.InstanceRegistry`."""
        key = self._next_key
        self._next_key += 1
        for record in list(self._records.values()):
            on_event(RegistryEvent(kind="added", record=record))
        self._watchers[key] = on_event

        def unsubscribe() -> None:
            self._watchers.pop(key, None)

        return unsubscribe

    # -- private --

    async def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                snapshot = await self._store.get_prefix(self._prefix)
                self._take_snapshot(snapshot)
                pause_s = _FIRST_PAUSE_S
                await self._follow(snapshot.revision)
            except Compacted:
                await asyncio.sleep(_FIRST_PAUSE_S)
            except RegistryError as exc:
                if self.is_connected:
                    log.warning(
                        "registry: %s; going on with the last view of %d instances",
                        exc.message,
                        len(self._records),
                    )
                self.is_connected = False
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _follow(self, revision: int) -> None:
        """Apply changes until it is time to list again."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + self._reconcile_s):
                async with aclosing(self._store.watch(self._prefix, revision)) as batches:
                    async for batch in batches:
                        for event in batch:
                            self._take_event(event)
        except TimeoutError:
            return

    def _take_snapshot(self, snapshot: Snapshot) -> None:
        if not self.is_connected:
            log.info("registry: connected, %d instances are published", len(snapshot.items))
        self.is_connected = True
        present = set()
        for item in snapshot.items:
            present.add(item.key.removeprefix(self._prefix))
            self._take_item(item)
        for instance_id in self._records.keys() - present:
            self._lapse(instance_id)
        oldest_s = asyncio.get_running_loop().time() - _KEEP_LAPSED_S
        for instance_id in [name for name, since_s in self._lapsed.items() if since_s < oldest_s]:
            del self._lapsed[instance_id], self._records[instance_id]

    def _take_event(self, event: StoreEvent) -> None:
        if event.kind == "put":
            self._take_item(event.item)
        else:
            self._lapse(event.item.key.removeprefix(self._prefix))

    def _take_item(self, item: StoreItem) -> None:
        try:
            published = decode_instance(item.key, item.value)
            if item.key != self._prefix + published.info.id:  # a name is one part of a path, and has one key
                raise RegistryError(f"registry key {item.key!r} is not the key of {published.info.id!r}")
        except RegistryError as exc:
            if (item.key, item.value) not in self._bad and len(self._bad) < _MAX_BAD:
                self._bad.add((item.key, item.value))
                log.error("registry: %s", exc.message)
            return
        info = published.info
        known = self._records.get(info.id)
        if published.is_leaving:
            if known is not None and known.info.incarnation == info.incarnation:
                self._remove(info.id)
            return
        if known is not None and known.info.incarnation != info.incarnation:
            self._remove(info.id)
            known = None
        if known is None or info.id in self._lapsed:
            self._lapsed.pop(info.id, None)
            record = InstanceRecord(info=info, token=published.token or self._token, is_fenced=True)
            self._records[info.id] = record
            self._tell(RegistryEvent(kind="added", record=record))

    def _lapse(self, instance_id: InstanceId) -> None:
        record = self._records.get(instance_id)
        if record is not None and instance_id not in self._lapsed:
            self._lapsed[instance_id] = asyncio.get_running_loop().time()
            self._tell(RegistryEvent(kind="lapsed", record=record))

    def _remove(self, instance_id: InstanceId) -> None:
        self._lapsed.pop(instance_id, None)
        self._tell(RegistryEvent(kind="removed", record=self._records.pop(instance_id)))

    def _tell(self, event: RegistryEvent) -> None:
        for watcher in list(self._watchers.values()):
            watcher(event)
