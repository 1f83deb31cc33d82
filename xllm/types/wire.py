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
from xllm.types.store import Lease, Snapshot, StoreEvent

PROTOCOL_VERSION = 1
MIGRATED = "migrated"
"""Reason of an :class:`Abort`: the request goes on elsewhere, since the engine hands over what it has."""


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
    migrate_after_s: float | None = None
    """From then on services take away what still runs and another instance can go on with; None: they do not."""


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


class RegistryPut(Struct, frozen=True, kw_only=True, tag="registry_put"):
    """Write a key; answered by :class:`RegistryRevision`."""

    key: str
    value: bytes
    lease: int = 0
    """Lease the key lives under; 0: it stays until it is deleted."""


class RegistryTrySet(Struct, frozen=True, kw_only=True, tag="registry_try_set"):
    """Compare-and-set; answered by :class:`RegistryRevision`, whose revision is None when refused."""

    key: str
    value: bytes | None
    """None: delete."""
    expected_revision: int
    """Of the key's last write; 0: the key must not be there."""
    lease: int = 0


class RegistryGet(Struct, frozen=True, kw_only=True, tag="registry_get"):
    """Answered by :class:`RegistrySnapshot`."""

    prefix: str


class RegistryGrant(Struct, frozen=True, kw_only=True, tag="registry_grant"):
    """Answered by :class:`RegistryLease`."""

    ttl_s: float


class RegistryKeepAlive(Struct, frozen=True, kw_only=True, tag="registry_keep_alive"):
    """Begin the lease's time anew; answered by :class:`RegistryLease`."""

    lease: int


class RegistryRevoke(Struct, frozen=True, kw_only=True, tag="registry_revoke"):
    """End a lease and delete its keys; an unknown one is fine."""

    lease: int


class RegistryWatch(Struct, frozen=True, kw_only=True, tag="registry_watch"):
    """Send :class:`RegistryEvents` for every change of keys under ``prefix`` after ``after_revision``."""

    watch_id: int
    """Chosen by the client, unique on its connection."""
    prefix: str
    after_revision: int


class RegistryUnwatch(Struct, frozen=True, kw_only=True, tag="registry_unwatch"):
    """Send no more of them."""

    watch_id: int


ToRegistry = (
    Hello | RegistryPut | RegistryTrySet | RegistryGet | RegistryGrant | RegistryKeepAlive | RegistryRevoke
    | RegistryWatch | RegistryUnwatch
)  # fmt: skip


class RegistryRevision(Struct, frozen=True, kw_only=True, tag="registry_revision"):
    """The revision of a write; None: refused by its condition."""

    revision: int | None


class RegistrySnapshot(Struct, frozen=True, kw_only=True, tag="registry_snapshot"):
    """Keys under a prefix."""

    snapshot: Snapshot


class RegistryLease(Struct, frozen=True, kw_only=True, tag="registry_lease"):
    """A lease and its remaining time."""

    lease: Lease


class RegistryEvents(Struct, frozen=True, kw_only=True, tag="registry_events"):
    """Changes in their order (call id 0)."""

    watch_id: int
    events: tuple[StoreEvent, ...]


FromRegistry = (
    Hello | Ack | Failure | RegistryRevision | RegistrySnapshot | RegistryLease | RegistryEvents
)  # fmt: skip
