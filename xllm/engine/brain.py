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
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.engine.scheduler.order import ORDER_KEYS
from xllm.engine.scheduler.scheduler import Scheduler
from xllm.errors import ConfigError
from xllm.types.kv_layout import KVLayout


def build_brain(
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
) -> EngineCore:
    """An engine core over ``num_blocks`` blocks per KV group; raises ConfigError when the numbers cannot work."""
    cache = KVCache(layout, num_blocks, enable_prefix_caching=enable_prefix_caching)
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
    if scheduling_policy not in ORDER_KEYS:
        raise ConfigError(
            f"unknown scheduling policy {scheduling_policy!r}", hint=f"one of {sorted(ORDER_KEYS)}"
        )
    trace = trace if trace is not None else DecisionTrace(clock)
    scheduler = Scheduler(limits, cache, admission or WatermarkAdmission(limits.watermark), trace)
    return EngineCore(
        scheduler,
        ORDER_KEYS[scheduling_policy],
        grammar or NullGrammar(),
        clock,
        trace,
        vocab_size=vocab_size,
        weight_revision=weight_revision,
        depth=depth,
    )
