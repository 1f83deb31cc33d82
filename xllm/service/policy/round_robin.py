"""Round robin without memory: the view counts what was routed, so equal shares follow from the fewest."""

from __future__ import annotations

from xllm.service.cluster.view import ClusterView
from xllm.types.request import Request, Route


def round_robin(request: Request, view: ClusterView) -> Route | None:
    """The routable instance with the fewest requests routed so far; ties go by id. It prefills and decodes."""
    instances = view.routable()
    if not instances:
        return None
    chosen = min(instances, key=lambda item: (item.num_routed, item.id))
    return Route(prefill=chosen.id, decode=chosen.id)
