"""Measures a running router: tokens of paced streams one by one, and short answers in a closed loop."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cpu_peers.machine import trees_s
from benchmarks.router_load.client import Answer, Client
from benchmarks.router_load.routers import Running

SHORTEST, LONGEST = 50, 250
"""Tokens of a stream, uniform: streams begin and end one by one, not in waves."""
COUNTED = re.compile(rb'"completion_tokens": ?(\d+)')
"""In a whole answer."""


@dataclass(slots=True)
class Window:
    """A part of a run: monotonic seconds, and CPU seconds at both ends (router, its instances, the client)."""

    begin_s: float
    end_s: float
    cpu_begin: tuple[float, float, float]
    cpu_end: tuple[float, float, float]

    @property
    def cpu_s(self) -> tuple[float, float, float]:
        """CPU seconds in the window."""
        first, second, third = (b - a for a, b in zip(self.cpu_begin, self.cpu_end, strict=True))
        return first, second, third


async def _watch(running: Running, warm_s: float, measure_s: float) -> Window:
    def look() -> tuple[float, float, float]:
        return trees_s(running.pids), trees_s(running.upstream_pids), time.process_time()

    await asyncio.sleep(warm_s)
    begin_s, before = time.monotonic(), look()
    await asyncio.sleep(measure_s)
    return Window(begin_s, time.monotonic(), before, look())


def stream_bodies(run: str, *, is_xllm: bool) -> Callable[[], tuple[str, bytes]]:
    """Requests with their names, without end."""
    rng, numbers = random.Random(5), itertools.count(1)

    def next_body() -> tuple[str, bytes]:
        key = f"{run}-{next(numbers)}"
        fields = {
            "model": "m",
            "messages": [{"role": "user", "content": f"Question {key}: what is the capital of France?"}],
            "max_tokens": rng.randint(SHORTEST, LONGEST),
            "stream": True,
            "temperature": 0,
            **({"request_id": key, "ignore_eos": True} if is_xllm else {}),
        }
        return key, json.dumps(fields, separators=(",", ":")).encode()

    return next_body


async def run_streams(
    running: Running, *, run: str, num_streams: int, warm_s: float, measure_s: float
) -> tuple[list[Answer], Window]:
    """Keep ``num_streams`` streams open, begun over the first half of ``warm_s``; then hang up."""
    next_body = stream_bodies(run, is_xllm=bool(running.notes))
    clients = [
        Client(running.urls[number % len(running.urls)], running.pattern, next_body)
        for number in range(num_streams)
    ]
    watch = asyncio.create_task(_watch(running, warm_s, measure_s))
    for client in clients:
        await client.connect()
        await asyncio.sleep(0.5 * warm_s / num_streams)
    done, _ = await asyncio.wait(
        [watch, *(client.finished for client in clients)], return_when=asyncio.FIRST_COMPLETED
    )
    for client in clients:
        client.close()
    for each in done:
        each.result()  # a client that was hung up on
    return [answer for client in clients for answer in client.answers], await watch


async def run_short(
    running: Running, *, num_clients: int, seconds: float
) -> tuple[list[Answer], float, float]:
    """Whole answers of one token in a closed loop: (answers, wall seconds, CPU seconds of the router)."""
    fields = {"model": "m", "messages": [{"role": "user", "content": "Yes or no?"}], "max_tokens": 1}
    body = json.dumps(fields, separators=(",", ":")).encode()
    end_s = time.monotonic() + seconds

    def next_body() -> tuple[str, bytes] | None:
        return ("", body) if time.monotonic() < end_s else None

    clients = [
        Client(running.urls[number % len(running.urls)], COUNTED, next_body, is_stream=False)
        for number in range(num_clients)
    ]
    before_s, begin_s = trees_s(running.pids), time.monotonic()
    await asyncio.gather(*(client.connect() for client in clients))
    await asyncio.gather(*(client.finished for client in clients))
    wall_s = time.monotonic() - begin_s
    answers = [answer for client in clients for answer in client.answers]
    return answers, wall_s, trees_s(running.pids) - before_s


def read_notes(paths: list[Path]) -> tuple[dict[str, float], dict[tuple[str, int], float]]:
    """(when a request was accepted, when its n-th token was handed over), n from 1; both by xLLM's request id."""
    accepted: dict[str, float] = {}
    handed: dict[tuple[str, int], float] = {}
    for path in paths:
        for request_id, first, num, at_s in json.loads(path.read_text()):
            if first < 0:
                accepted[request_id] = at_s
            for number in range(first + 1, first + 1 + num):
                handed[request_id, number] = at_s
    return accepted, handed
