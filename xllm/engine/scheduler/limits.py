"""The numbers a step must respect, resolved (no "auto" left)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerLimits:
    """See :class:`xllm.config.scheduler.SchedulerConfig` for the meaning of each."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_chunked_prefill: bool = True
    max_num_queued_reqs: int = 0
    max_num_queued_tokens: int = 0
    max_preemptions: int = 16
    watermark: float = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class SloOptions:
    """What is done about latency budgets and tenants; see :class:`xllm.config.scheduler.SchedulerConfig`."""

    token_budget: bool = True
    early_rejection: bool = True
    margin: float = 0.9
    starvation_s: float = 30.0
    is_fair: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
