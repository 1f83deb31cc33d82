"""The scheduler: budget of a step, limits of running and queued work, order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xllm.config.schema import opt, require

SchedulingPolicy = Literal["fcfs", "priority", "deadline", "urgency"]
Fairness = Literal["off", "tenant"]
AdmissionPolicyName = Literal["past-future", "zero-evict", "watermark", "conservative"]


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
    """``fcfs``: in order of arrival; ``priority``: lower ``priority`` first, then arrival; ``deadline``: earliest
    arrival + ``ttft_slo_ms`` first; ``urgency``: by deadline while all can be met, else by value per second. Online
    before offline."""
    slo_token_budget: bool = True
    """Cut a step's prompt tokens so that its predicted time meets the tightest ``tpot_slo_ms`` of the running
    requests; without such requests nothing is cut."""
    early_rejection: bool = opt(True, "--early-rejection")
    """Answer 429 at once when the predicted wait exceeds a request's ``ttft_slo_ms``; without one nothing is
    refused."""
    slo_margin: float = 0.9
    """Share of a TPOT budget that a predicted step may take."""
    starvation_timeout_s: float = 30.0
    """``urgency``: the oldest request that has waited this long goes first."""
    fairness: Fairness = opt("off", "--fairness")
    """``tenant``: tokens are shared fairly between tenants (API keys, or the ``user`` field where there is at most
    one key)."""
    tenant_weights: tuple[str, ...] = ()
    """Shares other than 1: ``user:NAME=WEIGHT`` or ``key:HASH=WEIGHT``, HASH as ``/debug`` shows it."""
    step_time_cache: bool = True
    """Keep what was learned about step times in the user's cache directory, for the next start."""
    profile_startup: bool = opt(False, "--profile-startup")
    """Measure some steps before the first request; off: learn from the load itself."""
    max_num_queued_reqs: int = opt(1024, "--max-num-queued-reqs", "--max-queued-requests")
    """Requests that may wait before new ones get 429; 0: no limit."""
    max_num_queued_tokens: int = opt(0, "--max-num-queued-tokens")
    """Prompt tokens that may wait before new requests get 429; 0: no limit."""
    max_preemptions: int = 16
    """A sequence preempted this often is only chosen again when nobody else can be; bounds starvation."""
    admission_policy: AdmissionPolicyName = opt("past-future", "--admission-policy")
    """Who may enter the running set. ``past-future``: if the predicted peak of KV memory fits, output lengths being
    sampled from finished requests; ``zero-evict``: if nobody would be preempted within ``zero_evict_horizon_tokens``;
    ``watermark``: while all known tokens fit; ``conservative``: if everybody could use all of max_tokens."""
    admission_history: int = 200
    """past-future: finished outputs remembered, per class of requests."""
    admission_reserve: float = 0.05
    """past-future: share of the KV blocks that predictions may not use."""
    zero_evict_horizon_tokens: int = 256
    """zero-evict: output tokens every running request is assumed to produce at most."""
    watermark: float = 0.01
    """watermark: share of the KV blocks kept free when a sequence enters, so that running ones can grow."""
    async_scheduling: bool | None = opt(None, "--async-scheduling")
    """Plan step N+1 while step N runs, with placeholders for the tokens N samples; auto: on a GPU, for timed
    executors, and on a CPU whose forward leaves a core free."""

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
                (self.admission_history >= 1, f"admission_history is {self.admission_history}: at least 1"),
                (
                    0 <= self.admission_reserve < 0.5,
                    f"admission_reserve is {self.admission_reserve}: a share in [0, 0.5)",
                ),
                (
                    self.zero_evict_horizon_tokens >= 1,
                    f"zero_evict_horizon_tokens is {self.zero_evict_horizon_tokens}: at least 1",
                ),
                (0 < self.slo_margin <= 1, f"slo_margin is {self.slo_margin}: a share in (0, 1]"),
                (
                    self.starvation_timeout_s > 0,
                    f"starvation_timeout_s is {self.starvation_timeout_s}: above 0",
                ),
                (0 <= self.watermark < 0.5, f"watermark is {self.watermark}: a share in [0, 0.5)"),
            ),
            "scheduler",
        )
