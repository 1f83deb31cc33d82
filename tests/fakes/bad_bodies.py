"""Random malformed bodies: bytes, JSON of the wrong shape, and real bodies with something broken in them."""

from __future__ import annotations

import json
import random
import string
from typing import Any

from xllm.api.fields import TABLES

PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "hello", "max_tokens": 2},
    "/tokenize": {"prompt": "hello"},
    "/detokenize": {"tokens": [1, 2]},
}
NAMES = sorted({row.name for rows in TABLES.values() for row in rows} | {"tokens", "messages", "prompt", "x"})
ODD = [
    None, True, False, 0, -1, 1, 2**31, -(2**63), 2**63, 10**40, 1e308, -1e308, 1.5, "", "x", "\x00", "\ud83d",
    "😀" * 50, [], [[]], [None], [1, "a"], [[[1]]], {}, {"": {}}, {"a": {"b": [1]}}, "9" * 5000, [-1], [2**40],
    {"1": 1e300}, {"x": 1}, {"type": "json_schema"}, [{"role": "user"}], [{"role": "", "content": []}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
]  # fmt: skip


def bad_body(rng: random.Random) -> tuple[str, bytes]:
    """(path, body). Most are wrong; a few happen to be right, which a 200 answers."""
    path = rng.choice(PATHS)
    kind = rng.randrange(6)
    if kind == 0:
        return path, rng.randbytes(rng.randrange(60))
    if kind == 1:
        return path, json.dumps(rng.choice(ODD)).encode()
    body = dict(GOOD[path])
    if kind == 2:
        text = json.dumps(body).encode()
        cut = rng.randrange(len(text))
        return path, text[:cut] + rng.choice([b"", b"\x00", b"\xff", b"}", b'"', b"[" * 5000])
    if kind == 3:
        for _ in range(rng.randrange(1, 4)):
            body[rng.choice(NAMES)] = rng.choice(ODD)
        return path, json.dumps(body).encode()
    if kind == 4:
        body["".join(rng.choices(string.ascii_letters, k=6))] = rng.choice(ODD)
        return path, json.dumps(body).encode()
    raw = bytearray(json.dumps(body).encode())
    for _ in range(rng.randrange(1, 5)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return path, bytes(raw)
