"""RegistryListener: carries a LocalStore on our RPC, so that the processes of one machine need no other registry."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import aclosing

from xllm.base.waits import WaitTable
from xllm.errors import ConfigError, ProtocolError, RegistryError, XllmError
from xllm.registry.local import LocalStore
from xllm.registry.store import Watch
from xllm.rpc.address import Address, open_server, parse_address
from xllm.rpc.answering import answer_call
from xllm.rpc.codec import Codec
from xllm.rpc.failure import to_failure
from xllm.rpc.link import Link, LinkLimits
from xllm.types.wire import (
    Ack,
    FromRegistry,
    Hello,
    RegistryEvents,
    RegistryGet,
    RegistryGrant,
    RegistryKeepAlive,
    RegistryLease,
    RegistryPut,
    RegistryRevision,
    RegistryRevoke,
    RegistrySnapshot,
    RegistryTrySet,
    RegistryUnwatch,
    RegistryWatch,
    ToRegistry,
)

MAX_WATCHES = 64
"""Watches of one connection."""
LIMITS = LinkLimits(max_frame_bytes=16 * 1024 * 1024, max_buffered_bytes=16 * 1024 * 1024)


class _Connection:
    """One greeted client; its watches end with it, its leases do not."""

    def __init__(
        self, store: LocalStore, hello: Hello, waits: WaitTable, connections: set[_Connection]
    ) -> None:
        self._store = store
        self._watches: dict[int, asyncio.Task[None]] = {}
        self.link: Link[ToRegistry, FromRegistry] = Link(
            Codec(ToRegistry),
            hello=hello,
            speaks_first=False,
            limits=LIMITS,
            waits=waits,
            on_open=lambda: connections.add(self),
            on_greeted=lambda _: None,
            on_message=self._receive,
            on_bad_call=lambda call_id, error: self.link.send(call_id, to_failure(error)),
            on_lost=lambda _: self._end_watches(),
        )
        self.link.closed.add_done_callback(lambda _: connections.discard(self))

    def _receive(self, call_id: int, message: ToRegistry) -> None:
        answer_call(self.link, call_id, message, self._answer)

    def _answer(self, message: ToRegistry) -> FromRegistry:
        state = self._store.state
        match message:
            case RegistryPut():
                return RegistryRevision(revision=state.put(message.key, message.value, lease=message.lease))
            case RegistryTrySet():
                revision = state.try_set(
                    message.key,
                    message.value,
                    expected_revision=message.expected_revision,
                    lease=message.lease,
                )
                return RegistryRevision(revision=revision)
            case RegistryGet():
                return RegistrySnapshot(snapshot=state.get_prefix(message.prefix))
            case RegistryGrant():
                return RegistryLease(lease=self._store.grant(message.ttl_s))
            case RegistryKeepAlive():
                return RegistryLease(lease=state.keep_alive(message.lease))
            case RegistryRevoke():
                state.revoke_lease(message.lease)
            case RegistryWatch():
                self._watch(message)
            case RegistryUnwatch():
                task = self._watches.pop(message.watch_id, None)
                if task is not None:
                    task.cancel()
            case Hello():
                raise ProtocolError("a second Hello on one connection")
        return Ack()

    def _watch(self, message: RegistryWatch) -> None:
        if len(self._watches) >= MAX_WATCHES or message.watch_id in self._watches:
            raise RegistryError(f"watch {message.watch_id} of this connection is one too many, or in use")
        watch = self._store.begin_watch(message.prefix, message.after_revision)
        self._watches[message.watch_id] = asyncio.create_task(self._feed(message.watch_id, watch))

    async def _feed(self, watch_id: int, watch: Watch) -> None:
        try:
            async with aclosing(watch):
                async for events in watch:
                    self.link.send(0, RegistryEvents(watch_id=watch_id, events=events))
        except XllmError as exc:
            self.link.close(exc.message)  # the client lists again on its next connection

    def _end_watches(self) -> None:
        for task in self._watches.values():
            task.cancel()
        self._watches.clear()


class RegistryListener:
    """Accepts clients of one store; made by :meth:`start`."""

    def __init__(self, store: LocalStore, hello: Hello, waits: WaitTable) -> None:
        self._store = store
        self._hello = hello
        self._waits = waits
        self._server: asyncio.AbstractServer | None = None
        self._connections: set[_Connection] = set()
        self.address = Address()

    @classmethod
    async def start(
        cls,
        address: str,
        store: LocalStore,
        *,
        token: str = "",
        tls: ssl.SSLContext | None = None,
        waits: WaitTable | None = None,
    ) -> RegistryListener:
        """Listen on ``address`` (port 0: any free one; see ``.address``).

        Raises:
            ConfigError: it cannot be listened on, or other machines could reach it and there is no token.
        """
        parsed = parse_address(address)
        if not parsed.is_local and not token:
            raise ConfigError(
                f"the registry would listen on {address} for anybody",
                hint="set --registry-token, or use 127.0.0.1 or a unix socket",
            )
        listener = cls(store, Hello(peer="registry", token=token), waits or WaitTable())
        listener._server, listener.address = await open_server(parsed, listener._accept, tls)
        return listener

    async def close(self) -> None:
        """Stop accepting and hang up; bounded by the links' linger time."""
        if self._server is not None:
            self._server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.link.close("the registry has ended")
        if connections:
            await asyncio.wait([connection.link.closed for connection in connections])

    def _accept(self) -> asyncio.Protocol:
        return _Connection(self._store, self._hello, self._waits, self._connections).link
