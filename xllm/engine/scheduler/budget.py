"""StepBudget: how many prompt tokens a step may hold beside its decodes.

FixedBudget never cuts: the token budget of the limits is all. TimedBudget grants the largest chunk with which the
step's predicted time still meets the tightest TPOT budget among the sequences that are decoding; it is found by
bisection, since time grows with the chunk. At least ``min_chunk`` tokens per step are granted whatever the
prediction, so that no prefill starves under a TPOT that cannot be met.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

from xllm.base.trace import DecisionTrace, NullTrace
from xllm.engine.scheduler.sequence import Sequence
from xllm.perf.step_time import StepShape
from xllm.perf.time_model import TimeModel

MIN_CHUNK_TOKENS = 32


class StepBudget(Protocol):
    """See the module."""

    def begin(self, running: Iterable[Sequence]) -> None:
        """A step is being planned; ``running`` may all be in it."""
        ...

    def grant(self, seq: Sequence, start: int, want: int) -> int:
        """How many of ``want`` prompt tokens from ``start`` on may be in this step; 0: none."""
        ...

    def on_placed(self, start: int, count: int) -> None:
        """A chunk is in the step."""
        ...


class FixedBudget:
    """Never cuts."""

    __slots__ = ()

    def begin(self, running: Iterable[Sequence]) -> None:
        """Nothing to prepare."""

    def grant(self, seq: Sequence, start: int, want: int) -> int:
        """All of it."""
        return want

    def on_placed(self, start: int, count: int) -> None:
        """Of no interest."""


class TimedBudget:
    """See the module; ``margin`` is the share of a TPOT that a predicted step may take."""

    def __init__(
        self,
        times: TimeModel,
        trace: DecisionTrace | NullTrace,
        *,
        margin: float = 0.9,
        min_chunk: int = MIN_CHUNK_TOKENS,
    ) -> None:
        assert min_chunk >= 1, "a step without any prompt token would starve prefills"
        self._times = times
        self._trace = trace
        self._margin = margin
        self._min_chunk = min_chunk
        self._allowed_s = math.inf
        self._limiter: Sequence | None = None
        self._shape = StepShape(0, 0, 0)
        self._has_chunk = False
        self._told: tuple[int, int] = (0, 0)

    def begin(self, running: Iterable[Sequence]) -> None:
        """Find whose TPOT is tightest and what the decodes alone cost."""
        tightest, limiter = math.inf, None
        for seq in running:
            if seq.tpot_s < tightest and seq.first_token_s is not None:
                tightest, limiter = seq.tpot_s, seq
        self._limiter = limiter if self._times.is_known else None
        if self._limiter is None:
            return
        self._allowed_s = tightest * self._margin
        contexts = [len(s.token_ids) for s in running if s.first_token_s is not None]
        total = sum(contexts)
        self._shape = StepShape(len(contexts), total, total, total, len(contexts))
        self._has_chunk = False

    def grant(self, seq: Sequence, start: int, want: int) -> int:
        """The largest chunk within the time; the least one where none is and nothing has been granted yet."""
        if self._limiter is None:
            return want
        fits = self._largest(start, want)
        if fits < self._min_chunk and not self._has_chunk:
            fits = min(want, self._min_chunk)
        if fits < want and self._told != (seq.id, self._limiter.id):
            self._told = (seq.id, self._limiter.id)
            fields = {"tokens": fits, "of": want, "because": f"TPOT of {self._limiter.request.id}",
                      "allowed_ms": round(self._allowed_s * 1e3, 3)}  # fmt: skip
            self._trace.record(seq.request.id, "budget cut", fields)
        return fits

    def _largest(self, start: int, want: int) -> int:
        allowed_s, shape, marginal_s = self._allowed_s, self._shape, self._times.marginal_s
        if marginal_s(shape, start, want) <= allowed_s:
            return want
        low, high = 0, want  # low fits (0 always does), high does not
        while high - low > 1:
            middle = (low + high) // 2
            if marginal_s(shape, start, middle) <= allowed_s:
                low = middle
            else:
                high = middle
        return low

    def on_placed(self, start: int, count: int) -> None:
        """It costs time that later chunks of the step do not have."""
        if self._limiter is None:
            return
        shape = self._shape
        pairs = count * (2 * start + count + 1) // 2
        self._has_chunk = True
        self._shape = StepShape(
            shape.num_tokens + count, shape.context_tokens + start + count, shape.query_context + pairs,
            shape.decode_context, shape.num_rows + 1,
        )  # fmt: skip
