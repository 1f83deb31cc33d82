"""Least loaded: the least predicted outstanding time."""

from __future__ import annotations

from xllm.service.cluster.view import ClusterView
from xllm.service.policy.load import TOKENS_PER_S
from xllm.service.policy.score import Policy, ScoreTable
from xllm.types.request import Request


def _score(request: Request, view: ClusterView) -> ScoreTable:
    items = view.routable()
    wait_s = [item.outstanding_tokens / TOKENS_PER_S for item in items]
    return ScoreTable([item.id for item in items], wait_s, {"wait_s": wait_s})


least_loaded = Policy("least_loaded", _score)
