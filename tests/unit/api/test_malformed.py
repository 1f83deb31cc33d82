"""10,000 random malformed bodies: never a 5xx, always an error object, and the server still serves."""

from __future__ import annotations

import http.client
import json
import random
from collections import Counter

import pytest

from tests.fakes.bad_bodies import bad_body
from tests.fakes.edge_server import EdgeServer
from tests.fakes.http import ask


@pytest.mark.timeout(900)
def test_random_bodies_get_4xx(server: EdgeServer) -> None:
    rng = random.Random(20260911)
    host = server.url.removeprefix("http://")
    conn = http.client.HTTPConnection(host, timeout=200)
    seen: Counter[int] = Counter()
    for _ in range(10_000):
        path, body = bad_body(rng)
        conn.request("POST", path, body, {"Content-Type": "application/json"})
        reply = conn.getresponse()
        raw = reply.read()
        seen[reply.status] += 1
        assert reply.status < 500, (path, body[:300], raw)
        if reply.status != 200:
            error = json.loads(raw)["error"]
            assert set(error) == {"message", "type", "param", "code"} and error["code"] == reply.status
    conn.close()
    assert seen[400] > 8000
    assert ask(f"{server.url}/v1/completions", {"prompt": "x", "max_tokens": 1}).status == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x", "max_tokens": "3"}, "max_tokens"),
        ({"prompt": "x", "temperature": -1}, "temperature"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "top_p": 0}, "top_p"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"99999": 1}}, "logit_bias"),
        ({"prompt": "x", "stop_token_ids": [-1]}, "stop_token_ids"),
        ({"prompt": "x", "allowed_token_ids": [10**9]}, "allowed_token_ids"),
        ({"prompt": "x", "seed": 2**64}, "seed"),
        ({"prompt": "x", "priority": 2**64}, "priority"),
        ({"prompt": "x", "stop": ""}, "stop"),
        ({"prompt": "x", "timeout_s": 0}, "timeout_s"),
        ({"prompt": "x", "request_id": "a b"}, "request_id"),
        ({"prompt": "x", "min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": "x", "stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({}, "prompt"),
    ],
)
def test_the_error_names_the_field(server: EdgeServer, body: dict[str, object], param: str) -> None:
    reply = ask(f"{server.url}/v1/completions", body)
    assert (reply.status, reply.json["error"]["param"]) == (400, param), reply.raw


def test_a_deep_body_is_a_400(server: EdgeServer) -> None:
    raw = b'{"prompt":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    assert ask(f"{server.url}/v1/completions", raw=raw).status == 400
