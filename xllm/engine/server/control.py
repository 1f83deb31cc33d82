"""The channel between an engine process and its parent: one JSON object per line over a socket pair.

Parent to engine: :class:`StartEngine` once, then perhaps :class:`StopEngine`. Engine to parent: any number of
:class:`PhaseDone` and :class:`WeightsProgress`, then :class:`Ready` or :class:`StartFailed`. End of file means that the
other side is gone: an engine without parent exits.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from xllm.errors import DeadlineExceeded, ProtocolError
from xllm.types.instance import InstanceInfo
from xllm.types.wire import Failure

MAX_LINE_BYTES = 4 * 1024 * 1024
PARENT_POLL_S = 0.5
"""How often an engine looks whether its parent still is its parent; end of file normally says it at once."""


class StartEngine(Struct, frozen=True, kw_only=True, tag="start"):
    """First line to the engine."""

    config: dict[str, Any]
    """EngineConfig as plain values."""
    endpoint: str
    """Where to listen."""
    token: str
    """Shared secret of the RPC."""
    parent_pid: int
    private_dir: str = ""
    """Directory made for the endpoint; removed by an engine whose parent is gone."""
    registry: dict[str, Any] | None = None
    """RegistryConfig as plain values: where to publish."""
    instance: dict[str, Any] | None = None
    """InstanceConfig as plain values: what to publish."""


class StopEngine(Struct, frozen=True, kw_only=True, tag="stop"):
    """End; requests in flight may take ``drain_s``, and after ``migrate_after_s`` go on elsewhere."""

    drain_s: float = 0.0
    migrate_after_s: float | None = None


class PhaseDone(Struct, frozen=True, kw_only=True, tag="phase"):
    """One phase of the start is over."""

    phase: str
    seconds: float
    end_s: float = 0.0
    """On the monotonic clock, which is the machine's."""


class WeightsProgress(Struct, frozen=True, kw_only=True, tag="weights"):
    """Bytes of weights placed so far."""

    done_bytes: int
    total_bytes: int


class Ready(Struct, frozen=True, kw_only=True, tag="ready"):
    """The engine can be connected to."""

    info: InstanceInfo


class StartFailed(Struct, frozen=True, kw_only=True, tag="failed"):
    """The engine could not start; the typed error."""

    failure: Failure


ToEngineProcess = StartEngine | StopEngine
ToParent = PhaseDone | WeightsProgress | Ready | StartFailed

In = TypeVar("In")
Out = TypeVar("Out")


class LineChannel(Generic[In, Out]):
    """Blocking JSON lines over a socket; ``send`` and ``receive`` may be used from two threads."""

    def __init__(self, sock: socket.socket, incoming: Any) -> None:
        self._sock = sock
        self._decoder: msgspec.json.Decoder[In] = msgspec.json.Decoder(incoming)
        self._pending = bytearray()
        self._send_lock = threading.Lock()

    def send(self, message: Out) -> bool:
        """Write one line; False when the other side is gone."""
        line = msgspec.json.encode(message) + b"\n"
        try:
            with self._send_lock:
                self._sock.sendall(line)
        except OSError:
            return False
        return True

    def receive(self, timeout_s: float) -> In | None:
        """The next message; None at end of file.

        Raises:
            DeadlineExceeded: no whole line within ``timeout_s``.
            ProtocolError: the line is no message of this channel.
        """
        deadline_s = time.monotonic() + timeout_s
        while (end := self._pending.find(b"\n")) < 0:
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                raise DeadlineExceeded(f"no message on the control channel within {timeout_s:g} s")
            if len(self._pending) > MAX_LINE_BYTES:
                raise ProtocolError(f"a control line is longer than {MAX_LINE_BYTES} bytes")
            try:
                self._sock.settimeout(remaining_s)
                data = self._sock.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return None
            if not data:
                return None
            self._pending += data
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        try:
            return self._decoder.decode(line)
        except msgspec.DecodeError as exc:
            raise ProtocolError(f"malformed control line: {exc}") from exc

    def close(self) -> None:
        """Close; the other side sees the end of file."""
        self._sock.close()


def watch_parent(
    channel: LineChannel[ToEngineProcess, ToParent],
    parent_pid: int,
    *,
    on_stop: Callable[[StopEngine], None],
    on_gone: Callable[[], None],
) -> threading.Thread:
    """Start the thread that hears the parent's StopEngine, and its end, whatever the main thread is doing."""

    def watch() -> None:
        while True:
            try:
                message = channel.receive(PARENT_POLL_S)
            except DeadlineExceeded:
                if os.getppid() != parent_pid:  # a fork of the parent may hold the socket open
                    break
                continue
            except ProtocolError:
                break
            if message is None:
                break
            if isinstance(message, StopEngine):
                on_stop(message)
        on_gone()

    thread = threading.Thread(target=watch, name="xllm-parent-watch", daemon=True)
    thread.start()
    return thread
