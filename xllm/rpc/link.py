"""One connection: greeting, joined writes, back-pressure, calls with deadlines, and its loss.

INVARIANTS
- Nothing but a Hello is accepted before the peer's Hello was verified.
- Writes of one loop turn leave in one ``transport.write``.
- At most ``max_buffered_bytes`` wait for a peer that does not read; beyond that the connection is aborted.
- Every call ends: with its reply, its deadline, or the loss of the connection.
- ``on_lost`` is called exactly once for a greeted connection, and nothing is delivered after it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from xllm.base.waits import WaitTable
from xllm.errors import InstanceLost, ProtocolError, RequestError, Unauthorized, XllmError
from xllm.rpc.codec import Codec
from xllm.rpc.failure import from_failure, to_failure
from xllm.rpc.frame import MAX_CALL_ID, FrameReader
from xllm.types.wire import PROTOCOL_VERSION, Failure, Hello

log = logging.getLogger(__name__)

In = TypeVar("In")
Out = TypeVar("Out")
R = TypeVar("R")

JOIN_BYTES = 256 * 1024
"""Frames of one turn are joined up to this size; more is handed to the transport at once."""
GREETING_FRAME_BYTES = 16 * 1024
"""Largest frame taken from a peer that has not proved itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkLimits:
    """Bounds of one connection."""

    max_frame_bytes: int = 64 * 1024 * 1024
    """Larger frames are neither sent nor accepted."""
    max_buffered_bytes: int = 64 * 1024 * 1024
    """What may wait for a peer that does not read before it is cut."""
    high_water_bytes: int = 1024 * 1024
    """Above this, calls wait before they are written."""
    greeting_timeout_s: float = 5.0
    """A connection without a valid Hello ends after this."""
    linger_s: float = 2.0
    """On close, how long unsent bytes may take to leave."""


