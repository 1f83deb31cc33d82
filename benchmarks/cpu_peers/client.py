"""One HTTP client for every system.

While a run lasts it only notes what arrived when: client and servers share the machine, and parsing JSON
would take CPU from the servers that answer fastest. Everything is read afterwards.
"""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import urlsplit


class AnswerError(Exception):
    """An answer that is no complete stream of tokens."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request, seconds: time to first token, gaps between chunks, until the last token."""

    begin_s: float
    ttft_s: float
    end_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    gaps_s: tuple[float, ...]

    @property
    def tpot_s(self) -> float:
        """Seconds per token after the first."""
        return (self.end_s - self.begin_s - self.ttft_s) / max(1, self.num_output_tokens - 1)


class _Stream(asyncio.Protocol):
    """Sends one request, keeps the arriving pieces with their times."""

    def __init__(self, request: bytes, done: asyncio.Future[None]) -> None:
        self.request = request
        self.done = done
        self.begin_s = 0.0
        self.pieces: list[bytes] = []
        self.times_s: list[float] = []
        self._tail = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.times_s.append(time.perf_counter())
        self.pieces.append(data)
        self._tail = (self._tail + data)[-32:]
        if b"[DONE]" in self._tail:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        if self._transport is not None:
            self._transport.close()


def request_bytes(url: str, body: dict[str, object]) -> bytes:
    """A whole HTTP request."""
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + payload


def completion_body(prompt: Sequence[int], max_tokens: int) -> dict[str, object]:
    """What every system is asked: greedy, exactly ``max_tokens`` tokens, streamed, with usage."""
    return {
        "model": "m",
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }


async def run_requests(
    url: str,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    times_s: Sequence[float] | None = None,
    timeout_s: float = 600.0,
) -> list[Answer | AnswerError]:
    """Send all at once, or each at its time; answers in the order of the prompts."""
    requests = [request_bytes(url, completion_body(prompt, max_tokens)) for prompt in prompts]
    loop = asyncio.get_running_loop()
    streams: list[_Stream] = []
    begin = time.perf_counter()
    opening = []
    for index, request in enumerate(requests):
        if times_s is not None:
            await asyncio.sleep(max(0.0, begin + times_s[index] - time.perf_counter()))
        stream = _Stream(request, loop.create_future())
        stream.begin_s = time.perf_counter()
        streams.append(stream)
        opening.append(asyncio.ensure_future(_open(loop, url, stream)))
    await asyncio.wait([*opening, *(s.done for s in streams)], timeout=timeout_s)
    for task in opening:
        task.cancel()
    answers: list[Answer | AnswerError] = []
    for stream in streams:
        stream._finish()
        try:
            answers.append(read_answer(stream.begin_s, stream.pieces, stream.times_s, max_tokens))
        except AnswerError as exc:
            answers.append(exc)
    return answers


async def _open(loop: asyncio.AbstractEventLoop, url: str, stream: _Stream) -> None:
    parts = urlsplit(url)
    try:
        await loop.create_connection(lambda: stream, parts.hostname, parts.port)
    except OSError:
        stream.connection_lost(None)


def read_answer(begin_s: float, pieces: Sequence[bytes], times_s: Sequence[float], max_tokens: int) -> Answer:
    """What the pieces of one HTTP response say. Raises AnswerError."""
    raw = b"".join(pieces)
    if not raw:
        raise AnswerError("no answer")
    head, _, _ = raw.partition(b"\r\n\r\n")
    body_at = len(head) + 4
    status = head.split(None, 2)[1:2]
    if status != [b"200"]:
        raise AnswerError(f"HTTP {status[0].decode() if status else '?'}: {raw[body_at : body_at + 300]!r}")
    is_chunked = b"transfer-encoding: chunked" in head.lower()
    body, origin = _unchunk(raw, body_at) if is_chunked else (raw[body_at:], [(0, body_at)])
    ends = []
    total = 0
    for piece in pieces:
        total += len(piece)
        ends.append(total)
    return _read_events(begin_s, body, _Clock(origin, ends, times_s), max_tokens)


class _Clock:
    """When a byte of the body arrived."""

    def __init__(
        self, origin: Sequence[tuple[int, int]], piece_ends: Sequence[int], times_s: Sequence[float]
    ) -> None:
        self._body_starts = [start for start, _ in origin]
        self._origin = origin
        self._ends = piece_ends
        self._times_s = times_s

    def at(self, position: int) -> float:
        start, raw = self._origin[bisect_right(self._body_starts, position) - 1]
        return self._times_s[bisect_left(self._ends, raw + position - start + 1)]


def _unchunk(raw: bytes, at: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The body without chunk sizes, and (position in the body, position in ``raw``) of each chunk."""
    parts: list[bytes] = []
    origin = [(0, at)]
    length = 0
    while True:
        line_end = raw.find(b"\r\n", at)
        if line_end < 0:
            break
        size = int(raw[at:line_end].split(b";")[0] or b"0", 16)
        if size == 0:
            break
        at = line_end + 2
        parts.append(raw[at : at + size])
        origin.append((length, at))
        length += len(parts[-1])
        at += size + 2
    return b"".join(parts), origin


def _read_events(begin_s: float, body: bytes, clock: _Clock, max_tokens: int) -> Answer:
    usage: dict[str, object] = {}
    arrivals_s: list[float] = []
    is_done = False
    at = 0
    while (found := body.find(b"data:", at)) >= 0:
        end = body.find(b"\n", found)
        end = len(body) if end < 0 else end
        data, at = body[found + 5 : end].strip(), end
        if data == b"[DONE]":
            is_done = True
            break
        event = json.loads(data)
        if "error" in event:
            raise AnswerError(str(event["error"])[:300])
        usage = event.get("usage") or usage
        if any(c.get("text") or c.get("finish_reason") is None for c in event.get("choices") or ()):
            arrivals_s.append(clock.at(end - 1))
    num_output = int(str(usage.get("completion_tokens") or len(arrivals_s)))
    if not is_done or not arrivals_s:
        raise AnswerError(f"the stream ended after {len(arrivals_s)} chunks without [DONE]")
    if num_output != max_tokens:
        raise AnswerError(f"{num_output} tokens in place of {max_tokens}")
    details = usage.get("prompt_tokens_details")
    return Answer(
        begin_s=begin_s,
        ttft_s=arrivals_s[0] - begin_s,
        end_s=arrivals_s[-1],
        num_prompt_tokens=int(str(usage.get("prompt_tokens") or 0)),
        num_output_tokens=num_output,
        num_cached_tokens=int(details.get("cached_tokens") or 0) if isinstance(details, dict) else 0,
        gaps_s=tuple(b - a for a, b in pairwise(arrivals_s)),
    )
