"""Wires the brain from plain numbers, a clock and ports. Used by build.py and by the simulator."""

from __future__ import annotations

from collections.abc import Sequence

from xllm.base.clock import Clock
from xllm.base.trace import DecisionTrace, NullTrace
from xllm.engine.cache.kv_cache import KVCache
from xllm.engine.core.engine_core import EngineCore
from xllm.engine.ports import Grammar, NullGrammar
from xllm.engine.scheduler.admission.policy import AdmissionPolicy
from xllm.engine.scheduler.admission.watermark import WatermarkAdmission
from xllm.engine.scheduler.budget import FixedBudget, TimedBudget
from xllm.engine.scheduler.early_rejection import EarlyRejection
from xllm.engine.scheduler.fairness import FairOrder
from xllm.engine.scheduler.limits import SchedulerLimits, SloOptions
from xllm.engine.scheduler.order import ORDER_KEYS, DeadlineOrder, OrderPolicy, StaticOrder
from xllm.engine.scheduler.scheduler import Scheduler
from xllm.engine.scheduler.urgency import UrgencyOrder
from xllm.errors import ConfigError
from xllm.perf.time_model import NullTimeModel, TimeModel
from xllm.types.kv_layout import KVLayout
from xllm.types.pages import PageGeometry


def build_brain(  # noqa: PLR0913 - the one place where everything meets
    *,
    layout: KVLayout,
    num_blocks: Sequence[int],
    limits: SchedulerLimits,
    vocab_size: int,
    clock: Clock,
    enable_prefix_caching: bool = True,
    scheduling_policy: str = "fcfs",
    admission: AdmissionPolicy | None = None,
    grammar: Grammar | None = None,
    trace: DecisionTrace | NullTrace | None = None,
    weight_revision: str = "",
    depth: int = 1,
    pages: PageGeometry | None = None,
    times: TimeModel | None = None,
    slo: SloOptions | None = None,
) -> EngineCore:
    """An engine core over ``num_blocks`` blocks per KV group; raises ConfigError when the numbers cannot work.

    ``pages``: KV lies in virtual ranges (layout ``xtensor``), and a block is a page.
    """
    cache = KVCache(
        layout,
        num_blocks,
        enable_prefix_caching=enable_prefix_caching,
        pages=pages,
        num_ahead_tokens=depth,
    )
    if cache.max_tokens_per_sequence < limits.max_model_len:
        raise ConfigError(
            f"the KV cache holds {cache.max_tokens_per_sequence} tokens, less than max_model_len "
            f"{limits.max_model_len}: a lone request could never finish",
            hint=f"use --max-model-len {cache.max_tokens_per_sequence} or more KV memory",
        )
    if not limits.enable_chunked_prefill and limits.max_num_batched_tokens < limits.max_model_len:
        raise ConfigError(
            f"without chunked prefill a step must hold a whole prompt: max_num_batched_tokens is "
            f"{limits.max_num_batched_tokens}, max_model_len {limits.max_model_len}",
            hint=f"use --max-num-batched-tokens {limits.max_model_len} or --enable-chunked-prefill",
        )
    trace = trace if trace is not None else DecisionTrace(clock)
    times, slo = times or NullTimeModel(), slo or SloOptions()
    scheduler = Scheduler(
        limits,
        cache,
        admission or WatermarkAdmission(limits.watermark),
        trace,
        build_order(scheduling_policy, times, limits, slo),
        TimedBudget(times, trace, margin=slo.margin) if slo.token_budget else FixedBudget(),
    )
    return EngineCore(
        scheduler,
        grammar or NullGrammar(),
        clock,
        trace,
        vocab_size=vocab_size,
        weight_revision=weight_revision,
        depth=depth,
        times=times,
        gate=EarlyRejection(times, trace, margin=slo.margin, rejects=slo.early_rejection),
    )


def build_order(policy: str, times: TimeModel, limits: SchedulerLimits, slo: SloOptions) -> OrderPolicy:
    """The order of the queue; ConfigError for an unknown name."""
    order: OrderPolicy
    if policy in ORDER_KEYS:
        order = StaticOrder(ORDER_KEYS[policy])
    elif policy == "deadline":
        order = DeadlineOrder()
    elif policy == "urgency":
        order = UrgencyOrder(times, limits, starvation_s=slo.starvation_s, margin=slo.margin)
    else:
        known = sorted((*ORDER_KEYS, "deadline", "urgency"))
        raise ConfigError(f"unknown scheduling policy {policy!r}", hint=f"one of {', '.join(known)}")
    return FairOrder(order, slo.weights) if slo.is_fair else order
