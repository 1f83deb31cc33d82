"""WatermarkAdmission: enter while what is known fits; growth is a matter of preemption."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from xllm.engine.cache.kv_cache import KVCache, PrefixHit
from xllm.engine.scheduler.sequence import Sequence


class WatermarkAdmission:
    """Admit when all known tokens of the sequence fit and ``watermark`` of every pool stays available for growth.

    Known tokens count at once, not per chunk: a half-prefilled sequence that starves for blocks helps nobody. With
    nothing running the watermark does not apply, so a lone sequence always starts.
    """

    __slots__ = ("_cache", "_num_running", "_watermark")

    def __init__(self, watermark: float) -> None:
        self._watermark = watermark
        self._num_running = 0
        self._cache: KVCache | None = None

    def begin_round(self, running: Seq[Sequence], cache: KVCache) -> None:
        """Remember how many run."""
        self._num_running = len(running)
        self._cache = cache

    def may_admit(self, seq: Sequence, hit: PrefixHit) -> bool:
        """See the class."""
        assert self._cache is not None, "may_admit outside a round"
        margin = self._watermark if self._num_running else 0.0
        if seq.tables.num_blocks:
            return True  # a fork holds its prefix already
        return self._cache.room_after(hit, len(seq.token_ids)) >= margin

    def on_admit(self, seq: Sequence) -> None:
        """One more runs."""
        self._num_running += 1

    def on_finish(self, seq: Sequence) -> None:
        """Lengths are of no interest."""

    def predicted_peak_blocks(self, running: Seq[Sequence], cache: KVCache) -> int | None:
        """No prediction."""
        return None
