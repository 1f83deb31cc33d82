"""Every message of every socket, versioned. Bodies are msgspec msgpack; nothing else is ever decoded from a socket.

A connection starts with :class:`Hello` from both sides. Requests are tagged structs; the frame around them carries a
call id. Outputs flow unasked on the connection that submitted their request.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from xllm.types.ids import RequestId
from xllm.types.instance import HealthReport, InstanceInfo, LoadReport
from xllm.types.kv_event import KvEventBatch
from xllm.types.output import OutputError, OutputFrame
from xllm.types.request import Request

PROTOCOL_VERSION = 1


class Hello(Struct, frozen=True, kw_only=True, tag="hello"):
    """First message of each side; another major version is refused with a reason."""

    protocol: int = PROTOCOL_VERSION
    peer: str = ""
    """Who speaks: a service replica's or an engine's id."""
    token: str = ""
    """Shared secret where one is configured; compared in constant time."""


class Submit(Struct, frozen=True, kw_only=True, tag="submit"):
    """Run a request; answered by :class:`Ack` once it is queued or by :class:`Failure`."""

    request: Request


class Abort(Struct, frozen=True, kw_only=True, tag="abort"):
    """End a request (one attempt of it); its choices each still send their terminal output."""

    request_id: RequestId
    attempt: int = 0
    choice: int | None = None
    """Only this choice, or all."""
    reason: str = "abort"
    """``stop`` when the edge found a stop string: the choice then ends as stopped."""


class GetLoad(Struct, frozen=True, tag="get_load"):
    """Answered by :class:`LoadReply`."""


class GetHealth(Struct, frozen=True, tag="get_health"):
    """Answered at once by :class:`HealthReply`; never queued behind requests."""


class GetInfo(Struct, frozen=True, tag="get_info"):
    """Answered by :class:`InfoReply`."""


class Drain(Struct, frozen=True, kw_only=True, tag="drain"):
    """Stop admitting, finish what runs within ``timeout_s``, abort the rest."""

    timeout_s: float


class Profile(Struct, frozen=True, kw_only=True, tag="profile"):
    """Start or stop the profiler of the executor; the trace is written by the engine into its own directory."""

    action: Literal["start", "stop"]


class ResetPrefixCache(Struct, frozen=True, tag="reset_prefix_cache"):
    """Forget every cached block that no sequence uses."""


class SubscribeKvEvents(Struct, frozen=True, tag="subscribe_kv_events"):
    """Send :class:`KvEvents` from now on, the first being a snapshot."""


class DebugRequest(Struct, frozen=True, kw_only=True, tag="debug_request"):
    """Scheduling decisions about a request; answered by :class:`DebugReply`."""

    request_id: RequestId


class DebugWaits(Struct, frozen=True, tag="debug_waits"):
    """Every wait of the engine with owner, reason and deadline; answered by :class:`DebugReply`."""


class Shutdown(Struct, frozen=True, tag="shutdown"):
    """End the engine process now (its parent asks)."""


ToEngine = (
    Hello | Submit | Abort | GetLoad | GetHealth | GetInfo | Drain | Profile | ResetPrefixCache | SubscribeKvEvents
    | DebugRequest | DebugWaits | Shutdown
)  # fmt: skip


class Ack(Struct, frozen=True, tag="ack"):
    """Done."""


class Failure(Struct, frozen=True, kw_only=True, tag="failure"):
    """The call was refused."""

    error: OutputError
    hint: str = ""
    param: str | None = None
    """The request field at fault."""
    retry_after_s: float | None = None


class LoadReply(Struct, frozen=True, kw_only=True, tag="load"):
    """Answer to :class:`GetLoad`; also sent unasked as a heartbeat (call id 0)."""

    load: LoadReport
    health: HealthReport


class HealthReply(Struct, frozen=True, kw_only=True, tag="health"):
    """Answer to :class:`GetHealth`."""

    health: HealthReport


class InfoReply(Struct, frozen=True, kw_only=True, tag="info"):
    """Answer to :class:`GetInfo`."""

    info: InstanceInfo


class Outputs(Struct, frozen=True, kw_only=True, tag="outputs"):
    """One engine step's outputs for this connection (call id 0)."""

    frame: OutputFrame


class KvEvents(Struct, frozen=True, kw_only=True, tag="kv_events"):
    """Cache changes (call id 0)."""

    batch: KvEventBatch
    is_snapshot: bool = False


class DebugReply(Struct, frozen=True, kw_only=True, tag="debug"):
    """Rows of (field, value) maps, ready to be shown as JSON."""

    rows: tuple[dict[str, str | int | float | bool | None], ...]


FromEngine = (
    Hello | Ack | Failure | LoadReply | HealthReply | InfoReply | Outputs | KvEvents | DebugReply
)  # fmt: skip
