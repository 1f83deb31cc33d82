"""Writes of one loop turn leave together: uvicorn's protocol over transports that hold what is written until its end.

An engine step wakes many streams in one turn. When each writes at once, every write is a system call between two
pieces of Python that find the caches cold, and every one wakes the client it is for, which then fights for the CPU.
Held until the turn ends, the Python runs in one piece and the writes do; what a response writes in several pieces
(head, first event) is one write.

INVARIANTS
- What is held leaves in the same turn, at the latest when ``BATCH`` connections wait, in the order it was written.
- Nothing is held for a connection that is closed: it leaves first.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

BATCH = 32
"""So many connections are written to before the next ones are worked on: clients read meanwhile."""


class TurnWrites:
    """What waits for the end of the turn, over all connections of a server."""

    def __init__(self) -> None:
        self._held: dict[asyncio.Transport, list[bytes]] = {}
        self._is_due = False

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Hold ``data``."""
        parts = self._held.get(transport)
        if parts is not None:
            parts.append(data)
            return
        if len(self._held) == BATCH:
            self.flush()
        self._held[transport] = [data]
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._end_turn)

    def flush(self) -> None:
        """Let everything leave."""
        held, self._held = self._held, {}
        for transport, parts in held.items():
            if not transport.is_closing():
                transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def _end_turn(self) -> None:
        self._is_due = False
        self.flush()


class TurnTransport:
    """A transport whose writes are held; everything else is the transport's own."""

    __slots__ = ("_transport", "_writes")

    def __init__(self, transport: asyncio.Transport, writes: TurnWrites) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        """See the module."""
        self._writes.write(self._transport, data)

    def close(self) -> None:
        """Close once everything has left."""
        self._writes.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def build_turn_protocol() -> type[HttpToolsProtocol]:
    """HTTP/1.1 protocol of one server whose connections write by turns."""
    writes = TurnWrites()

    class TurnProtocol(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(cast("asyncio.Transport", TurnTransport(transport, writes)))

    return TurnProtocol
