"""ConservativeAdmission: enter only if everybody could produce every token they may; nobody is ever evicted."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from xllm.engine.cache.kv_cache import KVCache, PrefixHit
from xllm.engine.scheduler.admission.peak import candidate_tokens, measure_holdings
from xllm.engine.scheduler.sequence import Sequence


def max_remaining(seq: Sequence) -> int:
    """Output tokens the sequence may still produce."""
    return max(0, seq.max_output_tokens - seq.num_output)


class ConservativeAdmission:
    """Reserves ``max_tokens`` for every running sequence at once, shared prefixes counted once.

    With nothing running the first always enters, so a request whose maximum exceeds the pool still starts.
    """

    __slots__ = ("_cache", "_free_tokens", "_next", "_num_running")

    def __init__(self) -> None:
        self._cache: KVCache | None = None
        self._num_running = 0
        self._free_tokens = 0.0
        self._next = 0.0

    def begin_round(self, running: Seq[Sequence], cache: KVCache) -> None:
        """Add up what is reserved."""
        holdings = measure_holdings(running, cache)
        reserved = float(holdings.own.sum()) + sum(max_remaining(s) for s in running)
        self._free_tokens = holdings.capacity_tokens - holdings.shared_tokens - reserved
        self._cache, self._num_running = cache, len(running)

    def may_admit(self, seq: Sequence, hit: PrefixHit) -> bool:
        """Whether its own maximum is free too."""
        assert self._cache is not None, "may_admit outside a round"
        self._next = candidate_tokens(seq, hit, self._cache) + max_remaining(seq)
        return self._num_running == 0 or self._next <= self._free_tokens

    def on_admit(self, seq: Sequence) -> None:
        """Its maximum is reserved."""
        self._free_tokens -= self._next
        self._num_running += 1

    def on_finish(self, seq: Sequence) -> None:
        """Lengths are of no interest."""

    def predicted_peak_blocks(self, running: Seq[Sequence], cache: KVCache) -> int | None:
        """What is reserved, in blocks."""
        holdings = measure_holdings(running, cache)
        reserved = float(holdings.own.sum()) + holdings.shared_tokens + sum(max_remaining(s) for s in running)
        return min(cache.pools[cache.main_group].total, int(-(-reserved // cache.block_size)))
