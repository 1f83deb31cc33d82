"""``session_id`` on its way from a body to the request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.backend import FakeBackend
from tests.fakes.edge_server import EdgeServer
from tests.fakes.http import ask
from xllm.types.request import SessionRef

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "tell me more", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("session", ["s1", "s" * 256, "Grüße/😀 1", None])
def test_a_session_reaches_the_request(
    server: EdgeServer, backend: FakeBackend, path: str, session: str | None
) -> None:
    assert ask(server.url + path, BODIES[path] | {"session_id": session}).status == 200
    expected = None if session is None else SessionRef(id=session)
    assert backend.requests[-1].session == expected


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("session", ["", "s" * 257, 7, ["s1"], {"id": "s1"}])
def test_an_impossible_session_is_named(
    server: EdgeServer, backend: FakeBackend, path: str, session: object
) -> None:
    reply = ask(server.url + path, BODIES[path] | {"session_id": session})
    assert (reply.status, reply.json["error"]["param"]) == (400, "session_id")
    assert "session_id" in reply.json["error"]["message"] and "hint:" in reply.json["error"]["message"]
    assert backend.requests == []
