"""From a resolved configuration to a ThreadExecutor with its model loaded."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from msgspec.structs import replace

from xllm.base.phases import OnPhase, measured
from xllm.config.resolved import ResolvedEngineConfig
from xllm.engine.attention import (
    AttentionPlanner,
    ContiguousPlanner,
    NativeAttention,
    NativePlanner,
    StepPlanner,
)
from xllm.engine.executor.facts import ExecutorFacts
from xllm.engine.executor.thread import ThreadExecutor
from xllm.engine.executor.watchdog import Watchdog
from xllm.engine.kernels import parse_kernels
from xllm.engine.layers.build_context import BuildContext, build_context
from xllm.engine.memory import KVMemory, KVPool, XTensor
from xllm.engine.models import CausalLM, build_model, load_model
from xllm.engine.models.native_layers import can_run_natively
from xllm.engine.platform import Platform, select_platform
from xllm.engine.platform.platform import torch_dtype
from xllm.engine.runner.buckets import Buckets, GraphChoice
from xllm.engine.runner.captured_book import CapturedBook
from xllm.engine.runner.dummy_weights import fill_with_dummy_weights
from xllm.engine.runner.graph_book import EagerBook, GraphBook
from xllm.engine.runner.model_runner import ModelRunner
from xllm.engine.runner.native_book import NativeBook
from xllm.engine.worker.faults import TorchFaults
from xllm.errors import ConfigError
from xllm.types.kv_layout import KVLayout

_LOG = logging.getLogger(__name__)


def build_local_executor(
    resolved: ResolvedEngineConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    on_phase: OnPhase = lambda phase, seconds: None,
    watchdog: Watchdog | None = None,
) -> tuple[ThreadExecutor, ExecutorFacts]:
    """Load the model, allocate the KV pool and wire the executor; its thread starts with ``start``.

    Args:
        progress: called with (bytes of weights placed, bytes of all weights).
        on_phase: called with the name and the seconds of each part.
        watchdog: told about every step.

    Raises:
        ModelError: a weight is missing, damaged or of the wrong shape.
        ConfigError: there is no such device.
        CapacityError: the KV pool does not fit.
    """
    platform = select_platform(resolved.device)
    if platform.kind == "cpu":
        torch.set_num_threads(resolved.num_threads)
    with measured("kernels", on_phase):
        build = build_context(
            torch_dtype(resolved.dtype),
            platform.device,
            contiguous_rows_per_token=_contiguous_rows(resolved),
            block_size=resolved.kv_layout.block_size,
            kernels=parse_kernels(resolved.kernels),
            are_prefixes_shared=resolved.shared_prefix_attention,
        )
    begin_s = time.perf_counter()
    model = _load(resolved, build, progress, on_phase)
    load_s = time.perf_counter() - begin_s
    if resolved.batch_invariant:
        _require_batch_invariance(model, build)
    layout, num_blocks = _ordered_layout(resolved, build), _num_blocks_that_fit(resolved, platform)
    with measured("KV and runner", on_phase):
        kv = _build_kv(resolved, layout, num_blocks, platform)
        runner = _build_runner(resolved, model, kv, platform, build)
    facts = ExecutorFacts(
        layout=layout,
        num_blocks=num_blocks,
        vocab_size=resolved.spec.vocab_size,
        max_model_len=resolved.max_model_len,
        device_name=platform.name,
        weights_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        kv_bytes=kv.num_bytes,
        load_s=load_s,
    )
    mib = 2**20
    _LOG.info(
        "loaded %s on %s in %.2f s: weights %.1f MiB, %d KV blocks of %d tokens, %.0f MiB",
        *(resolved.spec.architecture, facts.device_name, load_s, facts.weights_bytes / mib),
        *(num_blocks, layout.block_size, facts.kv_bytes / mib),
    )
    _LOG.debug("%s", facts)
    return ThreadExecutor(runner, faults=TorchFaults(), watchdog=watchdog), facts


def _require_batch_invariance(model: CausalLM, build: BuildContext) -> None:
    if build.are_native and isinstance(build.attention, NativeAttention) and can_run_natively(model):
        return
    raise ConfigError(
        f"--batch-invariant: {build.device.type} runs {build.dtype} with torch's operations here, whose results"
        " depend on how many rows a step has",
        hint="float32 or bfloat16 on a CPU with the CPU kernels (a C++ compiler, runner.kernels=auto) is invariant",
    )


def _contiguous_rows(resolved: ResolvedEngineConfig) -> int | None:
    """Rows of ``head_dim`` numbers that a token has in XTensor; None for layout paged."""
    return 2 * resolved.spec.num_layers * resolved.spec.num_kv_heads if resolved.pages is not None else None


def _ordered_layout(resolved: ResolvedEngineConfig, build: BuildContext) -> KVLayout:
    """The layout, in the order that the attention backend reads fastest."""
    layout = resolved.kv_layout
    if resolved.kv_pairs and isinstance(build.attention, NativeAttention):
        return replace(layout, order=build.attention.fastest_order(layout))
    return layout


def _build_kv(
    resolved: ResolvedEngineConfig, layout: KVLayout, num_blocks: int, platform: Platform
) -> KVMemory:
    if resolved.pages is None:
        return KVPool(layout, num_blocks, platform.device, touch_ahead_tokens=resolved.kv_touch_ahead_tokens)
    return XTensor(layout, num_blocks, resolved.pages, touch_ahead_tokens=resolved.kv_touch_ahead_tokens)


def _build_planner(
    resolved: ResolvedEngineConfig, kv: KVMemory, platform: Platform, build: BuildContext
) -> StepPlanner:
    spec, rows = resolved.spec, _contiguous_rows(resolved)
    if isinstance(build.attention, NativeAttention):
        return NativePlanner(
            block_size=kv.block_size,
            num_kv_heads=spec.num_kv_heads,
            rows_per_token=rows,
            names_of=kv.pages.names_of if isinstance(kv, XTensor) else None,
        )
    if rows is not None:
        return ContiguousPlanner(
            block_size=kv.block_size,
            num_kv_heads=spec.num_kv_heads,
            rows_per_token=rows,
            windows=spec.windows,
        )
    return AttentionPlanner(
        block_size=kv.block_size,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=torch_dtype(resolved.dtype),
        windows=spec.windows,
        device=platform.device,
        max_gather_bytes=platform.max_gather_bytes,
    )


def _num_blocks_that_fit(resolved: ResolvedEngineConfig, platform: Platform) -> int:
    """The planned blocks, or fewer where a GPU has less left after loading than the plan assumed."""
    if platform.kind != "cuda":
        return resolved.num_blocks
    platform.synchronize()
    left_bytes = platform.free_memory_bytes - resolved.memory.activations_bytes
    num_fitting = max(left_bytes, 0) // resolved.kv_layout.bytes_per_block()
    if num_fitting < resolved.num_blocks:
        _LOG.warning("%d KV blocks were planned, %d fit after loading", resolved.num_blocks, num_fitting)
    return int(min(resolved.num_blocks, num_fitting))


def _load(
    resolved: ResolvedEngineConfig,
    build: BuildContext,
    progress: Callable[[int, int], None] | None,
    on_phase: OnPhase,
) -> CausalLM:
    if resolved.load_format == "dummy":
        with measured("dummy weights", on_phase):
            model = build_model(resolved.spec, build)
            fill_with_dummy_weights(model, resolved.seed)
            model.pack()
        return model.eval()
    packed = resolved.packed_weights_cache
    return load_model(
        resolved.spec,
        resolved.spec.path,
        build,
        progress=progress,
        on_phase=on_phase,
        packed_cache=None if packed is None else Path(packed).expanduser(),
    )


def _build_runner(
    resolved: ResolvedEngineConfig, model: CausalLM, kv: KVMemory, platform: Platform, build: BuildContext
) -> ModelRunner:
    planner = _build_planner(resolved, kv, platform, build)
    return ModelRunner(
        model,
        kv,
        planner,
        platform,
        max_num_seqs=resolved.max_num_seqs,
        max_model_len=resolved.max_model_len,
        num_threads=resolved.num_threads,
        graph_book=_build_graph_book(resolved, model, kv, planner, platform, build),
        sample=build.kernels.sample,
        pick=build.kernels.pick,
        penalise=build.kernels.penalise,
        score=build.kernels.score,
    )


def _build_graph_book(
    resolved: ResolvedEngineConfig,
    model: CausalLM,
    kv: KVMemory,
    planner: StepPlanner,
    platform: Platform,
    build: BuildContext,
) -> GraphBook:
    if resolved.graphs == "layers":
        if build.are_native and isinstance(build.attention, NativeAttention) and can_run_natively(model):
            wide = resolved.num_wide_threads
            return NativeBook(model, kv, planner, platform.device, build.attention, num_wide_threads=wide)
        _LOG.info("layers run operation by operation: they are not packed, or the CPU kernels are off")
        return EagerBook(model, kv, planner, platform.device)
    if resolved.graphs == "off":
        return EagerBook(model, kv, planner, platform.device)
    limit = resolved.max_graph_tokens
    choice = GraphChoice(
        full=Buckets(min(limit, resolved.max_num_seqs)),
        piecewise=Buckets(min(limit, resolved.max_num_batched_tokens)) if resolved.graphs == "all" else None,
    )
    return CapturedBook(model, kv, planner, platform.device, choice=choice)
