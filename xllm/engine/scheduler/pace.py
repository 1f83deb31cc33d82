"""Pace: how fast prompts are computed at the present load, by the time model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from xllm.engine.scheduler.budget import MIN_CHUNK_TOKENS
from xllm.engine.scheduler.sequence import Sequence
from xllm.perf.step_time import StepShape
from xllm.perf.time_model import TimeModel


@dataclass(frozen=True, slots=True)
class Pace:
    """A step with a full chunk beside the present decodes."""

    step_s: float
    chunk_tokens: int
    """Prompt tokens in it."""

    @property
    def token_s(self) -> float:
        """Seconds per prompt token."""
        return self.step_s / self.chunk_tokens


def measure_pace(
    running: Iterable[Sequence], times: TimeModel, *, max_tokens: int, margin: float, mean_start: int = 0
) -> Pace:
    """The pace beside ``running``: chunks as large as ``max_tokens`` and the tightest TPOT allow.

    The search goes down in halves only: this is an estimate for waits, the exact cut is the budget's.
    """
    contexts, tightest_s = [], math.inf
    for seq in running:
        if seq.first_token_s is not None:
            contexts.append(len(seq.token_ids))
            tightest_s = min(tightest_s, seq.tpot_s)
    total = sum(contexts)
    base = StepShape(len(contexts), total, total, total, len(contexts))
    chunk = max(1, max_tokens - len(contexts))
    step_s = times.marginal_s(base, mean_start, chunk)
    while chunk > MIN_CHUNK_TOKENS and step_s > tightest_s * margin:
        chunk = max(MIN_CHUNK_TOKENS, chunk // 2)
        step_s = times.marginal_s(base, mean_start, chunk)
    return Pace(step_s, chunk)
