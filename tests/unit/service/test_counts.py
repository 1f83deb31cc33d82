"""Why an instance was chosen, in one word; and what is counted of predictions."""

from __future__ import annotations

from typing import Any

import pytest

from xllm.service.counts import reason_of
from xllm.service.policy.score import Decision, Score, ScoreTable
from xllm.service.prefix_feeds import PrefixFeeds
from xllm.types.output import RequestOutput
from xllm.types.request import Request, Route


@pytest.mark.parametrize(
    ("parts", "num", "state", "reason"),
    [
        ({"wait_s": 1.0}, 2, "ready", "load"),
        ({"wait_s": 1.0}, 1, "ready", "only"),
        ({"wait_s": 1.0}, 1, "suspect", "suspect"),
        ({"wait_s": 1.0, "hit_tokens": 5.0}, 2, "ready", "cached"),
        ({"wait_s": 1.0, "hit_tokens": 0.0}, 2, "ready", "load"),
        ({"routed": 3.0}, 2, "ready", "turn"),
        ({"draw": 0.5}, 2, "ready", "session"),
        ({"violation": 0.0, "hit_tokens": 5.0}, 2, "ready", "in_budget"),
        ({"violation": 0.5, "hit_tokens": 5.0}, 2, "ready", "late"),
        ({"violation": 0.5}, 2, "degraded", "degraded"),
    ],
)
def test_a_decision_in_one_word(parts: dict[str, float], num: int, state: Any, reason: str) -> None:
    columns = {name: [value] * num for name, value in parts.items()}
    table = ScoreTable([f"e{i}" for i in range(num)], [float(i) for i in range(num)], columns)
    decision = Decision(Route(prefill="e0", decode="e0"), table.row(0), table)
    assert reason_of(decision, state) == reason
    assert decision.scores == tuple(Score(f"e{i}", float(i), parts) for i in range(num))


def test_predictions_are_summed_over_instances_that_come_and_go() -> None:
    feeds = PrefixFeeds()
    for name, actual in (("a", 30), ("b", 50)):
        feeds.on_routed(Request(id=name, prompt_token_ids=(1,) * 64, seed=0), name, 40.0)
        feeds.on_outputs([RequestOutput(name, 0, 0, 0, (1,), num_cached_tokens=actual)])
        feeds.forget(name)
    assert not feeds.predicted_tokens and not feeds.actual_tokens
    assert (feeds.num_predicted_tokens, feeds.num_actual_tokens, feeds.num_wrong_tokens) == (80, 80, 20)
