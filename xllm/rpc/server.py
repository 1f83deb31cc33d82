"""The engine's side of the RPC: an engine implements EngineApi; the listener calls it on the event loop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Literal, Protocol

from xllm.base.waits import WaitTable
from xllm.errors import ConfigError, ProtocolError
from xllm.rpc.address import Address, open_server, parse_address
from xllm.rpc.answering import answer_call
from xllm.rpc.codec import build_engine_codec
from xllm.rpc.failure import to_failure
from xllm.rpc.link import Link, LinkLimits
from xllm.types.ids import RequestId
from xllm.types.instance import HealthReport, InstanceInfo
from xllm.types.kv_event import KvEventBatch
from xllm.types.output import OutputFrame
from xllm.types.request import Request
from xllm.types.wire import (
    Abort,
    Ack,
    DebugReply,
    DebugRequest,
    DebugWaits,
    Drain,
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

DebugRow = dict[str, str | int | float | bool | None]


class EngineApi(Protocol):
    """What an engine does when a service asks. Every method returns at once; an XllmError refuses the call.

    ``connected`` comes before every other call of a connection, ``disconnected`` exactly once after them.
    """

    def connected(self, connection: EngineConnection) -> None:
        """A peer has greeted."""

    def disconnected(self, connection: EngineConnection, reason: str) -> None:
        """Its connection is gone."""

    def submit(self, connection: EngineConnection, request: Request) -> None:
        """Queue; raises RequestError or CapacityError when refused."""

    def abort(
        self,
        connection: EngineConnection,
        request_id: RequestId,
        attempt: int,
        choice: int | None,
        reason: str,
    ) -> None:
        """End it; an unknown id is no error."""

    def load(self) -> LoadReply:
        """Load and health now."""

    def health(self) -> HealthReport:
        """Progress now; must not wait for the executor."""

    def info(self) -> InstanceInfo:
        """Identity and capabilities."""

    def drain(self, timeout_s: float, migrate_after_s: float | None = None) -> None:
        """Begin to drain."""

    def profile(self, action: Literal["start", "stop"]) -> None:
        """Start or stop the profiler."""

    def reset_prefix_cache(self) -> None:
        """Forget unused cached blocks."""

    def subscribe_kv_events(self, connection: EngineConnection) -> None:
        """Send a snapshot at once and every later batch."""

    def debug_request(self, request_id: RequestId) -> Sequence[DebugRow]:
        """Decisions about a request."""

    def debug_waits(self) -> Sequence[DebugRow]:
        """Every wait of the process."""

    def shutdown(self) -> None:
        """Begin to end the process."""


class EngineConnection:
    """One greeted service connection, as the engine sees it."""

    def __init__(
        self,
        api: EngineApi,
        hello: Hello,
        limits: LinkLimits,
        waits: WaitTable,
        connections: set[EngineConnection],
    ) -> None:
        """``connections`` holds this one from its opening (after any TLS handshake) to its loss."""
        self._api = api
        self.link: Link[ToEngine, FromEngine] = Link(
            build_engine_codec(),
            hello=hello,
            speaks_first=False,
            limits=limits,
            waits=waits,
            on_open=lambda: connections.add(self),
            on_greeted=lambda _: api.connected(self),
            on_message=self._serve,
            on_bad_call=lambda call_id, error: self.link.send(call_id, to_failure(error)),
            on_lost=lambda reason: api.disconnected(self, reason),
        )
        self.link.closed.add_done_callback(lambda _: connections.discard(self))

    @property
    def peer(self) -> str:
        """The service's id; "" = anonymous."""
        return self.link.peer

    @property
    def is_lost(self) -> bool:
        """Whether sending is pointless."""
        return self.link.is_lost

    def send_outputs(self, frame: OutputFrame) -> None:
        """One frame per engine step."""
        self.link.send(0, Outputs(frame=frame))

    def send_heartbeat(self, reply: LoadReply) -> None:
        """Load and health, unasked."""
        self.link.send(0, reply)

    def send_kv_events(self, batch: KvEventBatch, *, is_snapshot: bool = False) -> None:
        """Cache changes, or the whole cache."""
        self.link.send(0, KvEvents(batch=batch, is_snapshot=is_snapshot))

    def close(self, reason: str) -> None:
        """Hang up after what is queued has left."""
        self.link.close(reason)

    def _serve(self, call_id: int, message: ToEngine) -> None:
        answer_call(self.link, call_id, message, self._answer)

    def _answer(self, message: ToEngine) -> FromEngine:
        api = self._api
        match message:
            case Submit():
                api.submit(self, message.request)
            case Abort():
                api.abort(self, message.request_id, message.attempt, message.choice, message.reason)
            case GetLoad():
                return api.load()
            case GetHealth():
                return HealthReply(health=api.health())
            case GetInfo():
                return InfoReply(info=api.info())
            case Drain():
                api.drain(message.timeout_s, message.migrate_after_s)
            case Profile():
                api.profile(message.action)
            case ResetPrefixCache():
                api.reset_prefix_cache()
            case SubscribeKvEvents():
                api.subscribe_kv_events(self)
            case DebugRequest():
                return DebugReply(rows=tuple(api.debug_request(message.request_id)))
            case DebugWaits():
                return DebugReply(rows=tuple(api.debug_waits()))
            case Shutdown():
                api.shutdown()
            case Hello():
                raise ProtocolError("a second Hello on one connection")
        return Ack()


class EngineListener:
    """Accepts service connections for one engine; made by :meth:`start`."""

    def __init__(self, api: EngineApi, hello: Hello, limits: LinkLimits, waits: WaitTable) -> None:
        self._api = api
        self._hello = hello
        self._limits = limits
        self._waits = waits
        self._server: asyncio.AbstractServer | None = None
        self._connections: set[EngineConnection] = set()
        self.address = Address()

    @classmethod
    async def start(
        cls,
        address: str,
        api: EngineApi,
        *,
        engine_id: str,
        token: str = "",
        tls: ssl.SSLContext | None = None,
        limits: LinkLimits | None = None,
        waits: WaitTable | None = None,
    ) -> EngineListener:
        """Listen on ``address`` (port 0: any free one; see ``.address``).

        Raises:
            ConfigError: it cannot be listened on, or other machines could reach it and there is no token.
        """
        parsed = parse_address(address)
        if not parsed.is_local and not token:
            raise ConfigError(
                f"the engine would listen on {address} for anybody",
                hint="set a token, or use 127.0.0.1 or a unix socket",
            )
        waits = waits or WaitTable()
        listener = cls(api, Hello(peer=engine_id, token=token), limits or LinkLimits(), waits)
        listener._server, listener.address = await open_server(parsed, listener._accept, tls)
        return listener

    async def close(self, reason: str) -> None:
        """Stop accepting, flush every connection and hang up; bounded by the links' linger time."""
        if self._server is not None:
            self._server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.close(reason)
        if connections:
            await asyncio.wait([connection.link.closed for connection in connections])

    def _accept(self) -> asyncio.Protocol:
        return EngineConnection(self._api, self._hello, self._limits, self._waits, self._connections).link
