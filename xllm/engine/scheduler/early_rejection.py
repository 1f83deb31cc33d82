"""Who is not let in at all: a request whose predicted first token is later than its TTFT budget is refused at once.

The prediction adds up what stands before the request in the policy's order: the prompt tokens still to compute at the
present pace of prefills, and, where the rows or the blocks are taken, the time until enough sequences have ended. It
is then multiplied by a factor per size of the request (powers of two), learned from what accepted requests
experienced: requests that come later and go first are not in the sum, their effect is in the factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from xllm.base.trace import DecisionTrace, NullTrace
from xllm.engine.scheduler.pace import measure_pace
from xllm.engine.scheduler.scheduler import Scheduler
from xllm.engine.scheduler.sequence import Sequence
from xllm.errors import CapacityError
from xllm.perf.time_model import TimeModel

LEARN_RATE = 0.05
FACTOR_RANGE = (0.5, 4.0)
LEAST_LEARNED_S = 0.01
"""Predictions below this say nothing about the factor."""


class EntryGate(Protocol):
    """Asked before a request is queued; told what became of the accepted ones."""

    num_rejected: int

    def check(self, seq: Sequence, scheduler: Scheduler, now_s: float) -> None:
        """Raise CapacityError to refuse the request of ``seq``, which is not queued yet."""
        ...

    def predicted_wait_s(self, scheduler: Scheduler, now_s: float) -> float | None:
        """How long a request that comes now waits for its first token; None: no idea."""
        ...

    def on_first_token(self, seq: Sequence, now_s: float) -> None:
        """An accepted request has its first token."""
        ...

    def on_finish(self, seq: Sequence, now_s: float) -> None:
        """A sequence is over."""
        ...


class OpenGate:
    """Lets everybody in."""

    num_rejected = 0

    def check(self, seq: Sequence, scheduler: Scheduler, now_s: float) -> None:
        """Nobody is refused."""

    def predicted_wait_s(self, scheduler: Scheduler, now_s: float) -> float | None:
        """No idea."""
        return None

    def on_first_token(self, seq: Sequence, now_s: float) -> None:
        """Of no interest."""

    def on_finish(self, seq: Sequence, now_s: float) -> None:
        """Of no interest."""


@dataclass(slots=True)
class _Ahead:
    """What runs before a request."""

    num_tokens: int = 0
    num_seqs: int = 0
    """Of them, without a row yet."""
    num_blocks: int = 0

    @classmethod
    def of(cls, seqs: Iterable[Sequence], block_size: int) -> _Ahead:
        """Sums of what is still to do."""
        ahead = cls()
        for seq in seqs:
            ahead.num_tokens += max(0, len(seq.token_ids) - seq.num_scheduled)
            if seq.row is None:
                ahead.num_seqs += 1
                ahead.num_blocks += len(seq.token_ids) // block_size + 1
        return ahead


def _open(scheduler: Scheduler) -> list[Sequence]:
    """Who needs prompt tokens computed: everybody that waits, and the running ones without a first token."""
    return [*scheduler.waiting, *(s for s in scheduler.running if s.first_token_s is None)]


class EarlyRejection:
    """See the module; ``rejects`` False only predicts."""

    def __init__(
        self, times: TimeModel, trace: DecisionTrace | NullTrace, *, margin: float, rejects: bool = True
    ) -> None:
        self._times = times
        self._trace = trace
        self._margin = margin
        self._rejects = rejects
        self._factors = [1.0] * 24
        self._finish_gap_s = 0.0
        self._last_finish_s: float | None = None
        self.num_rejected = 0

    def check(self, seq: Sequence, scheduler: Scheduler, now_s: float) -> None:
        """See the module; requests without a TTFT (or whole-latency) budget always pass."""
        if not self._times.is_known or seq.due_s == math.inf:
            return
        seq.key = scheduler.order.key(seq, now_s)
        predicted_s = self._predict_s(seq, scheduler, now_s)
        seq.predicted_ttft_s = predicted_s
        budget_s = seq.due_s - now_s
        if predicted_s <= budget_s or not self._rejects:
            return
        self.num_rejected += 1
        fields = {"because": "predicted wait", "predicted_s": round(predicted_s, 4), "budget_s": round(budget_s, 4),
                  "waiting": len(scheduler.waiting), "running": len(scheduler.running)}  # fmt: skip
        self._trace.record(seq.request.id, "rejected", fields)
        raise CapacityError(
            f"the first token is predicted after {predicted_s * 1e3:.0f} ms, the request's budget allows"
            f" {max(0.0, budget_s) * 1e3:.0f} ms more",
            retry_after_s=max(1.0, predicted_s - budget_s),
            hint="retry later, or with a larger ttft_slo_ms",
        )

    def predicted_wait_s(self, scheduler: Scheduler, now_s: float) -> float | None:
        """For a short request at the end of the queue."""
        if not self._times.is_known:
            return None
        return self._wait_s(_Ahead.of(_open(scheduler), scheduler.cache.block_size), 1, scheduler)

    def _predict_s(self, seq: Sequence, scheduler: Scheduler, now_s: float) -> float:
        own = len(seq.token_ids)
        others = scheduler.order.ahead(seq, _open(scheduler), scheduler.running, now_s)
        ahead = _Ahead.of(others, scheduler.cache.block_size)
        return self._wait_s(ahead, own, scheduler) * self._factors[own.bit_length()]

    def _wait_s(self, ahead: _Ahead, own: int, scheduler: Scheduler) -> float:
        limits, cache = scheduler.limits, scheduler.cache
        computed = 1.0 - scheduler.num_hit_tokens / max(1, scheduler.num_query_tokens)
        tokens = (ahead.num_tokens + own) * computed
        pace = measure_pace(
            scheduler.running,
            self._times,
            max_tokens=int(min(limits.max_num_batched_tokens, max(tokens, 1) + len(scheduler.running))),
            margin=self._margin,
            mean_start=own // 2,
        )
        wait_s = (
            max(1.0, tokens / pace.chunk_tokens) * pace.step_s + pace.step_s / 2
        )  # half a step is in the way
        too_many = ahead.num_seqs + 1 + len(scheduler.running) - limits.max_num_seqs
        pool = cache.pools[cache.main_group]
        too_big = ahead.num_blocks + own // cache.block_size + 1 - pool.num_available
        if too_big > 0:
            held = max(1.0, pool.num_used / max(1, len(scheduler.running)))
            too_many = max(too_many, int(too_big / held) + 1)
        return wait_s + max(0, too_many) * self._finish_gap_s

    def on_first_token(self, seq: Sequence, now_s: float) -> None:
        """Move the factor of its size towards what it should have been."""
        predicted_s = seq.predicted_ttft_s
        if predicted_s is None or seq.choice or predicted_s < LEAST_LEARNED_S:
            return
        size = seq.num_prompt.bit_length()
        ratio = (now_s - seq.queued_s) / predicted_s
        ratio = min(max(ratio, 0.25), 4.0)
        low, high = FACTOR_RANGE
        self._factors[size] = min(high, max(low, self._factors[size] * (1 + LEARN_RATE * (ratio - 1))))

    def on_finish(self, seq: Sequence, now_s: float) -> None:
        """Rows become free at this pace."""
        if self._last_finish_s is not None:
            gap_s = now_s - self._last_finish_s
            self._finish_gap_s += 0.05 * (gap_s - self._finish_gap_s) if self._finish_gap_s else gap_s
        self._last_finish_s = now_s
