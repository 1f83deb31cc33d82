"""Predicted outstanding time: what an instance has to do before a new request's work is done.

All work is counted in prompt tokens and turned into seconds with one rate: the instances of a group run the same model,
and only the comparison between them decides. The service knows what it sent itself and what of it was cached, without
waiting for a heartbeat; what an instance reports beyond that is other replicas' and counts in full.
"""

from __future__ import annotations

from xllm.service.cluster.view import InstanceView

TOKENS_PER_S = 8000.0
"""Prefill rate that turns tokens into the seconds of the scores."""
RUNNING_TOKENS = 4.0
"""A sequence that is there costs a newcomer about as much time as this many prompt tokens: its share of the steps."""
GUARD_FACTOR, GUARD_REQUESTS = 2.0, 8.0
"""An instance with more than this factor times the mean plus so many requests is not chosen for what it has cached."""


def outstanding_tokens(item: InstanceView) -> float:
    """Prompt tokens, or as much work, that stand before a new request."""
    load = item.load
    num_running = max(load.num_running + load.num_waiting, item.num_inflight)
    return queued_tokens(item) + RUNNING_TOKENS * num_running


def queued_tokens(item: InstanceView) -> float:
    """Prompt tokens to compute for requests that have no output yet."""
    foreign = item.load.num_waiting_tokens - item.num_pending_prompt_tokens
    return item.num_pending_tokens + (foreign if foreign > 0 else 0)


def guard_limit(items: tuple[InstanceView, ...]) -> float:
    """Outstanding requests above which an instance counts as overloaded."""
    return GUARD_FACTOR * sum(item.num_outstanding for item in items) / max(len(items), 1) + GUARD_REQUESTS
