"""Clients of paced streams: one keep-alive connection each, one request after the other, a note for every token.

They read bytes, not JSON: whoever measures on the machine that serves must take little of it. What a server may do
differently is where a number stands in an event, so each kind of server brings its own pattern.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

API_KEY = "sk-of-nobody-0123456789abcdef"
"""For routers that insist on one."""
END = b"0\r\n\r\n"
"""The last chunk of a stream."""
ENDS = (END, b"}")
"""The last bytes of an answer: a stream's, or a whole one's."""


@dataclass(slots=True)
class Answer:
    """One request as its client saw it; all times are monotonic seconds."""

    key: str
    sent_s: float
    tokens: list[tuple[float, float]] = field(default_factory=list)
    """(the number that the event carries, when it came)."""
    done_s: float = 0.0


class Client(asyncio.Protocol):
    """Sends requests until ``next_body`` has none, or it is closed."""

    def __init__(
        self,
        url: str,
        pattern: re.Pattern[bytes],
        next_body: Callable[[], tuple[str, bytes] | None],
        *,
        is_stream: bool = True,
    ) -> None:
        """``pattern`` finds the number in an event."""
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answers: list[Answer] = []
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {API_KEY}\r\n"
        ).encode()
        self._pattern = pattern
        self._next_body = next_body
        self._ends: tuple[bytes, ...] = (END,) if is_stream else ENDS
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    async def connect(self) -> None:
        """Begin."""
        await asyncio.get_running_loop().create_connection(lambda: self, *self._address)

    def close(self) -> None:
        """Hang up, in the middle of an answer if need be."""
        if not self.finished.done():
            self.finished.set_result(None)
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Note every event that is complete."""
        now_s = time.monotonic()
        answer = self.answers[-1]
        data = self._rest + data
        end = 0
        for found in self._pattern.finditer(data):
            answer.tokens.append((float(found[1]), now_s))
            end = found.end()
        self._rest = data[max(end, len(data) - 512) :]
        if data.endswith(self._ends):
            assert answer.tokens, f"no token: {data[:400]!r}"
            answer.done_s = now_s
            self._rest = b""
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits learns that the server hung up."""
        if not self.finished.done():
            self.finished.set_exception(exc or ConnectionError(f"hung up; last bytes {self._rest[-300:]!r}"))

    def _send(self) -> None:
        assert self._transport is not None
        wanted = self._next_body()
        if wanted is None:
            self.close()
            return
        key, body = wanted
        self.answers.append(Answer(key, time.monotonic()))
        self._transport.write(b"%bContent-Length: %d\r\n\r\n%b" % (self._head, len(body), body))
