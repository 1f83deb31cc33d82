"""Latency budgets and tenants on their way from a body to the request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.backend import FakeBackend
from tests.fakes.edge_server import EdgeServer
from tests.fakes.http import ask
from xllm.api.guard import KeyRing
from xllm.types.request import SloBudgets
from xllm.types.tenant import key_tenant, user_tenant

BODY: dict[str, Any] = {"prompt": "tell me more", "max_tokens": 4}


def test_budgets_reach_the_request(server: EdgeServer, backend: FakeBackend) -> None:
    fields = {"ttft_slo_ms": 250, "tpot_slo_ms": 40.5, "ttlt_slo_ms": 9000, "offline": True, "user": "alice"}
    assert ask(server.url + "/v1/completions", BODY | fields).status == 200
    request = backend.requests[-1]
    assert request.slo == SloBudgets(ttft_ms=250.0, tpot_ms=40.5, ttlt_ms=9000.0)
    assert request.offline
    assert request.tenant == user_tenant("alice")
    assert "alice" not in request.tenant


@pytest.mark.parametrize("name", ["ttft_slo_ms", "tpot_slo_ms", "ttlt_slo_ms"])
@pytest.mark.parametrize("value", [0, -1, "soon", 1e400])
def test_impossible_budgets_are_named(server: EdgeServer, name: str, value: object) -> None:
    reply = ask(server.url + "/v1/completions", BODY | {name: value})
    assert reply.status == 400
    if isinstance(value, int):
        assert name in reply.raw.decode()


def test_several_keys_tell_tenants_apart_and_never_show() -> None:
    ring = KeyRing(["first-key", "second-key"], None)
    tenants = {ring.check("/v1/completions", f"Bearer {key}") for key in ("first-key", "second-key")}
    assert tenants == {key_tenant(b"first-key"), key_tenant(b"second-key")}
    assert len(tenants) == 2
    assert not any("key-" in t or "first" in t or "second" in t for t in tenants)
    assert KeyRing(["only"], None).check("/v1/completions", "Bearer only") == ""
    assert KeyRing([], None).check("/v1/completions", None) == ""
