"""Round robin without memory: the view counts what was routed, so equal shares follow from the fewest."""

from __future__ import annotations

from xllm.service.cluster.view import ClusterView
from xllm.service.policy.score import Policy, ScoreTable
from xllm.types.request import Request


def _score(request: Request, view: ClusterView) -> ScoreTable:
    items = view.routable()
    routed = [float(item.num_routed) for item in items]
    return ScoreTable([item.id for item in items], routed, {"routed": routed})


round_robin = Policy("round_robin", _score)
"""The routable instance with the fewest requests routed so far."""
