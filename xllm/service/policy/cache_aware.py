"""Cache aware: the least predicted time until the first token, with the prefix that each instance already holds.

    total = wait_s (outstanding work) + prefill_s (prompt tokens that are not cached there, and what they displace)

Both are real-valued seconds, so a long prefix outweighs a short queue and a long queue outweighs a short prefix. Load
guard: an instance far above the mean gets no credit for its cache.
"""

from __future__ import annotations

from operator import add

from xllm.service.cluster.view import ClusterView
from xllm.service.policy.load import TOKENS_PER_S, guard_limit, hit_column
from xllm.service.policy.score import Policy, ScoreTable
from xllm.types.request import Request

MISS_FACTOR = 4.0
"""A token that is not cached is computed now, and displaces others that are computed again, more than once where a
prefix is popular. Found by simulation (docs/decisions/0028); without hits it changes nothing."""


def _score(request: Request, view: ClusterView) -> ScoreTable:
    items = view.routable()
    instances = [item.id for item in items]
    cached = view.prefixes.match(request.block_hashes) if request.block_hashes else {}
    hit_tokens = hit_column(request, instances, cached)
    is_guarded = [0.0] * len(items)
    if cached:
        limit = guard_limit(items)
        for index, item in enumerate(items):
            if hit_tokens[index] and item.num_outstanding > limit:
                hit_tokens[index], is_guarded[index] = 0.0, 1.0
    num_tokens, token_s = request.num_prompt_tokens, MISS_FACTOR / TOKENS_PER_S
    wait_s = [item.outstanding_tokens / TOKENS_PER_S for item in items]
    prefill_s = [(num_tokens - hit) * token_s for hit in hit_tokens]
    parts = {"wait_s": wait_s, "prefill_s": prefill_s, "hit_tokens": hit_tokens, "is_guarded": is_guarded}
    return ScoreTable(instances, list(map(add, wait_s, prefill_s)), parts)


cache_aware = Policy("cache_aware", _score, wants_prefixes=True)
