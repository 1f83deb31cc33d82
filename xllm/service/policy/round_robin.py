"""Round robin without memory: the view counts what was routed, so equal shares follow from the fewest."""

from __future__ import annotations

from xllm.service.cluster.view import ClusterView
from xllm.service.policy.score import Policy, Score
from xllm.types.request import Request


def _score(request: Request, view: ClusterView) -> tuple[Score, ...]:
    return tuple(
        Score(item.id, float(item.num_routed), {"routed": float(item.num_routed)}) for item in view.routable()
    )


round_robin = Policy("round_robin", _score)
"""The routable instance with the fewest requests routed so far."""
