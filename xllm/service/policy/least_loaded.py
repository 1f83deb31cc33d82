"""Least loaded: the least predicted outstanding time."""

from __future__ import annotations

from xllm.service.cluster.view import ClusterView
from xllm.service.policy.load import TOKENS_PER_S, outstanding_tokens
from xllm.service.policy.score import Policy, Score
from xllm.types.request import Request


def _score(request: Request, view: ClusterView) -> tuple[Score, ...]:
    scores = []
    for item in view.routable():
        wait_s = outstanding_tokens(item) / TOKENS_PER_S
        scores.append(Score(item.id, wait_s, {"wait_s": wait_s}))
    return tuple(scores)


least_loaded = Policy("least_loaded", _score)