class Link(asyncio.Protocol, Generic[In, Out]):
    """A framed connection of either side; see the module's invariants.

    ``on_open()`` comes first, then ``on_greeted(hello)``; then ``on_message(call_id, message)`` for whatever
    that answers no call of ours, and ``on_bad_call(call_id, error)`` for a well-formed call whose values are
    refused by their type.
    """

    def __init__(
        self,
        codec: Codec[In, Out],
        *,
        hello: Hello,
        speaks_first: bool,
        limits: LinkLimits,
        waits: WaitTable,
        on_open: Callable[[], None],
        on_greeted: Callable[[Hello], None],
        on_message: Callable[[int, In], None],
        on_bad_call: Callable[[int, XllmError], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.peer = ""
        """The peer's id, from its Hello."""
        self.limits = limits
        self._codec = codec
        self._hello = hello
        self._speaks_first = speaks_first
        self._waits = waits
        self._on_open = on_open
        self._on_greeted = on_greeted
        self._on_message = on_message
        self._on_bad_call = on_bad_call
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(limits.max_frame_bytes if speaks_first else GREETING_FRAME_BYTES)
        self._transport: asyncio.Transport | None = None
        self._out = bytearray()
        self._flush_planned = False
        self._paused = False
        self._writable: asyncio.Future[None] | None = None
        self._calls: dict[int, asyncio.Future[In]] = {}
        self._next_call = 1
        self._greeted = False
        self._reason = ""
        self._timer: asyncio.TimerHandle | None = None
        self.failed: XllmError | None = None
        """Why the peer refused us, where it said so."""
        self.closed: asyncio.Future[str] = self._loop.create_future()
        """Done with the reason once the connection is gone."""

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the greeting."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self.limits.high_water_bytes)
        self._timer = self._loop.call_later(
            self.limits.greeting_timeout_s,
            self._abort,
            f"no hello within {self.limits.greeting_timeout_s:g} s",
        )
        self._on_open()
        if self._speaks_first:
            self._append(0, self._hello)

    def data_received(self, data: bytes) -> None:
        """Deliver every complete frame; a malformed one ends the connection."""
        try:
            for call_id, body in self._reader.feed(data):
                if self.is_lost:
                    return
                self._deliver(call_id, body)
        except ProtocolError as exc:
            self.refuse(exc)

    def eof_received(self) -> bool:
        """The peer has finished sending: close our side too."""
        return False

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits for the peer and tell the owner, once."""
        if self._timer is not None:
            self._timer.cancel()
        self._reason = self._reason or (
            f"{type(exc).__name__}: {exc}" if exc else "the peer closed the connection"
        )
        self._out.clear()
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(self._lost_error())
        self._wake_writers()
        self.closed.set_result(self._reason)
        if self._greeted:
            self._on_lost(self._reason)

    # -- for the owner --

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be sent any more (closing counts)."""
        return bool(self._reason)

    @property
    def buffered_bytes(self) -> int:
        """Bytes accepted by :meth:`send` and not yet taken by the operating system."""
        in_transport = (
            self._transport.get_write_buffer_size() if self._transport and not self.closed.done() else 0
        )
        return len(self._out) + in_transport

    def send(self, call_id: int, message: Out) -> None:
        """Queue one message; silently dropped when the connection is lost (the owner was or will be told).

        Raises:
            ProtocolError: the message is too large or does not fit msgpack.
        """
        if not self._reason:
            self._append(call_id, message)

    async def call(self, message: Out, reply: type[R], *, deadline_s: float) -> R:
        """Send ``message`` and return its reply.

        Raises:
            XllmError: the typed error the peer refused it with.
            DeadlineExceeded: no reply within ``deadline_s``.
            InstanceLost: the connection is or gets lost.
            ProtocolError: the reply is of another type.
        """
        name = type(message).__name__
        answer = await self._waits.bounded(
            self._call(message), owner=f"rpc to {self.peer}", reason=f"reply to {name}", timeout_s=deadline_s
        )
        if isinstance(answer, Failure):
            raise from_failure(answer)
        if not isinstance(answer, reply):
            raise ProtocolError(
                f"{self.peer} answered {name} with {type(answer).__name__}, not {reply.__name__}"
            )
        return answer

    def refuse(self, error: XllmError) -> None:
        """Tell the peer what is wrong with it and close."""
        log.warning("connection to %s refused: %s", self.peer or "unknown peer", error.message)
        if not self._reason:
            self._append(0, to_failure(error))
        self.close(error.message)

    def close(self, reason: str) -> None:
        """Close once what is queued has left, at most ``linger_s`` later; waiters are told ``reason``."""
        if self._reason:
            return
        if self._transport is None:
            self._reason = reason
            return
        self._flush(force=True)
        self._reason = reason
        self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self.limits.linger_s, self._transport.abort)
        self._wake_writers()

    # -- private --

    async def _call(self, message: Out) -> In:
        while not self._reason and (self._paused or len(self._out) > self.limits.high_water_bytes):
            if self._writable is None:
                self._writable = self._loop.create_future()
            await asyncio.shield(self._writable)
        if self._reason:
            raise self._lost_error()
        call_id = self._next_call
        self._next_call = call_id % MAX_CALL_ID + 1
        future: asyncio.Future[In] = self._loop.create_future()
        self._append(call_id, message)
        self._calls[call_id] = future
        try:
            return await future
        finally:
            self._calls.pop(call_id, None)

    def _deliver(self, call_id: int, body: memoryview) -> None:
        try:
            message = self._codec.decode(body)
        except RequestError as exc:
            if not self._greeted:
                raise ProtocolError(f"not a hello: {exc.message}") from exc
            self._on_bad_call(call_id, exc)
            return
        if not self._greeted:
            self._greet(message)
            return
        future = self._calls.get(call_id) if call_id else None
        if future is None:
            self._on_message(call_id, message)
        elif not future.done():
            future.set_result(message)

    def _greet(self, message: Any) -> None:
        if isinstance(message, Failure):
            self.failed = from_failure(message)
            self.close(f"refused by the peer: {self.failed.message}")
            return
        if not isinstance(message, Hello):
            raise ProtocolError(f"the first message is {type(message).__name__}, not Hello")
        if message.protocol != PROTOCOL_VERSION:
            raise ProtocolError(
                f"the peer speaks protocol {message.protocol}, this side {PROTOCOL_VERSION}",
                hint="run the same xllm version on both sides",
            )
        if not hmac.compare_digest(message.token.encode(), self._hello.token.encode()):
            self.failed = Unauthorized(
                "the shared token is missing or wrong", hint="use the same token on both sides"
            )
            self.refuse(self.failed)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._greeted = True
        self.peer = message.peer
        self._reader.max_frame_bytes = self.limits.max_frame_bytes
        if not self._speaks_first:
            self._append(0, self._hello)
        self._on_greeted(message)

    def _append(self, call_id: int, message: Any) -> None:
        self._codec.append_frame(self._out, call_id, message, self.limits.max_frame_bytes)
        if self._paused:
            if len(self._out) > self.limits.max_buffered_bytes:
                self._abort(f"the peer does not read: {self.buffered_bytes} bytes wait for it")
        elif len(self._out) > JOIN_BYTES:
            self._flush()
        elif not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self, force: bool = False) -> None:
        self._flush_planned = False
        if self._out and self._transport is not None and not self._reason and (force or not self._paused):
            # The transport keeps what it cannot send at once, so it gets the buffer and we start another.
            out, self._out = self._out, bytearray()
            self._transport.write(out)
        if not self._paused and len(self._out) <= self.limits.high_water_bytes:
            self._wake_writers()

    def _wake_writers(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def _abort(self, reason: str) -> None:
        if self._reason:
            return
        log.warning("connection to %s cut: %s", self.peer or "unknown peer", reason)
        self._reason = reason
        self._out.clear()
        if self._transport is not None:
            self._transport.abort()
        self._wake_writers()

    def _lost_error(self) -> InstanceLost:
        return InstanceLost(f"connection to {self.peer or 'the peer'} is lost: {self._reason}")
