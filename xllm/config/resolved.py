"""What resolve() returns: a configuration without "auto", the decisions behind it, and how they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from xllm.config.memory_plan import MemoryPlan
from xllm.config.model_spec import ModelSpec
from xllm.config.scheduler import SchedulingPolicy
from xllm.config.threads import ThreadPlan
from xllm.types.kv_layout import KVLayout
from xllm.types.pages import PageGeometry


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One value that was decided, not said."""

    key: str
    """``section.field``."""
    value: Any
    """What was chosen."""
    reason: str
    """Why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedEngineConfig:
    """What an engine is built from: no "auto" left."""

    model: str
    """Directory or hub id as given."""
    served_model_names: tuple[str, ...]
    """Names clients may use; the first is reported."""
    load_format: Literal["auto", "dummy"]
    """Where weights come from."""
    packed_weights_cache: str | None
    """Directory of packed weights; None: not kept."""
    seed: int
    """Seed of dummy weights and of requests without one."""
    spec: ModelSpec
    """The model's facts."""
    device: Literal["cpu", "cuda"]
    """Where the model runs."""
    dtype: Literal["float32", "bfloat16", "float16"]
    """Number format of weights, activations and KV."""
    num_threads: int
    """Threads of a step on a CPU."""
    num_wide_threads: int
    """Threads of a step with so much work that sharing small matrices pays; at least ``num_threads``."""
    threads: ThreadPlan
    """The CPUs they run on."""
    graphs: Literal["off", "layers", "decode", "all"]
    """Which steps run as graphs."""
    max_graph_tokens: int
    """Tokens of the largest graph."""
    kernels: str
    """Which implementation computes what: auto, a name, or op=name,..."""
    shared_prefix_attention: bool
    """Whether rows with a common prefix read it once."""
    kv_touch_ahead_tokens: int
    """Tokens beyond those in use whose memory an idle engine touches."""
    kv_pairs: bool
    """Whether blocks are kept in pairs order where that is faster."""
    batch_invariant: bool
    """Logits independent of batch and chunking."""
    max_model_len: int
    """Longest prompt + output in tokens."""
    kv_layout: KVLayout
    """What a block holds."""
    pages: PageGeometry | None
    """Layout ``xtensor``: blocks are pages in virtual ranges; None: block tables."""
    num_blocks: int
    """KV blocks planned; on a GPU the body may find after loading that fewer fit."""
    enable_prefix_caching: bool
    """Reuse KV of equal beginnings."""
    max_num_seqs: int
    """Sequences running at once."""
    max_num_batched_tokens: int
    """Token budget of a step."""
    enable_chunked_prefill: bool
    """Cut long prompts."""
    scheduling_policy: SchedulingPolicy
    """Order of the queue."""
    max_num_queued_reqs: int
    """0: no limit."""
    max_num_queued_tokens: int
    """0: no limit."""
    max_preemptions: int
    """After this many a sequence is the last choice as a victim."""
    admission_policy: Literal["past-future", "zero-evict", "watermark", "conservative"]
    """Who may enter the running set."""
    admission_history: int
    """past-future: finished outputs remembered."""
    admission_reserve: float
    """past-future: share of blocks kept out of predictions."""
    zero_evict_horizon_tokens: int
    """zero-evict: output tokens assumed at most."""
    watermark: float
    """Share of blocks kept free at admission."""
    pipeline_depth: int
    """Steps in flight: 2 with asynchronous scheduling, 1 without."""
    executor: str
    """``local`` or ``timed:PROFILE``."""
    memory: MemoryPlan
    """The sum behind num_blocks."""
    decisions: tuple[Decision, ...]
    """Every value that was decided, with its reason; to be logged."""
    warnings: tuple[str, ...]
    """Settings that have no effect here; to be logged."""

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.kv_layout.block_size

    @property
    def reasons(self) -> Mapping[str, Decision]:
        """Decisions by key."""
        return {decision.key: decision for decision in self.decisions}
