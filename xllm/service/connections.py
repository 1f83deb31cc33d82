"""Connections: one to each published instance, kept open as long as the instance is published.

It follows the registry, connects, checks who answers, and tells its owner what comes. What an instance's state is
lies in ``cluster/``; what becomes of requests is decided in ``dispatch/``.

INVARIANTS
- Per published instance there is one keeper task; after ``close`` there is none, and no open client.
- A client is in ``clients`` from the moment its instance is usable until its connection is lost.
- A connection that is lost is opened again, with growing pauses, as long as its instance is published.
- What a connection says reaches the incarnation it was opened to, or nobody.
- A reason why an instance cannot be reached is logged once, not with every vain try.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from msgspec import structs

from xllm.base.waits import WaitTable
from xllm.errors import ConfigError, InstanceLost, XllmError
from xllm.registry.registry import InstanceRecord, InstanceRegistry, RegistryEvent
from xllm.rpc.client import EngineClient
from xllm.service.cluster.cluster import Cluster
from xllm.service.cluster.instance import Instance
from xllm.service.tasks import Tasks
from xllm.types.ids import InstanceId
from xllm.types.output import OutputFrame
from xllm.types.wire import KvEvents, LoadReply

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


class ConnectionEvents(Protocol):
    """Is told what comes over the connections; must not block."""

    def on_outputs(self, instance_id: InstanceId, frame: OutputFrame) -> None:
        """One step's outputs."""
        ...

    def on_heartbeat(self, instance_id: InstanceId, reply: LoadReply) -> None:
        """Load and health."""
        ...

    def on_kv_events(self, instance_id: InstanceId, events: KvEvents) -> None:
        """Cache changes."""
        ...

    def on_connected(self, instance_id: InstanceId, *, is_same: bool) -> None:
        """A connection is up; ``is_same``: to the incarnation that was known."""
        ...

    def on_lost(self, instance_id: InstanceId, error: XllmError) -> None:
        """The connection is gone or could not be made; what ran there is out of reach."""
        ...


