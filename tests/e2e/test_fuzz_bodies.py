"""Random malformed bodies against a whole server: never a 5xx, and it still serves with nothing left behind."""

from __future__ import annotations

import http.client
import random
from collections import Counter

import pytest

from tests.fakes.bad_bodies import bad_body
from tests.fakes.http import ask
from tests.fakes.served import Served, until


@pytest.mark.timeout(900)
def test_random_bodies_reach_no_5xx(timed: Served) -> None:
    rng = random.Random(3)
    conn = http.client.HTTPConnection(timed.url.removeprefix("http://"), timeout=200)
    seen: Counter[int] = Counter()
    for _ in range(10_000):
        path, body = bad_body(rng)
        conn.request("POST", path, body, {"Content-Type": "application/json"})
        reply = conn.getresponse()
        raw = reply.read()
        seen[reply.status] += 1
        assert reply.status < 500, (path, body[:300], raw)
    conn.close()
    assert seen[400] > 8000
    assert ask(f"{timed.url}/v1/completions", {"prompt": "x", "max_tokens": 2}).status == 200
    until(lambda: timed.blocks()["used"] == 0)
