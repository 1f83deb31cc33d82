"""Wires a whole engine, brain and body: the composition root of the engine process.

Nothing here imports torch: executors are rows of a table, so a timed engine never loads it.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xllm import __version__
from xllm.base.affinity import kept_affinity, set_affinity
from xllm.base.clock import Clock, MonotonicClock
from xllm.base.machine import gather_machine_facts
from xllm.base.openmp import prepare_openmp
from xllm.base.phases import OnPhase, measured
from xllm.base.registry import Registry
from xllm.base.resolve_here import resolve_here
from xllm.base.trace import DecisionTrace
from xllm.config.resolved import ResolvedEngineConfig
from xllm.config.serve import EngineConfig, needs_weights
from xllm.engine.brain import build_brain
from xllm.engine.core.engine_core import EngineCore
from xllm.engine.executor.facts import ExecutorFacts
from xllm.engine.executor.profiler import NullProfiler, Profiler
from xllm.engine.executor.thread import ThreadExecutor
from xllm.engine.ports import Executor
from xllm.engine.scheduler.admission.table import AdmissionSettings, build_admission
from xllm.engine.scheduler.limits import SchedulerLimits, SloOptions
from xllm.perf.fit_cache import fit_path, save_fit, try_load_fit
from xllm.perf.learned import LearnedStepTime
from xllm.perf.priors import build_prior
from xllm.perf.step_time import load_profile
from xllm.perf.time_model import TimeModel
from xllm.types.instance import InstanceInfo
from xllm.types.tenant import parse_weights

log = logging.getLogger(__name__)

EXECUTORS: Registry[Any] = Registry(
    "executor",
    {
        "local": "xllm.engine.worker.build_local:build_local_executor",
        "timed": "xllm.engine.timed:build_timed_executor",
    },
)
"""name -> function (resolved, *, progress, ...) -> (executor, its facts)."""

PROFILERS: Registry[Profiler] = Registry("profiler", {"local": "xllm.engine.worker.profiler:TorchProfiler"})
"""Executor name -> function (directory) -> its profiler; executors without a row have none."""

OnWeights = Callable[[int, int], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltEngine:
    """An engine ready to be served; the executor is not started."""

    core: EngineCore
    executor: Executor
    info: InstanceInfo
    profiler: Profiler
    clock: Clock
    resolved: ResolvedEngineConfig
    save_fit: Callable[[], object] = lambda: None
    """Keep what was learned about step times for the next start; at the end of the process."""


def resolve_engine(config: EngineConfig) -> ResolvedEngineConfig:
    """Decide every open value on this machine, from the model's own files; no torch, no weights.

    Raises:
        ModelError: the model cannot be found or read.
        ConfigError: the configuration cannot work here.
    """
    return resolve_here(config, with_weights=needs_weights(config))


def build_engine(
    config: EngineConfig,
    *,
    endpoint: str = "",
    clock: Clock | None = None,
    on_phase: OnPhase = lambda phase, seconds: None,
    on_weights: OnWeights = lambda done, total: None,
) -> BuiltEngine:
    """Resolve, load the model, wire brain and executor. ``on_phase`` is told how long each part took.

    Raises:
        ConfigError, ModelError, CapacityError: with what is wrong and something that works.
    """
    clock = clock or MonotonicClock()
    with measured("config", on_phase):
        resolved = resolve_engine(config)
        for decision in resolved.decisions:
            log.info("%s = %s (%s)", decision.key, decision.value, decision.reason)
        for warning in resolved.warnings:
            log.warning("%s", warning)
    executor, facts = _build_executor(resolved, on_phase, on_weights)
    if resolved.threads.other_cpus:  # from here on this thread runs the event loop
        set_affinity(resolved.threads.other_cpus)
    with measured("brain", on_phase):
        revision = config.model.revision or ""
        times, fit_file = _build_times(config, resolved, facts)
        core = _build_core(config, resolved, facts, clock, revision, times)
    return BuiltEngine(
        core=core,
        executor=executor,
        info=_instance_info(resolved, facts, endpoint, revision),
        profiler=_build_profiler(config),
        clock=clock,
        resolved=resolved,
        save_fit=lambda: fit_file is not None and save_fit(fit_file, times),
    )


def build_local_executor(
    resolved: ResolvedEngineConfig,
    *,
    progress: OnWeights | None = None,
    **options: Any,
) -> tuple[ThreadExecutor, ExecutorFacts]:
    """Load the model and wire the executor of this process; see ``xllm.engine.worker.build_local``."""
    built: tuple[ThreadExecutor, ExecutorFacts] = EXECUTORS.load("local")(
        resolved, progress=progress, **options
    )
    return built


def _build_executor(
    resolved: ResolvedEngineConfig, on_phase: OnPhase, on_weights: OnWeights
) -> tuple[Executor, ExecutorFacts]:
    kind, _, profile = resolved.executor.partition(":")
    threads = resolved.threads
    if threads.process_cpus:
        set_affinity(threads.process_cpus)
    said = prepare_openmp(resolved.num_threads, os.environ, cpus=threads.step_cpus)
    if said:
        log.info(
            "OpenMP: %s as the environment says", ", ".join(f"{name}={os.environ[name]}" for name in said)
        )
    # OpenMP pins the thread that loads it; that one is the event loop's, and loads weights before.
    with measured("imports", on_phase), kept_affinity():
        build = EXECUTORS.load(kind)
    if kind == "timed":
        with measured("executor", on_phase):
            built: tuple[Executor, ExecutorFacts] = build(resolved, profile=profile)
    else:
        built = build(resolved, progress=on_weights, on_phase=on_phase)
    return built


def _build_profiler(config: EngineConfig) -> Profiler:
    kind = config.server.executor.partition(":")[0]
    return PROFILERS.load(kind)(config.server.profile_dir) if kind in PROFILERS else NullProfiler()


def _build_core(
    config: EngineConfig,
    resolved: ResolvedEngineConfig,
    facts: ExecutorFacts,
    clock: Clock,
    revision: str,
    times: TimeModel,
) -> EngineCore:
    scheduler = config.scheduler
    limits = SchedulerLimits(
        max_num_seqs=resolved.max_num_seqs,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        max_model_len=facts.max_model_len,
        enable_chunked_prefill=resolved.enable_chunked_prefill,
        max_num_queued_reqs=resolved.max_num_queued_reqs,
        max_num_queued_tokens=resolved.max_num_queued_tokens,
        max_preemptions=resolved.max_preemptions,
    )
    admission = build_admission(
        resolved.admission_policy,
        AdmissionSettings(
            watermark=resolved.watermark,
            history_window=resolved.admission_history,
            reserve=resolved.admission_reserve,
            horizon_tokens=resolved.zero_evict_horizon_tokens,
            chunk_tokens=resolved.max_num_batched_tokens,
            depth=resolved.pipeline_depth,
            seed=resolved.seed,
        ),
    )
    return build_brain(
        layout=facts.layout,
        num_blocks=(facts.num_blocks,) * len(facts.layout.groups),
        limits=limits,
        vocab_size=facts.vocab_size,
        clock=clock,
        enable_prefix_caching=resolved.enable_prefix_caching,
        scheduling_policy=resolved.scheduling_policy,
        admission=admission,
        trace=DecisionTrace(clock, capacity=config.server.num_trace_records),
        weight_revision=revision,
        times=times,
        slo=SloOptions(
            token_budget=scheduler.slo_token_budget,
            early_rejection=scheduler.early_rejection,
            margin=scheduler.slo_margin,
            starvation_s=scheduler.starvation_timeout_s,
            is_fair=scheduler.fairness == "tenant",
            weights=parse_weights(scheduler.tenant_weights),
        ),
        depth=resolved.pipeline_depth,
        pages=resolved.pages,
    )


def _build_times(
    config: EngineConfig, resolved: ResolvedEngineConfig, facts: ExecutorFacts
) -> tuple[LearnedStepTime, Path | None]:
    """The model of a step's time, and where its fit is kept; a timed executor's profile is its own prior."""
    kind, _, profile = resolved.executor.partition(":")
    if kind == "timed":
        return LearnedStepTime(load_profile(profile)), None
    is_gpu, num_threads, dtype = resolved.device == "cuda", resolved.num_threads, resolved.dtype
    name = facts.device_name if is_gpu else gather_machine_facts().cpu_name
    prior = build_prior(resolved.spec, device_name=name, is_gpu=is_gpu, dtype=dtype, num_threads=num_threads)
    if not config.scheduler.step_time_cache:
        return LearnedStepTime(prior), None
    path = fit_path(resolved.spec, device_name=name, num_threads=num_threads, dtype=dtype)
    fit = try_load_fit(path)
    if fit is not None:
        log.info("step times: starting from the fit in %s", path)
    return LearnedStepTime(prior, fit), path


def _instance_info(
    resolved: ResolvedEngineConfig, facts: ExecutorFacts, endpoint: str, revision: str
) -> InstanceInfo:
    incarnation = secrets.token_hex(8)
    return InstanceInfo(
        id=f"engine-{incarnation[:8]}",
        incarnation=incarnation,
        address=endpoint,
        model=resolved.served_model_names[0],
        revision=revision,
        block_size=facts.layout.block_size,
        layout_hash=facts.layout.layout_hash,
        dtype=resolved.dtype,
        max_model_len=facts.max_model_len,
        max_num_seqs=resolved.max_num_seqs,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        num_blocks=facts.num_blocks,
        vocab_size=facts.vocab_size,
        pid=os.getpid(),
        version=__version__,
        started_unix_s=time.time(),
    )
