"""Clients under which the cluster stands: each sends a body, compares the answer, repeats elsewhere when it must.

What may happen to a call, and what it is called in the books:

    right      the whole answer, equal to the undisturbed one
    refused    429 or 503 before anything was delivered: the client waits a moment and repeats
    poisoned   503 of a request that was on two instances when they died (a promised refusal): repeated
    broken     the connection broke, and the replica that served it had been killed: repeated elsewhere
    away       the replica took no connection, being dead, starting or ending: repeated elsewhere
    LOST       an error, a broken connection or silence without such an excuse
    FALSE END  a stream that looks ended and is not whole
    CHANGED    a token, text, end or count that is not the undisturbed one

The last three must never occur.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.chaos.requests import Case, StreamBooks, difference, parse_answer, prefix_difference
from tests.chaos.world import World

CALL_S = 60.0
"""Without any byte for this long a call counts as lost."""
FORBIDDEN = ("LOST", "FALSE END", "CHANGED")
_NAMES = re.compile(r"\b(?:cmpl|service|engine|guest)-[\w-]+|[0-9a-f]{12,}|\d+(?:\.\d+)?(?= s\b)")
"""What differs between two refusals for the same reason: requests, instances, seconds."""


@dataclass
class Books:
    """What became of all calls."""

    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    """Right answers per kind of body and way of asking."""
    refusals: Counter[str] = field(default_factory=Counter)
    """Why calls were refused, without the names in it."""
    num_logprobs: int = 0
    """Positions whose log-probabilities were compared, in right answers."""
    num_tokens: int = 0
    """Compared, in right answers."""
    num_repeated: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    worst_s: float = 0.0
    """From a call's first try to its right answer."""


class Load:
    """``start`` the clients, ``stop`` them when their calls have ended."""

    def __init__(self, world: World, pool: list[Case], seed: int, *, num_clients: int) -> None:
        self.books = Books()
        self.on_event: Callable[[int, str], None] = lambda stream, service: None
        """Called with every event of every stream."""
        self.live: dict[int, str] = {}
        """Streams that have begun: the replica that serves each."""
        self._world = world
        self._pool = pool
        self._seed = seed
        self._num_clients = num_clients
        self._is_over = False
        self._next_stream = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._client(n)) for n in range(self._num_clients)]

    async def stop(self, timeout_s: float = 2 * CALL_S) -> None:
        """No new calls; those under way are awaited."""
        self._is_over = True
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*self._tasks)

    # -- private --

    async def _client(self, number: int) -> None:
        rng = random.Random(self._seed * 1000 + number)
        while not self._is_over:
            case = rng.choice(self._pool)
            is_streamed = rng.random() < 0.6
            began_s = time.monotonic()
            names = list(self._world.services)
            at = rng.randrange(len(names))
            while True:
                outcome = await self._call(names[at], case, is_streamed)
                self.books.outcomes[outcome] += 1
                if outcome == "right":
                    self.books.kinds[f"{case.kind}{', streamed' if is_streamed else ''}"] += 1
                    self.books.worst_s = max(self.books.worst_s, time.monotonic() - began_s)
                    break
                self.books.num_repeated += 1
                at = (at + 1) % len(names)
                await asyncio.sleep(0.2)
            await asyncio.sleep(rng.uniform(0.0, 0.1))

    async def _call(self, service: str, case: Case, is_streamed: bool) -> str:
        """One try; returns its outcome."""
        process = self._world.services[service]
        generation = process.generation
        body = {**case.body, "stream": is_streamed}
        if is_streamed:
            body["stream_options"] = {"include_usage": True}
        books = StreamBooks(len(case.expected.choices))
        stream = self._next_stream
        self._next_stream += 1
        outcome, detail, has_begun = "LOST", "", False
        try:
            timeout = aiohttp.ClientTimeout(total=None, sock_read=CALL_S, sock_connect=CALL_S)
            url = f"{self._world.urls[service]}/v1/completions"
            async with self._world.session.post(url, json=body, timeout=timeout) as response:
                has_begun = True
                if response.status != 200:
                    detail = f"{response.status} {(await response.text())[:300]}"
                    if response.status in (429, 503):
                        self.books.refusals[_NAMES.sub("...", detail)] += 1
                        return "poisoned" if "when they died" in detail else "refused"
                elif is_streamed:
                    self.live[stream] = service
                    outcome, detail = await self._read(response, books, stream, service)
                else:
                    books.answer = parse_answer(await response.json())
                    outcome = "right"
        except (aiohttp.ClientError, ConnectionError, TimeoutError, ValueError) as exc:
            detail = f"{type(exc).__name__}: {exc}"
            if generation in process.killed:
                outcome = "broken"
            elif not has_begun and not process.is_ready and not isinstance(exc, TimeoutError):
                outcome = "away"
        finally:
            self.live.pop(stream, None)
        return self._judge(case, books, outcome, detail, service, is_streamed)

    async def _read(
        self, response: aiohttp.ClientResponse, books: StreamBooks, stream: int, service: str
    ) -> tuple[str, str]:
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            self.on_event(stream, service)
            if line.startswith(b"data: [DONE]"):
                books.is_done = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                text = str(event["error"].get("message"))
                return ("poisoned" if "when they died" in text else "LOST"), text
            books.take(event)
        return ("right", "") if books.is_done else ("FALSE END", "the stream ended without [DONE]")

    def _judge(
        self, case: Case, books: StreamBooks, outcome: str, detail: str, service: str, is_streamed: bool
    ) -> str:
        if outcome == "right":
            problem = difference(case, books.answer)
            if books.after_the_end:
                problem = "something followed a choice's end"
            if problem is None:
                self.books.num_tokens += sum(len(choice.token_ids) for choice in books.answer.choices)
                self.books.num_logprobs += sum(len(choice.logprobs) for choice in books.answer.choices)
                return "right"
            outcome, detail = "CHANGED", problem
        else:  # what did come must be right all the same
            for index, choice in enumerate(books.answer.choices):
                problem = prefix_difference(case, index, choice)
                if problem is not None:
                    outcome, detail = "CHANGED", problem
        if outcome in FORBIDDEN and len(self.books.failures) < 50:
            self.books.failures.append(
                {
                    "outcome": outcome, "detail": detail[:600], "kind": case.kind, "service": service,
                    "streamed": is_streamed, "at_s": round(time.monotonic(), 2),
                }
            )  # fmt: skip
        return outcome
