"""Routing policies: pure functions (Request, ClusterView) -> a score per instance that can take it; the least wins.

score.py             Score, ScoreTable, Decision, Policy
load.py              predicted outstanding work, the load guard, cached tokens
round_robin.py       the instance that was sent the fewest requests so far
least_loaded.py      the least predicted outstanding time
cache_aware.py       the least predicted time to the first token, cached prefixes counted
slo_aware.py         the least predicted time to the first token among those that keep the request's latency budgets
session_affinity.py  the instance of the session or tenant, by rendezvous hashing
"""

from __future__ import annotations

from xllm.base.registry import Registry
from xllm.types.request import Route

POLICIES: Registry[Route | None] = Registry(
    "routing_policy",
    {
        "round_robin": "xllm.service.policy.round_robin:round_robin",
        "least_loaded": "xllm.service.policy.least_loaded:least_loaded",
        "cache_aware": "xllm.service.policy.cache_aware:cache_aware",
        "slo_aware": "xllm.service.policy.slo_aware:slo_aware",
        "session_affinity": "xllm.service.policy.session_affinity:session_affinity",
    },
)
"""Name -> policy; ``load(name)`` gives the policy itself."""
