"""RpcStore: the client of a RegistryListener. It connects when it is first used, and again after a loss."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import aclosing
from typing import TypeVar

from xllm.base.waits import WaitTable
from xllm.errors import RegistryError, XllmError
from xllm.registry.store import Watch
from xllm.registry.watch_queue import WatchQueue
from xllm.rpc.address import open_transport, parse_address
from xllm.rpc.codec import Codec
from xllm.rpc.failure import from_failure
from xllm.rpc.link import Link, LinkLimits
from xllm.types.store import Lease, Snapshot
from xllm.types.wire import (
    Ack,
    Failure,
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

R = TypeVar("R")
_Link = Link[FromRegistry, ToRegistry]
_ALL_SAME_VERSION = "run the same version of xLLM on both sides"


class RpcStore:
    """See :class:`~xllm.registry.store.Store`. Made inside a running event loop."""

    def __init__(
        self,
        address: str,
        *,
        token: str = "",
        timeout_s: float = 3.0,
        tls: ssl.SSLContext | None = None,
        waits: WaitTable | None = None,
    ) -> None:
        self._address = parse_address(address)
        self._hello = Hello(peer="registry client", token=token)
        self._timeout_s = timeout_s
        self._tls = tls
        self._waits = waits or WaitTable()
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()
        self._watches: dict[int, WatchQueue] = {}
        self._next_watch = 1
        self._is_closed = False

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write a key."""
        reply = await self._call(RegistryPut(key=key, value=value, lease=lease), RegistryRevision)
        if reply.revision is None:
            raise RegistryError("the registry answered a put without a revision", hint=_ALL_SAME_VERSION)
        return reply.revision

    async def try_set(
        self, key: str, value: bytes | None, *, expected_revision: int, lease: int = 0
    ) -> int | None:
        """Compare-and-set."""
        message = RegistryTrySet(key=key, value=value, expected_revision=expected_revision, lease=lease)
        return (await self._call(message, RegistryRevision)).revision

    async def get_prefix(self, prefix: str) -> Snapshot:
        """Every key under ``prefix``."""
        return (await self._call(RegistryGet(prefix=prefix), RegistrySnapshot)).snapshot

    async def watch(self, prefix: str, after_revision: int) -> Watch:
        """Every later change under ``prefix``."""
        link = await self._connect()
        watch_id, queue = self._next_watch, WatchQueue()
        self._next_watch += 1
        self._watches[watch_id] = queue  # events may come before the answer
        try:
            message = RegistryWatch(watch_id=watch_id, prefix=prefix, after_revision=after_revision)
            await self._call_on(link, message, Ack)
            async with aclosing(queue.drain(lambda: None)) as batches:
                async for batch in batches:
                    yield batch
        finally:
            self._watches.pop(watch_id, None)
            if not link.is_lost:
                link.send(0, RegistryUnwatch(watch_id=watch_id))

    async def grant_lease(self, ttl_s: float) -> Lease:
        """A new lease."""
        return (await self._call(RegistryGrant(ttl_s=ttl_s), RegistryLease)).lease

    async def keep_alive(self, lease: int) -> Lease:
        """Begin the lease's time anew."""
        return (await self._call(RegistryKeepAlive(lease=lease), RegistryLease)).lease

    async def revoke_lease(self, lease: int) -> None:
        """End a lease."""
        await self._call(RegistryRevoke(lease=lease), Ack)

    async def close(self) -> None:
        """Hang up."""
        self._is_closed = True
        if self._link is not None:
            self._link.close("closed by us")
            await self._link.closed  # bounded: the link aborts after its linger time

    # -- private --

    async def _call(self, message: ToRegistry, reply: type[R]) -> R:
        return await self._call_on(await self._connect(), message, reply)

    async def _call_on(self, link: _Link, message: ToRegistry, reply: type[R]) -> R:
        try:
            return await link.call(message, reply, deadline_s=self._timeout_s)
        except RegistryError:
            raise
        except XllmError as exc:
            raise RegistryError(f"registry {self._address}: {exc.message}", hint=exc.hint) from exc

    async def _connect(self) -> _Link:
        async with self._connecting:  # bounded: the holder connects within timeout_s
            if self._is_closed:
                raise RegistryError("the registry's client is closed")
            if self._link is None or self._link.is_lost:
                self._link = await self._open()
            return self._link

    async def _open(self) -> _Link:
        loop = asyncio.get_running_loop()
        greeted: asyncio.Future[None] = loop.create_future()
        link: _Link = Link(
            Codec(FromRegistry),
            hello=self._hello,
            speaks_first=True,
            limits=LinkLimits(),
            waits=self._waits,
            on_open=lambda: None,
            on_greeted=lambda _: greeted.set_result(None),
            on_message=self._receive,
            on_bad_call=lambda _, error: link.refuse(error),
            on_lost=self._on_lost,
        )
        try:
            with self._waits.watch(f"registry {self._address}", "connection and greeting", self._timeout_s):
                async with asyncio.timeout(self._timeout_s):
                    await open_transport(self._address, lambda: link, self._tls)
                    await asyncio.wait((greeted, link.closed), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as exc:
            raise RegistryError(
                f"no greeting from the registry at {self._address} within {self._timeout_s:g} s",
                hint="something listens there and says nothing: is it an xLLM registry, with TLS as --registry says?",
            ) from exc
        except OSError as exc:
            raise RegistryError(
                f"cannot reach the registry at {self._address}: {exc.strerror or exc}",
                hint="xllm serve --registry tcp://HOST:PORT keeps one; compare host and port, and look at the firewall",
            ) from exc
        finally:
            if not greeted.done():
                link.close("the greeting did not succeed")
        if not greeted.done():
            reason = link.failed.message if link.failed else link.closed.result()
            hint = (
                link.failed.hint
                if link.failed
                else "its log says why; is it an xLLM registry, and does TLS match?"
            )
            raise RegistryError(f"the registry at {self._address} hung up: {reason}", hint=hint)
        return link

    def _receive(self, call_id: int, message: FromRegistry) -> None:
        if isinstance(message, RegistryEvents):
            queue = self._watches.get(message.watch_id)
            if queue is not None:
                queue.put(message.events)
        elif isinstance(message, Failure) and call_id == 0 and self._link is not None:
            self._link.failed = from_failure(message)

    def _on_lost(self, reason: str) -> None:
        for queue in self._watches.values():
            queue.end(
                RegistryError(
                    f"the connection to the registry at {self._address} is lost: {reason}",
                    hint="it is opened again by itself; requests go on meanwhile",
                )
            )
