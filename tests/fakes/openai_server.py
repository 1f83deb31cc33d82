"""A small OpenAI-compatible server for client tests: real HTTP, real SSE, scripted answers.

Every answer repeats ``words``; a prompt (of a chat: its last message) that contains ``FAIL-STATUS``,
``FAIL-STREAM`` or ``FAIL-CUT`` provokes an HTTP error, an error event or a stream that ends without
``[DONE]``; ``HANG`` streams one word and then waits for the client to leave.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

WORDS = ("Paris", " is", " the", " capital", ".")


@dataclass
class FakeOpenAI:
    """What the server saw, and knobs."""

    words: tuple[str, ...] = WORDS
    model: str = "fake-model"
    root: str | None = None
    api_key: str | None = None
    gap_s: float = 0.0
    num_cached: int = 3
    ready_after: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_running: int = 0
    max_running: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    num_left: int = 0
    url: str = ""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/ready", self.ready)
        app.router.add_post("/v1/completions", self.answer)
        app.router.add_post("/v1/chat/completions", self.answer)
        return app

    async def models(self, request: web.Request) -> web.Response:
        entry = {"id": self.model, "object": "model", "root": self.root or self.model}
        return web.json_response({"object": "list", "data": [entry]})

    async def ready(self, request: web.Request) -> web.Response:
        self.ready_after -= 1
        return web.Response(status=200 if self.ready_after < 0 else 503)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return _error(401, "wrong key")
        prompt = json.dumps(body.get("prompt") or (body.get("messages") or [None])[-1])
        if "FAIL-STATUS" in prompt:
            return _error(400, "you asked for it")
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            return await self._stream(request, body, prompt)
        except (ConnectionResetError, asyncio.CancelledError):
            self.num_left += 1
            self.left.set()
            raise
        finally:
            self.num_running -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any], prompt: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(payload: object) -> None:
            data = payload if isinstance(payload, str) else json.dumps(payload)
            await response.write(f"data: {data}\n\n".encode())

        is_chat = "messages" in body
        if is_chat:
            await send(_chunk(is_chat, {"role": "assistant", "content": ""}))
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or len(self.words)
        words = (self.words * limit)[:limit] if body.get("ignore_eos") else self.words[:limit]
        for place, word in enumerate(words):
            await asyncio.sleep(self.gap_s)
            if place == 1 and "HANG" in prompt:
                await self._wait_for_leave(request)
            if place == 1 and "FAIL-STREAM" in prompt:
                await send({"error": {"message": "engine died", "type": "InternalServerError", "code": 500}})
                return response
            if place == 1 and "FAIL-CUT" in prompt:
                return response
            await send(_chunk(is_chat, {"content": word} if is_chat else word))
        await send(_chunk(is_chat, {} if is_chat else "", finish="stop"))
        usage = {
            "prompt_tokens": 10,
            "completion_tokens": len(words),
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
        }
        if (body.get("stream_options") or {}).get("include_usage"):
            await send({"choices": [], "usage": usage})
        await send("[DONE]")
        return response

    async def _wait_for_leave(self, request: web.Request) -> None:
        async with asyncio.timeout(100):
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(0.01)
        raise ConnectionResetError


def _chunk(is_chat: bool, delta: object, finish: str | None = None) -> dict[str, Any]:
    key = "delta" if is_chat else "text"
    return {"id": "x", "choices": [{"index": 0, key: delta, "finish_reason": finish}]}


def _error(status: int, message: str) -> web.Response:
    body = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
    return web.json_response(body, status=status)


@asynccontextmanager
async def running(fake: FakeOpenAI) -> AsyncIterator[FakeOpenAI]:
    """Serve on a free port of 127.0.0.1; ``fake.url`` is the root."""
    runner = web.AppRunner(fake.app(), shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()


@contextmanager
def running_in_thread(fake: FakeOpenAI) -> Iterator[FakeOpenAI]:
    """The same for a client that is not asyncio or is another process."""
    loop = asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with running(fake):
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(100)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(100)
        loop.close()
