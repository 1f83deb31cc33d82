"""Keys, body limits, routes and methods."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.fakes.backend import FakeBackend
from tests.fakes.edge_server import EdgeServer
from tests.fakes.http import ask

CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def locked() -> Iterator[EdgeServer]:
    config = {"api_key": ("one", "two"), "admin_api_key": "root", "max_body_bytes": 1000}
    with EdgeServer(FakeBackend(), **config) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({}, 401),
        (bearer("wrong"), 401),
        (bearer("on"), 401),
        (bearer(""), 401),
        ({"Authorization": "Basic one"}, 401),
        ({"Authorization": "Bearer \u00e9"}, 401),
        (bearer("one"), 200),
        ({"Authorization": "bearer two"}, 200),
        (bearer("root"), 200),
    ],
)
def test_keys(locked: EdgeServer, header: dict[str, str], status: int) -> None:
    reply = ask(f"{locked.url}/v1/chat/completions", CHAT, headers=header)
    assert reply.status == status
    if status == 401:
        assert reply.json["error"]["type"] == "AuthenticationError"
        assert {k.lower() for k in reply.headers} >= {"www-authenticate"}


@pytest.mark.parametrize("path", ["/v1/models", "/nowhere", "/tokenize", "/docs/oauth2-redirect"])
def test_everything_else_needs_a_key_too(locked: EdgeServer, path: str) -> None:
    assert ask(locked.url + path).status == 401


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/version", "/openapi.json", "/docs"])
def test_probes_are_open(locked: EdgeServer, path: str) -> None:
    assert ask(locked.url + path).status == 200


def test_debug_wants_the_admin_key(locked: EdgeServer) -> None:
    url = f"{locked.url}/debug/waits"
    assert [ask(url, headers=bearer(key)).status for key in ("one", "root")] == [401, 200]


def test_debug_wants_an_api_key_where_there_is_no_admin_key() -> None:
    with EdgeServer(FakeBackend(), api_key=("one",)) as server:
        url = f"{server.url}/debug/waits"
        assert [ask(url).status, ask(url, headers=bearer("one")).status] == [401, 200]


def test_announced_large_body_is_413(locked: EdgeServer) -> None:
    reply = ask(f"{locked.url}/v1/chat/completions", raw=b" " * 1001, headers=bearer("one"))
    assert (reply.status, reply.json["error"]["type"]) == (413, "PayloadTooLargeError")


def test_streamed_large_body_is_413_before_it_ends(locked: EdgeServer) -> None:
    host, port = locked.url.removeprefix("http://").split(":")
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer one\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=100) as conn:
        conn.sendall(head.encode())
        for _ in range(3):
            conn.sendall(b"200\r\n" + b" " * 512 + b"\r\n")  # never the last chunk
        assert b"413" in conn.recv(4096).split(b"\r\n")[0]


def test_unknown_route_and_wrong_method_have_error_objects(server: EdgeServer) -> None:
    missing = ask(f"{server.url}/v1/nothing")
    assert (missing.status, missing.json["error"]["type"]) == (404, "NotFoundError")
    wrong = ask(f"{server.url}/v1/chat/completions")
    assert (wrong.status, wrong.json["error"]["code"]) == (405, 405)
    assert {k.lower(): v for k, v in wrong.headers.items()}["allow"] == "POST"
    slash = ask(f"{server.url}/v1/models/")
    assert slash.status == 404


def test_cors_only_for_named_origins() -> None:
    with EdgeServer(FakeBackend(), allowed_origins=("http://here",), api_key=("one",)) as server:
        head = {"Origin": "http://here", "Access-Control-Request-Method": "POST"}
        reply = ask(f"{server.url}/v1/completions", headers=head, method="OPTIONS")
        assert reply.status == 200
        allowed = {k.lower(): v for k, v in reply.headers.items()}
        assert allowed["access-control-allow-origin"] == "http://here"
        head["Origin"] = "http://there"
        assert ask(f"{server.url}/v1/completions", headers=head, method="OPTIONS").status == 400


def test_a_proxys_prefix_does_not_change_what_a_key_opens() -> None:
    with EdgeServer(FakeBackend(), api_key=("one",), admin_api_key="root", root_path="/llm") as server:
        assert ask(f"{server.url}/health").status == 200
        assert [ask(f"{server.url}/debug/waits", headers=bearer(key)).status for key in ("one", "root")] == [
            401,
            200,
        ]
        assert ask(f"{server.url}/v1/models").status == 401
        assert ask(f"{server.url}/v1/chat/completions", CHAT, headers=bearer("one")).status == 200
        assert ask(f"{server.url}/openapi.json").json["paths"]
