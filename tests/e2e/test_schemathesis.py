"""schemathesis over /openapi.json: whatever the schema allows, no 5xx."""

from __future__ import annotations

import random

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from tests.fakes.http import ask
from tests.fakes.served import Served

PATHS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("GET", "/debug/waits"),
    ("GET", "/debug/requests/{request_id}"),
]
REQUIRED = {"model", "messages", "prompt", "tokens"}


@pytest.fixture(scope="module")
def schema(timed: Served) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{timed.url}/openapi.json")


def test_every_path_is_covered(timed: Served) -> None:
    found = ask(f"{timed.url}/openapi.json").json["paths"]
    assert sorted((m.upper(), p) for p, methods in found.items() for m in methods) == sorted(PATHS)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("method", "path"), PATHS)
def test_no_server_error(schema: schemathesis.BaseSchema, timed: Served, method: str, path: str) -> None:
    operation = schema[path][method]
    statuses: set[int] = set()

    # A body with every field rarely holds together; half of them keep the required fields and a few others.
    @given(
        case=operation.as_strategy(),
        kept=st.none() | st.integers(0, 2),
        draw=st.randoms(use_true_random=False),
    )
    @settings(
        max_examples=100 if method == "POST" else 15,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    def run(case: schemathesis.Case, kept: int | None, draw: random.Random) -> None:
        if kept is not None and isinstance(case.body, dict):
            others = sorted(case.body.keys() - REQUIRED)
            few = set(draw.sample(others, min(kept, len(others))))
            case.body = {k: v for k, v in case.body.items() if k in REQUIRED or k in few}
        with requests.Session() as session:
            response = case.call(base_url=timed.url, session=session, timeout=60)
            statuses.add(response.status_code)
            case.validate_response(response, checks=(not_a_server_error,))

    run()
    if path.startswith("/v1/c") or path.endswith("tokenize"):
        assert 200 in statuses, f"no generated body was accepted: {statuses}"
    assert ask(f"{timed.url}/health").status == 200
