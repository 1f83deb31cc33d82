"""Routing policies: pure functions (Request, ClusterView) -> Route, or None when no instance can take it.

round_robin.py  the instance that was sent the fewest requests so far
"""

from __future__ import annotations

from xllm.base.registry import Registry
from xllm.types.request import Route

POLICIES: Registry[Route | None] = Registry(
    "routing_policy", {"round_robin": "xllm.service.policy.round_robin:round_robin"}
)
"""Name -> policy; ``load(name)`` gives the function itself."""
