"""Clients that leave, clients that do not read, and a server that is told to end."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable

import openai

from tests.fakes.backend import ANSWER, FakeBackend
from tests.fakes.edge_server import EdgeServer
from tests.fakes.http import ask, events
from xllm.api.backend import OutputSink
from xllm.api.generation import OutputBuffer
from xllm.errors import CapacityError
from xllm.types.output import RequestOutput
from xllm.types.request import Request

BODY = {"messages": [{"role": "user", "content": "x"}], "ignore_eos": True, "max_tokens": 200}


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the bound only keeps a broken test from hanging."""
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline, "the condition never came"
        time.sleep(0.002)


def open_raw(server: EdgeServer, body: dict[str, object]) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    raw = json.dumps(body).encode()
    conn = socket.create_connection((host, int(port)), timeout=100)
    conn.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw
    )
    return conn


def test_a_client_that_leaves_ends_its_request_also_without_stream() -> None:
    backend = FakeBackend(delay_s=0.05)
    with EdgeServer(backend) as server:
        for stream in (True, False):
            conn = open_raw(server, BODY | {"stream": stream})
            until(lambda: bool(backend.running))
            if stream:
                assert conn.recv(100)
            conn.close()
            until(lambda: not backend.running)
            assert backend.aborts[-1][1:] == (None, "abort")
        assert "client_disconnects_total" in ask(f"{server.url}/metrics").raw.decode()
    assert len(backend.requests) == 2


class HoldingBackend(FakeBackend):
    """Every request waits for an instance until it is aborted."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, asyncio.Future[None]] = {}

    async def submit(self, request: Request, sink: OutputSink) -> None:
        self.held[request.id] = asyncio.get_running_loop().create_future()
        await self.held[request.id]

    def abort(self, request_id: str, *, choice: int | None = None, reason: str = "abort") -> None:
        super().abort(request_id, choice=choice, reason=reason)
        self.held.pop(request_id).set_exception(CapacityError("ended while it waited", status=503))


def test_a_client_that_leaves_while_its_request_waits_for_an_instance_frees_its_place() -> None:
    backend = HoldingBackend()
    with EdgeServer(backend) as server:
        for stream in (True, False):
            conn = open_raw(server, BODY | {"stream": stream})
            until(lambda: bool(backend.held))
            conn.close()
            until(lambda: not backend.held)
        until(lambda: 'status="499"' in ask(f"{server.url}/metrics").raw.decode())
        text = ask(f"{server.url}/metrics").raw.decode()
        assert 'status="503"' not in text and re.search(r"client_disconnects_total\{.*\} 2", text)


def test_a_silent_stream_notices_the_client_leaving() -> None:
    backend = FakeBackend(delay_s=30.0)  # no token ever comes
    with EdgeServer(backend, shutdown_timeout_s=0.0) as server:
        conn = open_raw(server, BODY | {"stream": True})
        until(lambda: bool(backend.running))
        conn.close()
        until(lambda: bool(backend.aborts))
        server.call(lambda: [task.cancel() for task in backend.running.values()])


def test_half_of_many_clients_leave_and_the_others_are_exact() -> None:
    backend = FakeBackend(delay_s=0.004)
    with EdgeServer(backend) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        texts: list[str] = []

        def stays() -> None:
            stream = client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "x"}], stream=True
            )
            texts.append("".join(c.choices[0].delta.content or "" for c in stream))

        threads = [threading.Thread(target=stays) for _ in range(30)]
        leavers = [open_raw(server, BODY | {"stream": True}) for _ in range(30)]
        for thread in threads:
            thread.start()
        for conn in leavers:
            assert conn.recv(50)
            conn.close()
        for thread in threads:
            thread.join(100)
        until(lambda: not backend.running)
        assert texts == [ANSWER] * 30
    assert server.num_tasks_left == 0


def test_a_reader_that_is_too_slow_is_ended() -> None:
    buffer = OutputBuffer(max_outputs=3)
    output = RequestOutput("r", 0, 0, 0, (1,))
    assert [buffer.deliver([output]) for _ in range(4)] == [True, True, True, False]
    assert buffer.has_overflowed
    buffer.close()
    assert buffer.deliver([output]) is True


def test_a_client_that_never_reads_cannot_fill_the_memory() -> None:
    backend = FakeBackend(tokens_per_step=20, max_model_len=10**6)
    with EdgeServer(backend) as server:
        conn = open_raw(
            server, BODY | {"stream": True, "max_tokens": 900_000, "logprobs": True, "top_logprobs": 5}
        )
        until(lambda: bool(backend.running))
        until(lambda: ("slow client") in [reason for _, _, reason in backend.aborts] or not backend.running)
        assert [reason for _, _, reason in backend.aborts if reason == "slow client"]
        conn.close()
        until(lambda: not backend.running)


def test_drain_readiness_goes_first_and_streams_finish() -> None:
    def hold(request: object, num_tokens: int) -> None:
        if num_tokens == 2:
            backend.is_held = True  # from the next token on, until we have looked
            held.set()

    held = threading.Event()
    backend = FakeBackend(before_step=hold)
    with EdgeServer(backend, shutdown_timeout_s=100.0) as server:
        host = server.url.removeprefix("http://")
        conn = http.client.HTTPConnection(host, timeout=100)
        conn.request(
            "POST", "/v1/chat/completions", json.dumps({"messages": BODY["messages"], "stream": True})
        )
        assert held.wait(100)
        server.begin_shutdown()
        assert ask(f"{server.url}/ready").status == 503
        assert ask(f"{server.url}/health").status == 200
        assert ask(f"{server.url}/v1/completions", {"prompt": "x"}).status == 503
        backend.is_held = False
        got = events(conn.getresponse().read())
        assert got[-1][1] == "[DONE]"
        assert "".join(d["choices"][0]["delta"].get("content", "") for _, d in got[:-1]) == ANSWER
        conn.close()
        server.join()


def test_drain_ends_what_takes_too_long_with_an_error_event() -> None:
    backend = FakeBackend(delay_s=0.05)
    with EdgeServer(backend, shutdown_timeout_s=0.05) as server:
        host = server.url.removeprefix("http://")
        conn = http.client.HTTPConnection(host, timeout=100)
        conn.request("POST", "/v1/chat/completions", json.dumps(BODY | {"stream": True}))
        until(lambda: bool(backend.running))
        server.begin_shutdown()
        got = events(conn.getresponse().read())
        assert got[-1][1]["error"]["code"] == 503
        conn.close()
        server.join()


def test_a_second_signal_does_not_wait_for_the_drain() -> None:
    backend = FakeBackend(delay_s=300.0)  # no token ever comes
    with EdgeServer(backend, shutdown_timeout_s=300.0) as server:
        conn = open_raw(server, BODY | {"stream": True})
        until(lambda: bool(backend.running))
        server.begin_shutdown()
        assert ask(f"{server.url}/ready").status == 503
        server.begin_shutdown()
        server.join()
        conn.close()
