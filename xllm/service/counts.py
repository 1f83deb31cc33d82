"""Counts: what a service decided and lost, as /metrics shows it.

INVARIANT: counters only grow; nothing is kept per request, and per instance only while it is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from xllm.api.backend import Sample
from xllm.service.cluster.cluster import Cluster
from xllm.service.dispatch.dispatch import Dispatch
from xllm.service.hold_queue import HoldQueue
from xllm.service.policy.score import Decision
from xllm.service.prefix_feeds import PrefixFeeds
from xllm.types.instance import InstanceState


def reason_of(decision: Decision, state: InstanceState) -> str:
    """One word for why the chosen instance was chosen.

    ``degraded``, ``suspect``: nothing better was there; ``only``: one candidate; ``late``, ``in_budget``: latency
    budgets; ``cached``: a prefix was there; ``session``, ``turn``, ``load``.
    """
    parts = decision.chosen.parts
    if state != "ready":
        return state
    if len(decision.table.totals) == 1:
        return "only"
    if "violation" in parts:
        return "late" if parts["violation"] else "in_budget"
    if parts.get("hit_tokens"):
        return "cached"
    if "draw" in parts:
        return "session"
    return "turn" if "routed" in parts else "load"


class Counts:
    """See the module."""

    def __init__(self) -> None:
        self.routed: Counter[str] = Counter()
        """Decisions by reason."""
        self.lost: Counter[str] = Counter()
        """Attempts that were lost, by how: ``connection``, ``silent``."""
        self.num_held = 0
        """Requests that had to wait here."""

    def note_routed(self, decision: Decision, state: InstanceState) -> None:
        """A request, or another attempt of one, goes to an instance."""
        self.routed[reason_of(decision, state)] += 1

    def samples(
        self, cluster: Cluster, dispatch: Dispatch, queue: HoldQueue, feeds: PrefixFeeds
    ) -> Sequence[Sample]:
        """Everything that is counted here and in the parts of a service."""
        found = [Sample("route_decisions", num, (reason,)) for reason, num in self.routed.items()]
        found += [Sample("attempts_lost", num, (how,)) for how, num in self.lost.items()]
        found += [
            Sample("attempts_retried", dispatch.num_failovers),
            Sample("attempts_migrated", dispatch.num_migrated),
            Sample("num_requests_parked", dispatch.num_parked),
            Sample("requests_held", self.num_held),
            Sample("num_requests_held", queue.num_held(offline=False), ("online",)),
            Sample("num_requests_held", queue.num_held(offline=True), ("offline",)),
            Sample("predicted_cached_tokens", feeds.num_predicted_tokens),
            Sample("actual_cached_tokens", feeds.num_actual_tokens),
            Sample("mispredicted_cached_tokens", feeds.num_wrong_tokens),
            Sample("cache_prediction_alarms", feeds.num_alarms),
            Sample("kv_index_blocks", feeds.index.num_blocks),
            Sample("kv_index_gaps", feeds.index.num_gaps),
        ]
        states = {instance.info.id: instance.state for instance in cluster}
        states |= dict.fromkeys(cluster.refused, "refused")
        found += [Sample("instance_state", 1, (name, state)) for name, state in states.items()]
        return found
