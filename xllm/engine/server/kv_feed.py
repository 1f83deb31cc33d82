"""KV events for subscribers: numbered without gaps, beginning with a snapshot.

INVARIANT: a snapshot numbered n holds every change up to batch n; the next batch is n + 1. So a subscriber that sees
another number subscribes again.
"""

from __future__ import annotations

from xllm.engine.core.engine_core import EngineCore
from xllm.errors import ProtocolError
from xllm.rpc.server import EngineConnection
from xllm.types.kv_event import KvEventBatch


class KvFeed:
    """Takes the core's events after every step and sends them on."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._sequence = 0
        self._subscribers: list[EngineConnection] = []

    def subscribe(self, connection: EngineConnection) -> None:
        """Send the whole cache now and every change from now on; raises ProtocolError when it fits no frame."""
        self.publish()
        if connection in self._subscribers:
            self._subscribers.remove(connection)
        snapshot = KvEventBatch(self._sequence, tuple(self._core.kv_snapshot()))
        connection.send_kv_events(snapshot, is_snapshot=True)
        self._subscribers.append(connection)

    def unsubscribe(self, connection: EngineConnection) -> None:
        """Forget a lost connection."""
        if connection in self._subscribers:
            self._subscribers.remove(connection)

    def publish(self) -> None:
        """Number and send what has changed; taken from the core also when nobody listens, so that it cannot pile up."""
        events = self._core.take_kv_events()
        if not events:
            return
        self._sequence += 1
        batch = KvEventBatch(self._sequence, tuple(events))
        for connection in list(self._subscribers):
            try:
                connection.send_kv_events(batch)
            except ProtocolError as exc:  # too large: the gap makes the subscriber ask for a snapshot
                connection.close(f"KV events cannot be sent: {exc.message}")
