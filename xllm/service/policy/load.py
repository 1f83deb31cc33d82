"""Predicted outstanding time: what an instance has to do before a new request's work is done.

All work is counted in prompt tokens (``InstanceView.outstanding_tokens``) and turned into seconds with one rate: the
instances of a group run the same model, and only the comparison between them decides. The service knows what it sent
itself and what of it was cached, without waiting for a heartbeat; what an instance reports beyond that is other
replicas' and counts in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xllm.service.cluster.view import InstanceView
from xllm.types.ids import InstanceId
from xllm.types.request import Request

TOKENS_PER_S = 8000.0
"""Prefill rate that turns tokens into the seconds of the scores."""
GUARD_FACTOR, GUARD_REQUESTS = 2.0, 8.0
"""An instance with more than this factor times the mean plus so many requests is not chosen for what it has cached."""


def guard_limit(items: Sequence[InstanceView]) -> float:
    """Outstanding requests above which an instance counts as overloaded."""
    return GUARD_FACTOR * sum([item.num_outstanding for item in items]) / max(len(items), 1) + GUARD_REQUESTS


def hit_column(
    request: Request, instances: Sequence[InstanceId], cached: Mapping[InstanceId, float]
) -> list[float]:
    """Tokens of the prompt that each instance has cached, given the blocks; the last token is always computed."""
    if not cached:
        return [0.0] * len(instances)
    size, most = request.block_hash_size, request.num_prompt_tokens - 1.0
    tokens = {name: min(blocks * size, most) for name, blocks in cached.items()}
    return [tokens.get(name, 0.0) for name in instances]
