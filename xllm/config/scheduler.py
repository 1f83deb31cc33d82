"""The scheduler: budget of a step, limits of running and queued work, order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xllm.config.schema import opt, require

SchedulingPolicy = Literal["fcfs", "priority"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """What one step may hold, what may wait, and who goes first."""

    max_num_seqs: int | None = opt(None, "--max-num-seqs", "--max-running-requests")
    """Sequences that may run at once; auto: 128 on a CPU, 256 on a GPU."""
    max_num_batched_tokens: int | None = opt(None, "--max-num-batched-tokens", "--max-prefill-tokens")
    """Token budget of one step, prompt and output tokens together; auto: 1024 on a CPU, 8192 on a GPU, and
    never less than max_num_seqs (or max_model_len without chunked prefill)."""
    enable_chunked_prefill: bool = opt(True, "--enable-chunked-prefill")
    """Cut long prompts into pieces that share steps with running decodes; off: a prompt is one piece."""
    scheduling_policy: SchedulingPolicy = opt("fcfs", "--scheduling-policy", "--schedule-policy")
    """``fcfs``: in order of arrival; ``priority``: lower ``priority`` first, then arrival. Online before
    offline."""
    max_num_queued_reqs: int = opt(1024, "--max-num-queued-reqs", "--max-queued-requests")
    """Requests that may wait before new ones get 429; 0: no limit."""
    max_num_queued_tokens: int = opt(0, "--max-num-queued-tokens")
    """Prompt tokens that may wait before new requests get 429; 0: no limit."""
    max_preemptions: int = 16
    """A sequence preempted this often is only chosen again when nobody else can be; bounds starvation."""
    watermark: float = 0.01
    """Share of the KV blocks kept free when a new sequence is admitted, so that running ones can grow."""
    async_scheduling: bool | None = opt(None, "--async-scheduling")
    """Plan step N+1 while step N runs, with placeholders for the tokens N samples; auto: on a GPU and for timed
    executors, not on a CPU, where the forward uses the cores itself."""

    def __post_init__(self) -> None:
        at_least_one = (
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
        )
        not_negative = (
            ("max_num_queued_reqs", self.max_num_queued_reqs),
            ("max_num_queued_tokens", self.max_num_queued_tokens),
        )
        require(
            (
                *((v is None or v >= 1, f"{name} is {v}: at least 1") for name, v in at_least_one),
                *((v >= 0, f"{name} is {v}: at least 0") for name, v in not_negative),
                (self.max_preemptions >= 1, f"max_preemptions is {self.max_preemptions}: at least 1"),
                (0 <= self.watermark < 0.5, f"watermark is {self.watermark}: a share in [0, 0.5)"),
            ),
            "scheduler",
        )
