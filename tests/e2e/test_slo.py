"""A budget out of reach over HTTP: 429 at once, when to come back, and why."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.http import ask
from tests.fakes.served import Served

BODY = {"prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": True}


def test_a_budget_out_of_reach_is_refused_and_explained(tiny_model_dir: Path) -> None:
    with Served(tiny_model_dir, "--executor", "timed:cpu-0.6b", "--scheduling-policy", "urgency") as served:
        url = f"{served.url}/v1/completions"
        assert ask(url, BODY | {"ttft_slo_ms": 20_000, "tpot_slo_ms": 5000}).status == 200
        refused = ask(url, BODY | {"ttft_slo_ms": 0.01, "request_id": "urgent"})
        assert refused.status == 429
        assert "predicted" in refused.raw.decode()
        assert int(refused.headers["retry-after"]) >= 1
        told = ask(f"{served.url}/debug/requests/cmpl-urgent").raw.decode()
        assert '"rejected"' in told
        assert "predicted wait" in told
        assert ask(url, BODY).status == 200  # without a budget nobody is refused
        assert ask(url, BODY | {"ttft_slo_ms": -1}).status == 400
