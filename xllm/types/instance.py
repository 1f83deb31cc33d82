"""What is known of an engine instance from outside: identity, load, health."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from xllm.types.ids import InstanceId

Role = Literal["mixed", "encode", "prefill", "decode"]

InstanceState = Literal[
    "starting",
    "loading",
    "warming",
    "ready",
    "degraded",
    "draining",
    "sleeping",
    "standby",
    "suspect",
    "lost",
    "dead",
    "joining",
    "refused",
]
"""What an engine says of itself, and what a service makes of it: published but not connected yet is ``joining``, silent
``suspect``, without connection ``lost``, unlike the others of its group ``refused``. An engine that takes requests is
``ready``."""


class InstanceInfo(Struct, frozen=True, kw_only=True):
    """Identity and capabilities, published once per incarnation."""

    id: InstanceId
    incarnation: str
    """Random per process start: a restarted engine is another one."""
    address: str
    """``host:port`` of its RPC server."""
    model: str
    revision: str = ""
    """Weight revision: part of every block hash."""
    role: Role = "mixed"
    state: InstanceState = "starting"
    block_size: int = 16
    hash_version: int = 1
    layout_hash: str = ""
    dtype: str = ""
    tp: int = 1
    max_model_len: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    """Tokens of one step at most; 0: unknown."""
    num_blocks: int = 0
    vocab_size: int = 0
    pid: int = 0
    version: str = ""
    started_unix_s: float = 0.0
    """When its process said it started, by its own wall clock: compared with other instances', never with a clock."""

    @property
    def group(self) -> tuple[str, str]:
        """Model and weight revision: routing, KV sharing and failover stay among equals."""
        return self.model, self.revision


class StepCosts(Struct, frozen=True, kw_only=True):
    """What a step costs on this instance now, in seconds per unit, as its own step-time model has learned it.

    step = overhead + row * rows + max(token * tokens, weights) + context * decode context + pair * prefill pairs
    """

    overhead_s: float
    """Of every step."""
    row_s: float
    """Per sequence in it."""
    token_s: float
    """Per new token: compute."""
    weights_s: float
    """Of reading the weights: a step never costs less."""
    context_s: float
    """Per token that a decoding sequence attends to."""
    pair_s: float
    """Per pair of a prompt token and one that it attends to."""


class LoadReport(Struct, frozen=True, kw_only=True):
    """Load of one instance now. The blocks add up: free + used + cached + leased + pinned == total."""

    step: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_waiting_tokens: int = 0
    num_running_tokens: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    blocks_leased: int = 0
    blocks_pinned: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    predicted_peak_blocks: int | None = None
    """Reserved for past-future admission."""
    step_time_s: float = 0.0
    """Of the last step."""
    step_overhead_s: float = 0.0
    """Of the last step, everything but forward and sampling."""
    step_time_error: float = 0.0
    """Median |relative error| of the step-time model on its last predictions."""
    step_costs: StepCosts | None = None
    """None: the instance does not know."""
    num_wasted_tokens: int = 0
    """Ordered for sequences that turned out to be over: the price of planning ahead."""
    num_early_rejections: int = 0
    """Requests refused because their predicted first token was later than their budget."""
    num_services: int = 0
    """Services that have requests here."""


class HealthReport(Struct, frozen=True, kw_only=True):
    """Progress of one instance: alive means that work in hand advances, not that a port answers."""

    state: InstanceState
    step: int
    layers_done: int
    """Layers finished since start, over all steps: advances inside a long forward."""
    num_unfinished: int
    idle_s: float
    """Seconds since progress was last seen while there was work; 0 when idle."""
    message: str = ""
    hands_over: bool = False
    """It drains and is to be empty soon: services let its requests go on elsewhere."""
    num_migrated: int = 0
    """Requests that went on elsewhere since the drain began."""
