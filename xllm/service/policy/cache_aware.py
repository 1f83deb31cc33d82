"""Cache aware: the least predicted time until the first token, with the prefix that each instance already holds.

    total = wait_s (outstanding work) + prefill_s (prompt tokens that are not cached there, and what they displace)

Both are real-valued seconds, so a long prefix outweighs a short queue and a long queue outweighs a short prefix. Load
guard: an instance far above the mean gets no credit for its cache.
"""

from __future__ import annotations

from xllm.service.cluster.view import ClusterView
from xllm.service.policy.load import TOKENS_PER_S, guard_limit, outstanding_tokens
from xllm.service.policy.score import Policy, Score
from xllm.types.request import Request

MISS_FACTOR = 4.0
"""A token that is not cached is computed now, and displaces others that are computed again, more than once where a
prefix is popular. Found by simulation (docs/decisions/0028); without hits it changes nothing."""


def _score(request: Request, view: ClusterView) -> tuple[Score, ...]:
    items = view.routable()
    cached = view.prefixes.match(request.block_hashes) if request.block_hashes else {}
    limit = guard_limit(items) if cached else 0.0
    size, num_tokens = request.block_hash_size, request.num_prompt_tokens
    scores = []
    for item in items:
        name = item.info.id
        blocks = cached.get(name, 0.0)
        is_guarded = blocks > 0 and item.num_outstanding > limit
        hit_tokens = 0.0 if is_guarded else min(blocks * size, num_tokens - 1.0)
        wait_s = outstanding_tokens(item) / TOKENS_PER_S
        prefill_s = MISS_FACTOR * (num_tokens - hit_tokens) / TOKENS_PER_S
        parts = {
            "wait_s": wait_s,
            "prefill_s": prefill_s,
            "hit_tokens": hit_tokens,
            "is_guarded": float(is_guarded),
        }
        scores.append(Score(name, wait_s + prefill_s, parts))
    return tuple(scores)


cache_aware = Policy("cache_aware", _score, wants_prefixes=True)
