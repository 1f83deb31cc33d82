"""EngineConfig + ModelSpec + MachineFacts -> ResolvedEngineConfig: every "auto" decided, each with its
reason.

Pure: reads no file, no clock, no device. What is measured after loading (the KV blocks that really fit, a
graph set) is another object and never flows back here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xllm.config.check import check
from xllm.config.gemm_curve import CHUNK_S
from xllm.config.load import DEFAULT, Source
from xllm.config.machine_facts import MachineFacts
from xllm.config.memory_plan import (
    CPU_RESERVE_BYTES,
    GPU_RESERVE_BYTES,
    MAX_TIMED_BLOCKS,
    MemoryPlan,
    activation_terms,
    memory_budget,
    plan_kv_bytes,
)
from xllm.config.model_spec import ModelSpec
from xllm.config.pages import check_page_bytes, max_mappings, page_bytes_from
from xllm.config.resolved import Decision, ResolvedEngineConfig
from xllm.config.schema import format_bytes
from xllm.config.serve import EngineConfig
from xllm.config.threads import (
    ThreadPlan,
    choose_cores,
    format_cpu_list,
    num_step_cores,
    plan_threads,
)
from xllm.types.kv_layout import KVLayout
from xllm.types.pages import PageGeometry

CPU_MAX_NUM_SEQS, GPU_MAX_NUM_SEQS = 128, 256
CPU_BATCHED_TOKENS, GPU_BATCHED_TOKENS = 1024, 8192
MIN_SHARED_MATRIX_BYTES = 512 * 1024
"""Below this mean size of a matrix a barrier per operation costs more than a second core gives; measured by
``benchmarks/thread_count.py``, where other work wants the cores too."""


def resolve(
    config: EngineConfig,
    spec: ModelSpec,
    machine: MachineFacts,
    *,
    sources: Mapping[str, Source] | None = None,
) -> ResolvedEngineConfig:
    """Decide every open value, then check the whole.

    Raises:
        ConfigError: the combination cannot work on this machine; lists every failed check with a value
        that works.
    """
    resolved = _Resolver(config, spec, machine).run(sources or {})
    check(config, resolved, machine)
    return resolved


class _Resolver:
    """One pass over the open values, in the order in which they depend on each other."""

    def __init__(self, config: EngineConfig, spec: ModelSpec, machine: MachineFacts) -> None:
        self.config = config
        self.spec = spec
        self.machine = machine
        self.is_timed = config.server.executor.startswith("timed:")
        self.has_said_length = config.model.max_model_len is not None
        self.decisions: list[Decision] = []
        self.num_wide_threads: int | None = None
        """Of steps with long prompts, where that is not the number of the others."""

    def run(self, sources: Mapping[str, Source]) -> ResolvedEngineConfig:
        config = self.config
        device = self.device()
        dtype = self.dtype(device)
        num_threads, threads = self.num_threads(device, dtype)
        max_num_seqs = self.max_num_seqs(device)
        layout = self.layout(device, dtype, max_num_seqs)
        longest = self.longest(layout)
        max_num_batched_tokens = self.max_num_batched_tokens(device, dtype, max_num_seqs, longest)
        memory, num_blocks = self.memory(device, dtype, max_num_seqs, max_num_batched_tokens, longest, layout)
        max_model_len = self.max_model_len(num_blocks * layout.block_size)
        return ResolvedEngineConfig(
            model=config.model.model,
            served_model_names=config.model.served_model_name or (config.model.model,),
            load_format=config.model.load_format,
            packed_weights_cache=config.model.packed_weights_cache,
            seed=config.model.seed,
            spec=self.spec,
            device=device,
            dtype=dtype,
            num_threads=num_threads,
            num_wide_threads=self.num_wide_threads or num_threads,
            threads=threads,
            graphs=self.graphs(device),
            max_graph_tokens=config.runner.max_graph_tokens,
            kernels=config.runner.kernels,
            shared_prefix_attention=config.runner.shared_prefix_attention,
            kv_touch_ahead_tokens=config.cache.kv_touch_ahead_tokens,
            kv_pairs=config.runner.kv_pairs,
            batch_invariant=config.runner.batch_invariant,
            max_model_len=max_model_len,
            kv_layout=layout,
            pages=self.pages(layout, max_num_seqs, max_model_len),
            num_blocks=num_blocks,
            enable_prefix_caching=config.cache.enable_prefix_caching,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_chunked_prefill=config.scheduler.enable_chunked_prefill,
            scheduling_policy=config.scheduler.scheduling_policy,
            max_num_queued_reqs=config.scheduler.max_num_queued_reqs,
            max_num_queued_tokens=config.scheduler.max_num_queued_tokens,
            max_preemptions=config.scheduler.max_preemptions,
            admission_policy=config.scheduler.admission_policy,
            admission_history=config.scheduler.admission_history,
            admission_reserve=config.scheduler.admission_reserve,
            zero_evict_horizon_tokens=config.scheduler.zero_evict_horizon_tokens,
            watermark=config.scheduler.watermark,
            pipeline_depth=2 if self.async_scheduling(device, num_threads) else 1,
            executor=config.server.executor,
            memory=memory,
            decisions=tuple(self.decisions),
            warnings=self.warnings(device, sources),
        )

    def decide(self, key: str, value: Any, reason: str) -> Any:
        self.decisions.append(Decision(key=key, value=value, reason=reason))
        return value

    def device(self) -> Literal["cpu", "cuda"]:
        said = self.config.runner.device
        if said != "auto":
            return said
        if self.is_timed:
            self.decide("runner.device", "cpu", "a timed executor runs no model")
            return "cpu"
        if self.machine.gpu is not None:
            self.decide("runner.device", "cuda", f"found {self.machine.gpu.name}")
            return "cuda"
        self.decide("runner.device", "cpu", "no GPU found")
        return "cpu"

    def dtype(self, device: str) -> Literal["float32", "bfloat16", "float16"]:
        said = self.config.model.dtype
        if said != "auto":
            return said
        own = self.spec.dtype
        is_half = own in ("bfloat16", "float16")
        if is_half and device == "cpu" and not self.is_timed:
            if self.machine.has_fast_cpu_bf16:
                reason = (
                    "the checkpoint's"
                    if own == "bfloat16"
                    else "the checkpoint is float16; this CPU multiplies bf16"
                )
                self.decide("model.dtype", "bfloat16", reason)
                return "bfloat16"
            self.decide("model.dtype", "float32", f"the checkpoint is {own}; this CPU has no bf16 arithmetic")
            return "float32"
        if own == "bfloat16":
            self.decide("model.dtype", own, "the checkpoint's")
            return "bfloat16"
        if own == "float16":
            self.decide("model.dtype", own, "the checkpoint's")
            return "float16"
        self.decide("model.dtype", "float32", "the checkpoint's")
        return "float32"

    def num_threads(self, device: str, dtype: str) -> tuple[int, ThreadPlan]:
        cpu_set = self.config.runner.cpu_set
        cores = choose_cores(self.machine, cpu_set)
        num_threads = self.num_step_threads(device, dtype, num_step_cores(cores, self.machine.num_cores))
        if device != "cpu" or self.is_timed:
            return num_threads, ThreadPlan()
        plan, reason = plan_threads(
            cores, cpu_set=cpu_set, num_threads=num_threads, num_cores=self.machine.num_cores
        )
        if cpu_set == "auto":
            self.decide("runner.cpu_set", format_cpu_list(plan.step_cpus) or "off", reason)
        return num_threads, plan

    def num_step_threads(self, device: str, dtype: str, cores: int) -> int:
        said = self.config.runner.num_threads
        if said is not None:
            return said
        matrix_bytes = self.spec.mean_matrix_bytes(dtype)
        if device == "cpu" and not self.is_timed and cores > 1 and matrix_bytes < MIN_SHARED_MATRIX_BYTES:
            reason = (
                f"matrices of {format_bytes(matrix_bytes)} on average are too small to share: threads would wait for"
                " each other"
            )
            self.decide("runner.num_threads", 1, reason)
            self.num_wide_threads = cores
            return 1
        is_all = cores == self.machine.num_cores
        reason = "physical cores this process may use" + (
            "" if is_all else ", but for those left to the rest"
        )
        self.decide("runner.num_threads", cores, reason)
        return cores

    def max_num_seqs(self, device: str) -> int:
        said = self.config.scheduler.max_num_seqs
        if said is not None:
            return said
        usual = GPU_MAX_NUM_SEQS if device == "cuda" else CPU_MAX_NUM_SEQS
        budget = self.config.scheduler.max_num_batched_tokens
        if budget is not None and budget < usual:
            self.decide(
                "scheduler.max_num_seqs", budget, "more sequences than max_num_batched_tokens cannot step"
            )
            return budget
        self.decide("scheduler.max_num_seqs", usual, f"usual on {device}")
        return usual

    def max_num_batched_tokens(self, device: str, dtype: str, max_num_seqs: int, longest: int) -> int:
        said = self.config.scheduler.max_num_batched_tokens
        if said is not None:
            return said
        key = "scheduler.max_num_batched_tokens"
        usual, reason = self.usual_batched_tokens(device, dtype)
        if not self.config.scheduler.enable_chunked_prefill and longest > usual:
            self.decide(key, longest, "max_model_len: without chunked prefill a prompt is one piece")
            return longest
        if max_num_seqs > usual:
            self.decide(key, max_num_seqs, "one token for each of max_num_seqs")
            return max_num_seqs
        self.decide(key, usual, reason)
        return usual

    def usual_batched_tokens(self, device: str, dtype: str) -> tuple[int, str]:
        if device == "cuda":
            return GPU_BATCHED_TOKENS, "usual on cuda"
        curve = None if self.is_timed else self.machine.gemm
        if curve is None or curve.dtype != dtype:
            return CPU_BATCHED_TOKENS, "usual on cpu"
        # The head is run for sampled rows only.
        params = self.spec.num_active_params - self.spec.vocab_size * self.spec.hidden_size
        tokens = curve.chunk_tokens(2.0 * params)
        return tokens, f"a chunk of about {CHUNK_S:g} s at {curve.peak / 1e9:.0f} GFLOP/s measured here"

    def async_scheduling(self, device: str, num_threads: int) -> bool:
        said = self.config.scheduler.async_scheduling
        if said is not None:
            return said
        key = "scheduler.async_scheduling"
        if self.is_timed:
            return bool(self.decide(key, True, "a timed step leaves the CPU free to plan the next one"))
        if device == "cuda":
            return bool(self.decide(key, True, "the CPU plans the next step while the GPU runs one"))
        if num_threads < self.machine.num_cores:
            return bool(self.decide(key, True, "the forward leaves a core free to plan the next step"))
        return bool(
            self.decide(key, False, "the forward uses every core: planning beside it takes what it gives")
        )

    def layout(self, device: str, dtype: str, max_num_seqs: int) -> KVLayout:
        """What a block holds; for layout xtensor a block is a page, and the page size is decided here."""
        cache, spec = self.config.cache, self.spec
        if cache.kv_layout == "paged":
            return spec.kv_layout(block_size=cache.block_size, dtype=dtype)
        token_bytes, system_page = spec.kv_bytes_per_token(dtype), self.machine.system_page_bytes
        if cache.kv_page_bytes is not None:
            check_page_bytes(cache.kv_page_bytes, token_bytes, system_page)
            return spec.kv_layout(block_size=cache.kv_page_bytes // token_bytes, dtype=dtype)
        page_bytes = page_bytes_from(0, token_bytes, system_page)
        most, previous = max_mappings(self.machine.max_map_count), 0
        while True:
            layout = spec.kv_layout(block_size=page_bytes // token_bytes, dtype=dtype)
            num_pages = self.num_blocks_with(layout, device, dtype, max_num_seqs)
            if num_pages <= most or num_pages == previous:
                break  # what does not fit even so is refused by a check
            previous = num_pages
            page_bytes = page_bytes_from(page_bytes * -(-num_pages // most), token_bytes, system_page)
        reason = f"{layout.block_size} tokens; the smallest of which {most} or fewer are needed"
        self.decide("cache.kv_page_bytes", page_bytes, reason)
        return layout

    def num_blocks_with(self, layout: KVLayout, device: str, dtype: str, max_num_seqs: int) -> int:
        """How many blocks of this layout there would be."""
        trial = _Resolver(self.config, self.spec, self.machine)
        longest = trial.longest(layout)
        budget = trial.max_num_batched_tokens(device, dtype, max_num_seqs, longest)
        return trial.memory(device, dtype, max_num_seqs, budget, longest, layout)[1]

    def pages(self, layout: KVLayout, max_num_seqs: int, max_model_len: int) -> PageGeometry | None:
        """The ranges over the pages; None: no ranges."""
        if self.config.cache.kv_layout == "paged":
            return None
        return PageGeometry(
            page_bytes=layout.bytes_per_block(),
            tokens_per_page=layout.block_size,
            pages_per_range=-(-max_model_len // layout.block_size),
            num_ranges=max_num_seqs,
            max_mappings=max_mappings(self.machine.max_map_count),
        )

    def graphs(self, device: str) -> Literal["off", "layers", "decode", "all"]:
        said = self.config.runner.graphs
        if said != "auto":
            return said
        if not self.config.runner.enforce_eager:
            if device == "cuda" or self.is_timed:
                reason = "no forward is run" if self.is_timed else "not built on a GPU yet"
                self.decide("runner.graphs", "off", reason)
                return "off"
            self.decide("runner.graphs", "layers", "one call per layer on a CPU")
            return "layers"
        return "off"

    def longest(self, layout: KVLayout) -> int:
        """The length to plan for: as said, or the model's own within a KV size that was said."""
        cache = self.config.cache
        own = self.config.model.max_model_len or self.spec.max_context
        num_blocks = cache.num_gpu_blocks_override
        if num_blocks is None and cache.kv_cache_memory_bytes is not None:
            num_blocks = cache.kv_cache_memory_bytes // layout.bytes_per_block()
        if self.has_said_length or num_blocks is None:
            return own
        return min(own, max(num_blocks, 1) * layout.block_size)

    def memory(
        self,
        device: str,
        dtype: str,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        longest: int,
        layout: KVLayout,
    ) -> tuple[MemoryPlan, int]:
        cache = self.config.cache
        block_bytes = layout.bytes_per_block()
        useful_blocks = max_num_seqs * -(-longest // layout.block_size)
        if self.is_timed:
            budget, budget_text, weights, activations, reserve = (
                0,
                "a timed executor holds no tensors",
                0,
                0,
                0,
            )
        else:
            budget, budget_text = memory_budget(
                self.machine, device=device, gpu_memory_utilization=cache.gpu_memory_utilization
            )
            weights = self.spec.weight_bytes(dtype)
            activations = sum(
                activation_terms(
                    self.spec,
                    dtype=dtype,
                    max_num_batched_tokens=max_num_batched_tokens,
                    max_num_seqs=max_num_seqs,
                    max_model_len=longest,
                )
            )
            reserve = GPU_RESERVE_BYTES if device == "cuda" else CPU_RESERVE_BYTES
        if cache.num_gpu_blocks_override is not None:
            num_blocks = cache.num_gpu_blocks_override
            if cache.kv_cache_memory_bytes is None:
                self.decide(
                    "cache.kv_cache_memory_bytes", num_blocks * block_bytes, "num_gpu_blocks_override blocks"
                )
        elif cache.kv_cache_memory_bytes is not None:
            num_blocks = cache.kv_cache_memory_bytes // block_bytes
        elif self.is_timed:
            num_blocks = min(useful_blocks, MAX_TIMED_BLOCKS)
            self.decide("cache.kv_cache_memory_bytes", num_blocks * block_bytes, "timed: no bytes are held")
        else:
            left = budget - weights - activations - reserve
            kv_bytes, reason = plan_kv_bytes(
                left_bytes=left,
                useful_bytes=useful_blocks * block_bytes,
                least_bytes=block_bytes * (-(-longest // layout.block_size) if self.has_said_length else 1),
                device=device,
            )
            num_blocks = kv_bytes // block_bytes
            self.decide("cache.kv_cache_memory_bytes", num_blocks * block_bytes, reason)
        plan = MemoryPlan(
            budget_bytes=budget,
            budget_text=budget_text,
            weights_bytes=weights,
            activations_bytes=activations,
            reserve_bytes=reserve,
            kv_bytes=num_blocks * block_bytes,
        )
        return plan, num_blocks

    def max_model_len(self, capacity_tokens: int) -> int:
        said = self.config.model.max_model_len
        if said is not None:
            return said
        own = self.spec.max_context
        if 2 <= capacity_tokens < own:
            reason = f"what the KV memory can hold; the model would allow {own}"
            self.decide("model.max_model_len", capacity_tokens, reason)
            return capacity_tokens
        self.decide("model.max_model_len", own, "the model's own limit")
        return own

    def warnings(self, device: str, sources: Mapping[str, Source]) -> tuple[str, ...]:
        idle = []
        if device == "cpu" and _was_said(sources, "cache.gpu_memory_utilization"):
            idle.append("gpu_memory_utilization has no effect on a CPU; use kv_cache_memory_bytes")
        if device == "cuda" and _was_said(sources, "runner.num_threads"):
            idle.append("num_threads has little effect on a GPU")
        if self.config.cache.kv_layout == "paged" and _was_said(sources, "cache.kv_page_bytes"):
            idle.append("kv_page_bytes has no effect with kv_layout paged: blocks are sized by block_size")
        if self.config.cache.kv_layout == "xtensor" and _was_said(sources, "cache.block_size"):
            idle.append("block_size has no effect with kv_layout xtensor: a block is a page (kv_page_bytes)")
        if (device == "cuda" or self.is_timed) and _was_said(sources, "runner.cpu_set"):
            idle.append("cpu_set has no effect here: no step runs on this machine's CPUs")
        if self.is_timed and _was_said(sources, "runner.graphs"):
            idle.append("graphs have no effect with a timed executor: no forward is run")
        if self.is_timed and _was_said(sources, "model.load_format"):
            idle.append("load_format has no effect with a timed executor: no weights are loaded")
        if self.config.model.packed_weights_cache is not None:
            idle += self.idle_packed_weights(device)
        return tuple(idle)

    def idle_packed_weights(self, device: str) -> list[str]:
        why = None
        if self.is_timed:
            why = "a timed executor loads no weights"
        elif device == "cuda":
            why = "weights are packed for a CPU only"
        elif self.config.model.load_format == "dummy":
            why = "dummy weights are not read from anywhere"
        return [] if why is None else [f"packed_weights_cache has no effect: {why}"]


def _was_said(sources: Mapping[str, Source], key: str) -> bool:
    return sources.get(key, DEFAULT).kind != "default"
