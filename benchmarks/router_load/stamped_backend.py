"""A bare OpenAI backend: chat streams whose tokens are the time at which each was written, one per step and stream.

    python -m benchmarks.router_load.stamped_backend PORT STEP_S

It does as little as an upstream can do: no parsing beyond Content-Length and max_tokens, no model, every byte but the
stamp made beforehand. Like an engine it has one clock: at each step every stream gets its token. A call without stream
is answered at once, and so is ``GET``: what routers ask of their backends.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import cast

import uvloop

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_IS_STREAM = re.compile(rb'"stream": ?true')
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_FACTS = json.dumps(  # to whatever a router asks with GET
    {
        "object": "list",
        "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "x"}],
        "model_path": "m",
        "served_model_name": "m",
        "is_generation": True,
        "status": "ok",
    }
).encode()

_WHOLE = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()


def _event(delta: str, finish: str) -> bytes:
    return (
        'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
        f'"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]}}\n\n'
    ).encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_ROLE = _chunk(_event('{"role":"assistant","content":""}', "null"))
_BEFORE, _AFTER = _event('{"content":"STAMP"}', "null").split(b"STAMP")
_LAST = _event("{}", '"length"') + b"data: [DONE]\n\n"
_STAMP_CHARS = 16
_TOKEN_HEAD = b"%x\r\n%b" % (len(_BEFORE) + _STAMP_CHARS + len(_AFTER), _BEFORE)
_TOKEN_TAIL = _AFTER + b"\r\n"


class Stream(asyncio.Protocol):
    """One connection, one answer after the other."""

    def __init__(self, streams: set[Stream]) -> None:
        self._streams = streams
        self._got = b""
        self._left = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing to do yet."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The router left."""
        self._streams.discard(self)

    def data_received(self, data: bytes) -> None:
        """Answer a GET at once, a POST token by token."""
        assert self._transport is not None
        self._got += data
        head, mark, body = self._got.partition(b"\r\n\r\n")
        if not mark:
            return
        length = _LENGTH.search(head)
        if length is not None and len(body) < int(length[1]):
            return
        self._got = b""
        if not (head.startswith(b"POST") and _IS_STREAM.search(body)):
            answer = _WHOLE if head.startswith(b"POST") else _FACTS
            self._transport.write(_JSON_HEAD % len(answer) + answer)
            return
        found = _MAX_TOKENS.search(body)
        self._left = int(found[1]) if found else 16
        self._transport.write(_HEAD + _ROLE)
        self._streams.add(self)

    def step(self) -> None:
        """The next token, and the end after the last."""
        assert self._transport is not None
        self._left -= 1
        stamp = b"%0*.6f" % (_STAMP_CHARS, time.monotonic())
        event = b"%b%b%b" % (_TOKEN_HEAD, stamp, _TOKEN_TAIL)
        if not self._left:
            event += _chunk(_LAST) + b"0\r\n\r\n"
            self._streams.discard(self)
        self._transport.write(event)


async def serve(port: int, step_s: float) -> None:
    """Until killed."""
    loop = asyncio.get_running_loop()
    streams: set[Stream] = set()
    await loop.create_server(lambda: Stream(streams), "127.0.0.1", port)
    due_s = loop.time()
    while True:
        due_s = max(due_s + step_s, loop.time())
        await asyncio.sleep(due_s - loop.time())
        for stream in list(streams):
            stream.step()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2])))
