"""The field table against the structs, the page and what the server does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.backend import FakeBackend
from tests.fakes.edge_server import EdgeServer
from tests.fakes.http import ask
from xllm.api.fields import CHAT_FIELDS, COMPLETION_FIELDS, TABLES, Field, render_page
from xllm.api.protocol import ChatRequest, CompletionRequest
from xllm.types.request import Request

ROOT = Path(__file__).resolve().parents[3]
BASE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "tell me more"}],
        "seed": 1,
        "max_tokens": 8,
    },
    "/v1/completions": {"prompt": "tell me more", "seed": 1, "max_tokens": 8},
}
COMPANIONS: dict[str, dict[str, Any]] = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
    "truncation_side": {"truncate_prompt_tokens": 2},
    "tool_choice": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "max_completion_tokens": {},
    "return_tokens_as_token_ids": {"logprobs": 1},
}
ROWS = [(path, row) for path, rows in TABLES.items() for row in rows]


def companions(path: str, name: str) -> dict[str, Any]:
    extra = dict(COMPANIONS.get(name, {}))
    if name == "return_tokens_as_token_ids" and path.endswith("chat/completions"):
        extra = {"logprobs": True}
    return extra


@pytest.mark.parametrize(
    ("struct", "rows"), [(ChatRequest, CHAT_FIELDS), (CompletionRequest, COMPLETION_FIELDS)]
)
def test_every_field_has_exactly_one_row(struct: type[msgspec.Struct], rows: tuple[Field, ...]) -> None:
    names = [row.name for row in rows]
    assert sorted(names) == sorted(struct.__struct_fields__)


def test_page_is_what_the_table_says() -> None:
    assert (ROOT / "docs/reference/fields.md").read_text(encoding="utf-8") == render_page()


def outcome(server: EdgeServer, backend: FakeBackend, path: str, body: dict[str, Any]) -> tuple[Any, ...]:
    """What the engine was asked and what the client got, without ids and times."""
    backend.requests.clear()
    reply = ask(server.url + path, body)
    assert reply.status == 200, reply.raw
    asked = [plain(request) for request in backend.requests]
    assert len(backend.requests) == 1
    rid = backend.requests[0].id
    return asked, "mine-1" in rid, shown(reply.raw, rid)


def plain(request: Request) -> dict[str, Any]:
    found = msgspec.to_builtins(request)
    return {key: value for key, value in found.items() if key not in ("id", "age_s")}


def shown(raw: bytes, rid: str) -> str:
    return re.sub(r'"created":\d+', "", raw.decode().replace(rid, "ID"))


@pytest.mark.parametrize(("path", "row"), ROWS, ids=[f"{p.split('/')[2]}-{r.name}" for p, r in ROWS])
def test_field_does_what_its_row_says(
    path: str, row: Field, server: EdgeServer, backend: FakeBackend
) -> None:
    if row.example is None:
        assert row.name in ("model", "messages", "prompt")
        return
    base = BASE[path] | companions(path, row.name)
    if row.name == "max_completion_tokens":
        base.pop("max_tokens")
    body = base | {row.name: row.example}
    if row.verdict == "refused":
        reply = ask(server.url + path, body)
        assert (reply.status, reply.json["error"]["param"]) == (400, row.name)
        assert row.name in reply.json["error"]["message"]
        assert backend.requests == []
        for neutral in row.neutral:
            assert ask(server.url + path, base | {row.name: neutral}).status == 200
        assert ask(server.url + path, base | {row.name: None}).status == 200
        return
    if row.name in ("documents", "reasoning_effort"):
        assert row.verdict == "honoured"
    before, after = outcome(server, backend, path, base), outcome(server, backend, path, body)
    if row.verdict == "inert":
        assert before == after
    else:
        assert before != after, f"{row.name} changed neither the request nor the answer"


def test_unknown_field_names_the_nearest(server: EdgeServer) -> None:
    reply = ask(server.url + "/v1/completions", {"prompt": "x", "temprature": 1})
    assert reply.status == 400
    assert reply.json["error"]["param"] == "temprature"
    assert "'temperature'" in reply.json["error"]["message"]


def test_unknown_field_of_a_message_is_refused(server: EdgeServer) -> None:
    body = {"messages": [{"role": "user", "content": "x", "colour": "red"}]}
    reply = ask(server.url + "/v1/chat/completions", body)
    assert reply.status == 400
    assert "colour" in reply.json["error"]["message"]
