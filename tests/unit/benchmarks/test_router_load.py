"""The router benchmark's parts: what clients note, whatever the pieces they read, and what engines note."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from benchmarks.router_load.client import Client
from benchmarks.router_load.paced import COUNTED, read_notes
from benchmarks.router_load.routers import NUMBERED, STAMPED

ROLE = b'id: chatcmpl-a:0:0\ndata: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
TOKENS = [b'id: chatcmpl-a:0:%d\ndata: {"choices":[{"delta":{"content":"x"}}]}\n\n' % n for n in (1, 2, 13)]
STREAM = b"".join([ROLE, *TOKENS, b"data: [DONE]\n\n"]) + b"\r\n0\r\n\r\n"


class Pipe:
    """Stands for a transport."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        self.is_closed = True


def read(pattern: Any, pieces: list[bytes], *, is_stream: bool = True) -> tuple[Client, Pipe]:
    """A client with two requests that gets the pieces as the first answer."""

    async def main() -> tuple[Client, Pipe]:
        bodies = iter([("a", b"{}"), ("b", b"{}")])
        pipe: Any = Pipe()
        client = Client("http://h:1/v1/x", pattern, lambda: next(bodies, None), is_stream=is_stream)
        client.connection_made(pipe)
        for piece in pieces:
            client.data_received(piece)
        return client, pipe

    return asyncio.run(main())


def test_every_token_is_noted_once_wherever_the_bytes_are_cut() -> None:
    for size in (1, 7, 50, 1000):
        pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
        client, pipe = read(NUMBERED, pieces)
        first, second = client.answers
        assert [number for number, _ in first.tokens] == [1.0, 2.0, 13.0]
        assert first.done_s >= first.sent_s and not second.tokens and len(pipe.sent) == 2


def test_stamps_and_whole_answers_are_read_too() -> None:
    event = b'data: {"choices":[{"delta":{"content": "0001234.500000"}}]}\n\n'
    client, _ = read(STAMPED, [event, b"0\r\n\r\n"])
    assert [stamp for stamp, _ in client.answers[0].tokens] == [1234.5]
    whole = b'HTTP/1.1 200 OK\r\n\r\n{"usage":{"completion_tokens":1},"x":{}}'
    client, _ = read(COUNTED, [whole], is_stream=False)
    assert [number for number, _ in client.answers[0].tokens] == [1.0] and len(client.answers) == 2


def test_notes_of_engines_name_tokens_from_one_on(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text(json.dumps([["r", -1, 0, 1.0], ["r", 0, 2, 2.0], ["r", 2, 1, 3.0]]))
    accepted, handed = read_notes([path])
    assert accepted == {"r": 1.0} and handed == {("r", 1): 2.0, ("r", 2): 2.0, ("r", 3): 3.0}
