"""ZeroEvictAdmission: enter if nobody would be evicted within a horizon, counted in exact blocks.

Every sequence is assumed to produce its remaining maximum, at most ``horizon_tokens`` more; then it gives back the
blocks that nobody shares. The sum can only peak just before one of them ends, so those moments are checked, each with
exact rounding to blocks (report section 3.10, zero-evict; the original advances block by block).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from xllm.engine.cache.kv_cache import KVCache, PrefixHit
from xllm.engine.scheduler.admission.conservative import max_remaining
from xllm.engine.scheduler.admission.peak import Floats
from xllm.engine.scheduler.sequence import Sequence


def peak_blocks(own_tokens: Floats, remaining: Floats, block_size: int) -> int:
    """Blocks at the worst moment: max over ends k_j of the sum over k_i >= k_j of ceil((own_i + k_j) / block)."""
    if own_tokens.size == 0:
        return 0
    ends = np.unique(remaining)[:, None]
    blocks = np.ceil((own_tokens[None, :] + ends) / block_size)
    return int(np.max(np.sum(np.where(remaining[None, :] >= ends, blocks, 0.0), axis=1)))


class ZeroEvictAdmission:
    """See the module. With nothing running the first always enters."""

    def __init__(self, *, horizon_tokens: int, lag_tokens: int) -> None:
        self._horizon = horizon_tokens
        self._lag = lag_tokens
        self._cache: KVCache | None = None
        self._own: Floats = np.empty(0)
        self._remaining: Floats = np.empty(0)
        self._blocks = 0
        self._candidate = (0.0, 0.0)

    def begin_round(self, running: Seq[Sequence], cache: KVCache) -> None:
        """Measure what runs."""
        self._cache = cache
        self._own, self._remaining, shared = self._measure(running, cache)
        self._blocks = cache.pools[cache.main_group].total - shared

    def _measure(self, running: Seq[Sequence], cache: KVCache) -> tuple[Floats, Floats, int]:
        pool, size = cache.pools[cache.main_group], cache.block_size
        shared: set[int] = set()
        own = np.empty(len(running))
        for index, seq in enumerate(running):
            mine = [b for b in seq.tables.groups[cache.main_group] if pool.ref_count(b) > 1]
            shared.update(mine)
            own[index] = len(seq.token_ids) - len(mine) * size
        remaining = np.asarray([self._steps(s) for s in running], dtype=np.float64)
        return own, remaining, len(shared)

    def _steps(self, seq: Sequence) -> float:
        return float(min(max_remaining(seq), self._horizon) + self._lag)

    def may_admit(self, seq: Sequence, hit: PrefixHit) -> bool:
        """Whether the worst moment with it still fits."""
        assert self._cache is not None, "may_admit outside a round"
        cache = self._cache
        if seq.tables.num_blocks:
            num_shared = seq.num_computed // cache.block_size
        else:
            pool = cache.pools[cache.main_group]
            num_shared = sum(1 for b in hit.blocks[cache.main_group] if pool.ref_count(b) > 0)
        self._candidate = (float(len(seq.token_ids) - num_shared * cache.block_size), self._steps(seq))
        if not self._own.size:
            return True
        own, steps = (
            np.append(a, b) for a, b in zip((self._own, self._remaining), self._candidate, strict=True)
        )
        return peak_blocks(own, steps, cache.block_size) <= self._blocks

    def on_admit(self, seq: Sequence) -> None:
        """It counts from now on."""
        self._own = np.append(self._own, self._candidate[0])
        self._remaining = np.append(self._remaining, self._candidate[1])

    def on_finish(self, seq: Sequence) -> None:
        """Lengths are of no interest."""

    def predicted_peak_blocks(self, running: Seq[Sequence], cache: KVCache) -> int | None:
        """The worst moment within the horizon."""
        own, remaining, shared = self._measure(running, cache)
        return peak_blocks(own, remaining, cache.block_size) + shared
