"""Metrics and request lines: what is declared is fed, vLLM's names on demand, never a text."""

from __future__ import annotations

import logging
import re

import pytest

from tests.fakes.backend import FakeBackend
from tests.fakes.edge_server import EdgeServer
from tests.fakes.http import ask
from xllm.base.log import REQUEST_LOGGER
from xllm.base.metrics import METRICS

CHAT = {"messages": [{"role": "user", "content": "my secret"}], "max_tokens": 4}


def samples(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in text.splitlines():
        if match := re.match(r"([a-z]+:[a-z_0-9]+)(?:\{.*\})? (\S+)$", line):
            found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found


def test_every_declared_metric_is_fed() -> None:
    backend = FakeBackend(max_running=1)
    with EdgeServer(backend) as server:
        ask(f"{server.url}/v1/chat/completions", CHAT | {"stream": True})
        ask(f"{server.url}/v1/completions", {"prompt": ["a", "b"]})
        found = samples(ask(f"{server.url}/metrics").raw.decode())
    for row in METRICS:
        name = f"xllm:{row.name}" + {"counter": "_total", "histogram": "_count", "gauge": ""}[row.kind]
        assert name in found, row.name
        if row.kind == "histogram":
            assert found[name] > 0, f"{row.name} is declared and never observed"
    assert found["xllm:requests_refused_total"] == 1
    assert found["xllm:kv_cache_usage_perc"] == 0.25
    assert found["xllm:engine_steps_total"] == 5


def test_vllms_names_only_when_asked() -> None:
    with EdgeServer(FakeBackend()) as plain, EdgeServer(FakeBackend(), metrics_compat="vllm") as compat:
        assert "vllm:" not in ask(f"{plain.url}/metrics").raw.decode()
        text = ask(f"{compat.url}/metrics").raw.decode()
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "time_to_first_token_seconds",
    ):
        assert f"vllm:{name}" in text and f"xllm:{name}" in text
    assert "vllm:num_kv_blocks" not in text, "vLLM has no such metric"


def test_request_lines_name_the_request_and_its_end_but_not_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, REQUEST_LOGGER), EdgeServer(FakeBackend()) as server:
        ask(f"{server.url}/v1/chat/completions", CHAT | {"request_id": "me"})
    lines = [record.getMessage() for record in caplog.records if record.name == REQUEST_LOGGER]
    assert [line.split()[:2] for line in lines] == [["chatcmpl-me", "arrived:"], ["chatcmpl-me", "finished"]]
    assert "secret" not in "".join(lines)


def test_ready_and_version_and_debug(server: EdgeServer) -> None:
    assert ask(f"{server.url}/ready").json == {"ready": True}
    assert set(ask(f"{server.url}/version").json) == {"version"}
    ask(f"{server.url}/v1/chat/completions", CHAT | {"request_id": "known"})
    assert ask(f"{server.url}/debug/requests/chatcmpl-known").json["decisions"] == [
        {"age_s": 0.0, "event": "queued"}
    ]
    assert ask(f"{server.url}/debug/requests/unknown").status == 404
    assert ask(f"{server.url}/debug/waits").json["waits"][0]["owner"] == "fake"
