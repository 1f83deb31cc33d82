"""Predicted outstanding time: what an instance has to do before a new request's work is done.

All work is counted in prompt tokens and turned into seconds with one rate: the instances of a group run the same model,
and only the comparison between them decides. What was sent since an instance last reported counts as much as the
request at hand, so that a burst between two heartbeats spreads.
"""

from __future__ import annotations

from xllm.service.cluster.view import InstanceView

TOKENS_PER_S = 8000.0
"""Prefill rate that turns tokens into the seconds of the scores."""
RUNNING_TOKENS = 32.0
"""A running sequence costs a newcomer about as much time as this many prompt tokens: its share of the steps."""
GUARD_FACTOR, GUARD_REQUESTS = 2.0, 8.0
"""An instance with more than this factor times the mean plus so many requests is not chosen for what it has cached."""


def outstanding_tokens(item: InstanceView, num_prompt_tokens: int) -> float:
    """Prompt tokens, or as much work, that stand before a request of this size."""
    load = item.load
    num_running = load.num_running + item.num_unreported
    return load.num_waiting_tokens + item.num_unreported * num_prompt_tokens + RUNNING_TOKENS * num_running


def guard_limit(items: tuple[InstanceView, ...]) -> float:
    """Outstanding requests above which an instance counts as overloaded."""
    return GUARD_FACTOR * sum(item.num_outstanding for item in items) / max(len(items), 1) + GUARD_REQUESTS