class Connections:
    """See the module. ``watch`` once, ``close`` at the end; used from one event loop."""

    def __init__(self, cluster: Cluster, *, peer: str, waits: WaitTable, tasks: Tasks) -> None:
        self._cluster = cluster
        self._peer = peer
        self._waits = waits
        self._tasks = tasks
        self._keepers: dict[InstanceId, asyncio.Task[None]] = {}
        self._events: ConnectionEvents | None = None
        self._unwatch: Callable[[], None] | None = None
        self._is_closing = False
        self.clients: dict[InstanceId, EngineClient] = {}
        """Open connections."""

    def watch(self, registry: InstanceRegistry, events: ConnectionEvents) -> None:
        """Follow the registry and tell ``events`` what comes."""
        self._events = events
        self._unwatch = registry.watch(self._on_registry)

    async def close(self) -> None:
        """Hang up everywhere."""
        self._is_closing = True
        if self._unwatch is not None:
            self._unwatch()
        keepers = list(self._keepers.values())
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        for client in list(self.clients.values()):
            await client.close()
        self._keepers.clear()
        self.clients.clear()

    def cut(self, instance_id: InstanceId) -> bool:
        """Close an open connection; its keeper opens another one. False: none is open."""
        client = self.clients.get(instance_id)
        if client is None or client.is_lost:
            return False
        self._tasks.spawn(client.close())
        return True

    def forget(self, instance_id: InstanceId, reason: str) -> None:
        """End keeper and connection of an instance; what it had is lost."""
        keeper = self._keepers.pop(instance_id, None)
        if keeper is not None:
            keeper.cancel()
        self._cluster.remove(instance_id)
        assert self._events is not None
        self._events.on_lost(instance_id, InstanceLost(f"instance {instance_id} {reason}"))
        client = self.clients.pop(instance_id, None)
        if client is not None:
            self._tasks.spawn(client.close())

    async def follow_cache(self, instance_id: InstanceId) -> bool:
        """Subscribe (again) to an instance's KV events; False: without them it is routed to by load alone."""
        client = self.clients.get(instance_id)
        if client is None:
            return False
        try:
            await client.subscribe_kv_events()
        except XllmError as error:
            log.warning("instance %s sends no KV events: %s", instance_id, error.message)
            return False
        return True

    # -- private --

    def _on_registry(self, event: RegistryEvent) -> None:
        info = event.record.info
        known = self._cluster.get(info.id)
        if known is not None and known.info.incarnation == info.incarnation and event.kind != "removed":
            known.on_lease(event.kind == "added")
            return
        if known is not None:
            self.forget(info.id, "was withdrawn")
        if event.kind == "added":
            try:
                instance = self._cluster.add(info)
            except ConfigError as error:
                log.error("instance %s is refused: %s", info.id, error.message)
                return
            self._keepers[info.id] = asyncio.create_task(self._keep(event.record, instance))
        elif known is None:
            self._cluster.remove(info.id)

    async def _keep(self, record: InstanceRecord, instance: Instance) -> None:
        """Hold a connection to one instance for as long as it is published."""
        pause_s = _FIRST_PAUSE_S
        while True:
            lost = asyncio.Event()
            try:
                client = await self._connect(record, instance, lost)
            except XllmError as error:
                self._note_lost(instance, error)
            else:
                pause_s = _FIRST_PAUSE_S
                try:
                    await lost.wait()  # unbounded by nature: a connection lasts as long as it lasts
                finally:
                    if self.clients.get(record.info.id) is client:
                        del self.clients[record.info.id]
                    await client.close()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _connect(self, record: InstanceRecord, instance: Instance, lost: asyncio.Event) -> EngineClient:
        instance_id = record.info.id
        events = self._events
        assert events is not None

        is_up = False

        def is_current() -> bool:
            # A connection may outlive its incarnation: what it still says must not touch the next one of that name.
            return self._cluster.get(instance_id) is instance

        def on_lost(error: InstanceLost) -> None:
            # Before it is up, whoever waits for it below tells why it failed.
            if is_up and is_current():
                self._note_lost(instance, error)
            lost.set()

        client = await EngineClient.connect(
            record.info.address,
            # An engine gives a peer's requests to its newest connection. A stale record of an address that another
            # engine has now must not take that one's away, so every incarnation has a peer of its own.
            peer=f"{self._peer}/{record.info.incarnation}",
            token=record.token,
            on_outputs=lambda frame: events.on_outputs(instance_id, frame) if is_current() else None,
            on_heartbeat=lambda reply: events.on_heartbeat(instance_id, reply) if is_current() else None,
            on_kv_events=lambda found: events.on_kv_events(instance_id, found) if is_current() else None,
            on_lost=on_lost,
            waits=self._waits,
        )
        try:
            info = await client.info()
            if record.is_fenced and info.incarnation != record.info.incarnation:
                raise InstanceLost(
                    f"{record.info.address} is answered by another incarnation, {info.incarnation}",
                    hint="its old record goes with its lease; if it does not, two engines share an address: give"
                    " each its own",
                )
            # What answers counts, not what somebody has published of it.
            info = structs.replace(info, id=instance_id)
            self._cluster.check(info)
        except BaseException:  # cancelled, too: nobody else knows of this connection
            await client.close()
            raise
        is_up = True
        is_same = instance.info.incarnation == info.incarnation
        self._cluster.on_connected(info)
        self.clients[instance_id] = client
        events.on_connected(instance_id, is_same=is_same)
        return client

    def _note_lost(self, instance: Instance, error: XllmError) -> None:
        is_news = instance.on_lost(error.message)
        if is_news and not self._is_closing:
            log.warning("instance %s: %s", instance.info.id, error.message)
        assert self._events is not None
        self._events.on_lost(instance.info.id, error)
