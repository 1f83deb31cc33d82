"""EngineClient: the typed stub of one engine, used by the service."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from xllm.base.waits import WaitTable
from xllm.errors import DeadlineExceeded, InstanceLost, XllmError
from xllm.rpc.address import open_transport, parse_address
from xllm.rpc.codec import build_service_codec
from xllm.rpc.failure import from_failure
from xllm.rpc.link import Link, LinkLimits
from xllm.types.ids import RequestId
from xllm.types.instance import HealthReport, InstanceInfo
from xllm.types.output import OutputFrame
from xllm.types.request import Request
from xllm.types.wire import (
    Abort,
    Ack,
    DebugReply,
    DebugRequest,
    DebugWaits,
    Drain,
    Failure,
    FromEngine,
    GetHealth,
    GetInfo,
    GetLoad,
    HealthReply,
    Hello,
    InfoReply,
    KvEvents,
    LoadReply,
    Outputs,
    Profile,
    ResetPrefixCache,
    Shutdown,
    Submit,
    SubscribeKvEvents,
    ToEngine,
)

R = TypeVar("R")
DebugRow = dict[str, str | int | float | bool | None]


def _ignore(_: Any) -> None:
    """A callback nobody asked for."""


class EngineClient:
    """One connection to one engine. Made by :meth:`connect`; dead for good once lost (connect again).

    Callbacks run on the event loop, in the order the engine sent, and must not block. Outputs of a request
    may come before :meth:`submit` has returned: register the request first. ``on_lost`` is called exactly
    once, also after :meth:`close`. Every call takes ``deadline_s`` and raises the typed error of the engine,
    DeadlineExceeded or InstanceLost.
    """

    def __init__(self, address: str, link: Link[FromEngine, ToEngine], deadline_s: float) -> None:
        self.address = address
        self._link = link
        self._deadline_s = deadline_s

    @classmethod
    async def connect(
        cls,
        address: str,
        *,
        peer: str,
        token: str = "",
        tls: ssl.SSLContext | None = None,
        deadline_s: float = 10.0,
        on_outputs: Callable[[OutputFrame], None] = _ignore,
        on_heartbeat: Callable[[LoadReply], None] = _ignore,
        on_kv_events: Callable[[KvEvents], None] = _ignore,
        on_lost: Callable[[InstanceLost], None] = _ignore,
        waits: WaitTable | None = None,
    ) -> EngineClient:
        """Connect and greet within ``deadline_s``, which is also the default deadline of calls.

        ``peer`` names this replica: a later connection under the same non-empty name takes over its requests.

        Raises:
            InstanceLost: nobody answers at ``address``.
            Unauthorized, ProtocolError: the greeting failed.
            DeadlineExceeded: it took too long.
        """
        waits = waits or WaitTable()
        loop = asyncio.get_running_loop()
        greeted: asyncio.Future[None] = loop.create_future()

        def on_message(call_id: int, message: FromEngine) -> None:
            if isinstance(message, Outputs):
                on_outputs(message.frame)
            elif isinstance(message, LoadReply) and call_id == 0:
                on_heartbeat(message)
            elif isinstance(message, KvEvents):
                on_kv_events(message)
            elif isinstance(message, Failure) and call_id == 0:
                link.failed = from_failure(message)  # the engine says why it hangs up

        def build_link() -> Link[FromEngine, ToEngine]:
            return Link(
                build_service_codec(),
                hello=Hello(peer=peer, token=token),
                speaks_first=True,
                limits=LinkLimits(),
                waits=waits,
                on_open=lambda: None,
                on_greeted=lambda hello: greeted.set_result(None),
                on_message=on_message,
                on_bad_call=lambda call_id, error: link.refuse(error),
                on_lost=lambda reason: on_lost(_lost(address, reason, link.failed)),
            )

        link = build_link()
        connected = False
        try:
            with waits.watch(f"rpc to {address}", "connection and greeting", deadline_s):
                async with asyncio.timeout(deadline_s):
                    await open_transport(parse_address(address), lambda: link, tls)
                    await asyncio.wait((greeted, link.closed), return_when=asyncio.FIRST_COMPLETED)
            connected = greeted.done()
        except TimeoutError as exc:
            raise DeadlineExceeded(f"no greeting from {address} within {deadline_s:g} s") from exc
        except OSError as exc:
            raise InstanceLost(f"cannot connect to {address}: {exc.strerror or exc}") from exc
        finally:
            if not connected:
                link.close("the greeting did not succeed")
        if not connected:
            raise link.failed or _lost(address, link.closed.result(), None)
        return cls(address, link, deadline_s)

    @property
    def engine_id(self) -> str:
        """The engine's id, from its greeting."""
        return self._link.peer

    @property
    def is_lost(self) -> bool:
        """Whether the connection is gone or going."""
        return self._link.is_lost

    async def submit(self, request: Request, *, deadline_s: float | None = None) -> None:
        """Queue ``request``; from the acknowledgement on, every choice ends in exactly one terminal output.

        On DeadlineExceeded the request may or may not be queued: abort it.
        """
        await self._call(Submit(request=request), Ack, deadline_s)

    async def abort(
        self,
        request_id: RequestId,
        *,
        attempt: int = 0,
        choice: int | None = None,
        reason: str = "abort",
        deadline_s: float | None = None,
    ) -> None:
        """End a request, or one choice of it; its terminal outputs still come. An unknown id is fine."""
        message = Abort(request_id=request_id, attempt=attempt, choice=choice, reason=reason)
        await self._call(message, Ack, deadline_s)

    def send_abort(
        self, request_id: RequestId, *, attempt: int = 0, choice: int | None = None, reason: str = "abort"
    ) -> None:
        """:meth:`abort` without waiting, for callers that cannot await (a client's disconnect)."""
        self._link.send(0, Abort(request_id=request_id, attempt=attempt, choice=choice, reason=reason))

    async def load(self, *, deadline_s: float | None = None) -> LoadReply:
        """Load and health now."""
        return await self._call(GetLoad(), LoadReply, deadline_s)

    async def health(self, *, deadline_s: float | None = None) -> HealthReport:
        """Progress now; answered even while a forward hangs."""
        return (await self._call(GetHealth(), HealthReply, deadline_s)).health

    async def info(self, *, deadline_s: float | None = None) -> InstanceInfo:
        """Identity and capabilities."""
        return (await self._call(GetInfo(), InfoReply, deadline_s)).info

    async def drain(
        self, timeout_s: float, migrate_after_s: float | None = None, *, deadline_s: float | None = None
    ) -> None:
        """Make the engine refuse new requests, finish its own within ``timeout_s``, then abort the rest.

        From ``migrate_after_s`` on services let its requests go on elsewhere; None: they stay. Returns when the engine
        has begun; ``health().num_unfinished`` tells how far it is.
        """
        await self._call(Drain(timeout_s=timeout_s, migrate_after_s=migrate_after_s), Ack, deadline_s)

    async def start_profile(self, *, deadline_s: float | None = None) -> None:
        """Start the executor's profiler."""
        await self._call(Profile(action="start"), Ack, deadline_s)

    async def stop_profile(self, *, deadline_s: float | None = None) -> None:
        """Stop the profiler and let the engine write its trace."""
        await self._call(Profile(action="stop"), Ack, deadline_s)

    async def reset_prefix_cache(self, *, deadline_s: float | None = None) -> None:
        """Forget every cached block no sequence uses."""
        await self._call(ResetPrefixCache(), Ack, deadline_s)

    async def subscribe_kv_events(self, *, deadline_s: float | None = None) -> None:
        """From now on ``on_kv_events`` is called: first with a snapshot, then with every batch of changes."""
        await self._call(SubscribeKvEvents(), Ack, deadline_s)

    async def debug_request(
        self, request_id: RequestId, *, deadline_s: float | None = None
    ) -> list[DebugRow]:
        """Scheduling decisions about a request, oldest first."""
        return list((await self._call(DebugRequest(request_id=request_id), DebugReply, deadline_s)).rows)

    async def debug_waits(self, *, deadline_s: float | None = None) -> list[DebugRow]:
        """Every wait of the engine process with owner, reason, age and remaining time."""
        return list((await self._call(DebugWaits(), DebugReply, deadline_s)).rows)

    async def shutdown(self, *, deadline_s: float | None = None) -> None:
        """End the engine process; unfinished requests end with an error output first."""
        await self._call(Shutdown(), Ack, deadline_s)

    async def close(self) -> None:
        """Hang up; calls in flight raise InstanceLost."""
        self._link.close("closed by us")
        await self._link.closed  # bounded: the link aborts after its linger time

    async def _call(self, message: ToEngine, reply: type[R], deadline_s: float | None) -> R:
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        return await self._link.call(message, reply, deadline_s=deadline_s)


def _lost(address: str, reason: str, failed: XllmError | None) -> InstanceLost:
    said = f" ({failed.message})" if failed is not None else ""
    return InstanceLost(f"connection to {address} is lost: {reason}{said}")
