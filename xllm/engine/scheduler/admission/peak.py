"""What a running set will need at most (Past-Future scheduler; related systems 1).

Let sequence i hold ``a_i`` tokens and produce ``k_i`` more, all at one token per step, and give everything back when it
ends. Sorted by k descending, the moment before the j-th ends is the only kind of moment at which the sum can peak:

    M_peak = max over j of ( sum_{i <= j} a_i  +  j * k_j )

Blocks shared by several sequences are counted once, in ``base``; a partly filled last block counts as half a block.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xllm.engine.cache.kv_cache import KVCache, PrefixHit
from xllm.engine.scheduler.sequence import Sequence

Floats = NDArray[np.float64]


def peak_tokens(held: Floats, remaining: Floats) -> float:
    """The formula above, in tokens; O(n log n)."""
    if held.size == 0:
        return 0.0
    order = np.argsort(-remaining, kind="stable")
    counts = np.arange(1, held.size + 1)
    return float(np.max(np.cumsum(held[order]) + counts * remaining[order]))


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a running set holds: own tokens per sequence, and what several share, in tokens."""

    own: Floats
    shared_tokens: float
    capacity_tokens: float


def own_tokens(num_tokens: int, num_shared: int, block_size: int) -> float:
    """Tokens a sequence occupies alone once its known ones are computed; half a block for its last one."""
    return max(0, num_tokens - num_shared) + (block_size - 1) / 2


def measure_holdings(running: Seq[Sequence], cache: KVCache) -> Holdings:
    """Own tokens of each running sequence (known ones, computed or not) and the tokens in blocks they share."""
    group, size = cache.main_group, cache.block_size
    pool = cache.pools[group]
    shared: set[int] = set()
    own = np.empty(len(running))
    for index, seq in enumerate(running):
        blocks = seq.tables.groups[group]
        num_shared = 0
        for block in blocks:  # shared blocks are a prefix
            if pool.ref_count(block) < 2:
                break
            shared.add(block)
            num_shared += 1
        own[index] = own_tokens(len(seq.token_ids), num_shared * size, size)
    return Holdings(own, float(len(shared) * size), float(pool.total * size))


def candidate_tokens(seq: Sequence, hit: PrefixHit, cache: KVCache) -> float:
    """Tokens a candidate would add: hits that somebody uses already cost nothing, cached ones do."""
    group = cache.main_group
    if seq.tables.num_blocks:  # a fork holds shared blocks and at most one of its own
        return own_tokens(len(seq.token_ids), seq.num_computed, cache.block_size)
    in_use = sum(1 for b in hit.blocks[group] if cache.pools[group].ref_count(b) > 0)
    return own_tokens(len(seq.token_ids), in_use * cache.block_size, cache.block_size)
