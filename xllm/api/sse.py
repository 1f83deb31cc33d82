"""The streaming response and the watch on the client's connection.

One engine step becomes one write, whatever it carries. The response is a plain ASGI callable: no task group and no
wrapper object per chunk, which is half of what a framework's streaming response costs.

INVARIANTS
- A client that goes away ends its call in the engine at once, also while nothing is being sent.
- An error after the first byte is an event with the error object; no ``[DONE]`` follows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from xllm.api.choice_text import Delta
from xllm.api.errors import error_bytes, unexpected
from xllm.api.generation import ClientGone, Generation
from xllm.errors import XllmError

DONE = b"data: [DONE]\n\n"
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies must not hold tokens back
)

json_bytes = msgspec.json.Encoder().encode


class EventEncoder(Protocol):
    """Turns deltas into finished bytes, in the format of one endpoint."""

    def opening(self) -> bytes:
        """Events before the first token."""
        ...

    def events(self, deltas: Sequence[Delta]) -> bytes:
        """Events of one step; may be empty."""
        ...

    def closing(self) -> bytes:
        """Events after the last token, ``[DONE]`` included."""
        ...


class EventStream:
    """ASGI response that streams a started generation."""

    def __init__(
        self, generation: Generation, encoder: EventEncoder, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        self._generation = generation
        self._encoder = encoder
        self._headers = [*_HEADERS, *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the generation ends, fails, or the client leaves."""
        async with watch_client(receive, self._generation):
            try:
                await self._pump(send)
            except ClientGone:
                pass
            except XllmError as error:
                await self._fail(send, error)
            except Exception as exc:
                await self._fail(send, unexpected(exc))

    async def _pump(self, send: Send) -> None:
        generation, encoder = self._generation, self._encoder
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        opening = encoder.opening()
        if opening:
            await send({"type": "http.response.body", "body": opening, "more_body": True})
        is_done = False
        while not is_done:
            events = encoder.events(await generation.next_deltas())
            is_done = generation.is_done
            if is_done:
                events += encoder.closing()
            if events:
                await send({"type": "http.response.body", "body": events, "more_body": not is_done})

    async def _fail(self, send: Send, error: XllmError) -> None:
        self._generation.close(error)
        body = b"data: " + error_bytes(error) + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": False})


@asynccontextmanager
async def watch_client(receive: Receive, generation: Generation) -> AsyncIterator[None]:
    """Close ``generation`` when the client disconnects or the block is left early."""
    watch = asyncio.create_task(_close_on_disconnect(receive, generation))
    try:
        yield
    finally:
        watch.cancel()
        generation.close()


async def start_watched(receive: Receive, generation: Generation) -> None:
    """Start ``generation``, which may have to wait for an instance, and give it up when the client disconnects.

    Raises:
        ClientGone: it did.
        XllmError: the backend refuses.
    """
    watch = asyncio.create_task(_close_on_disconnect(receive, generation))
    try:
        await generation.start()
    except XllmError as error:
        if generation.was_left:
            raise ClientGone from error
        raise
    finally:
        watch.cancel()


async def _close_on_disconnect(receive: Receive, generation: Generation) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    generation.close(ClientGone())
