"""PastFutureAdmission: enter if the predicted peak of memory fits (Past-Future scheduler; related systems 1).

Output lengths are unknown, so they are sampled: for a running sequence from P(L | L > produced so far), for a candidate
from the plain history. Several independent draws are made (more when few run) and the largest peak decides: the maximum
over redraws is what buys safety.

Prefill that is not done yet makes a sequence live longer: its remaining steps grow by the chunks it still needs. Steps
in flight add one token of lag each.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from xllm.engine.cache.kv_cache import KVCache, PrefixHit
from xllm.engine.scheduler.admission.history import OutputHistory
from xllm.engine.scheduler.admission.peak import (
    Floats,
    candidate_tokens,
    measure_holdings,
    peak_tokens,
)
from xllm.engine.scheduler.sequence import Sequence

MAX_DRAWS = 5
RETRY_STEPS = 10
"""Steps for which a refusal stands while nobody leaves: asking again each step would wait for a lucky draw."""


class PastFutureAdmission:
    """See the module.

    INVARIANTS
    - Draws of running sequences stay fixed during a round; every candidate gets fresh ones.
    - With nothing running the first always enters.
    - A refusal stands for RETRY_STEPS steps, or until a sequence leaves.
    """

    def __init__(self, history: OutputHistory, *, reserve: float, chunk_tokens: int, lag_tokens: int) -> None:
        self._history = history
        self._reserve = reserve
        self._chunk = chunk_tokens
        self._lag = lag_tokens
        self._cache: KVCache | None = None
        self._held: Floats = np.empty(0)
        self._remaining: Floats = np.empty((1, 0))
        self._budget = 0.0
        self._candidate: tuple[float, Floats] = (0.0, np.empty(0))
        self._num_running = 0
        self._steps_to_wait = 0

    def begin_round(self, running: Seq[Sequence], cache: KVCache) -> None:
        """Measure what runs and draw its remaining lengths, unless the last refusal still stands."""
        self._steps_to_wait = 0 if len(running) < self._num_running else max(0, self._steps_to_wait - 1)
        self._num_running = len(running)
        if self._steps_to_wait:
            return
        holdings = measure_holdings(running, cache)
        self._cache = cache
        self._held = holdings.own
        self._budget = holdings.capacity_tokens * (1.0 - self._reserve) - holdings.shared_tokens
        self._remaining = self._draw(running)

    def _draw(self, running: Seq[Sequence]) -> Floats:
        num_draws = min(MAX_DRAWS, 200 // max(1, len(running)) + 1)
        drawn = self._history.sample_remaining(running, num_draws)
        extra = [self._lag + self._prefill_steps(len(s.token_ids) - s.num_scheduled) for s in running]
        return drawn + np.asarray(extra) if extra else drawn

    def _prefill_steps(self, num_tokens: int) -> int:
        return -(-num_tokens // self._chunk) if num_tokens > 1 else 0

    def may_admit(self, seq: Sequence, hit: PrefixHit) -> bool:
        """Whether the largest of the peaks with it fits."""
        assert self._cache is not None, "may_admit outside a round"
        if self._steps_to_wait:
            return False
        tokens = candidate_tokens(seq, hit, self._cache)
        unprefilled = len(seq.token_ids) - max(hit.num_tokens, seq.num_computed)
        steps = self._history.sample_fresh(seq, len(self._remaining))
        steps = steps + self._lag + self._prefill_steps(unprefilled)
        self._candidate = (tokens, steps)
        if not self._held.size:
            return True
        held = np.append(self._held, tokens)
        peaks = (
            peak_tokens(held, np.append(row, step)) for row, step in zip(self._remaining, steps, strict=True)
        )
        if max(peaks) < self._budget:
            return True
        self._steps_to_wait = RETRY_STEPS
        return False

    def on_admit(self, seq: Sequence) -> None:
        """Its draws stay for the rest of the round."""
        tokens, steps = self._candidate
        self._held = np.append(self._held, tokens)
        self._remaining = np.column_stack((self._remaining, steps))
        self._num_running += 1

    def on_finish(self, seq: Sequence) -> None:
        """One more known length."""
        self._history.push(seq)

    def predicted_peak_blocks(self, running: Seq[Sequence], cache: KVCache) -> int | None:
        """The largest drawn peak, in blocks; may exceed the pool."""
        holdings = measure_holdings(running, cache)
        peak = max((peak_tokens(holdings.own, row) for row in self._draw(running)), default=0.0)
        return int(-(-(peak + holdings.shared_tokens) // cache.block_size))
