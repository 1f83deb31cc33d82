"""How long a request will wait for its first token, and how far apart its tokens will be, on an instance with work.

    TTFT = n * (overhead + row * (D + 1) + context * C)             n steps, D sequences decode beside the prefill
         + max(token * (P + own + n * D), n * weights)              P prompt tokens stand before the own ones
         + pair * pairs of prompt tokens                            attention of P and of the own tokens
         + half a step in the way + what it waits for a row
         n = ceil((P + own) / (budget - D))

    TPOT = decode step with the own row in it / (1 - share of the time that prefill takes)

First come, first served; it follows the shape of the Arrow predictor (report 2.3: queue plus a quadratic in the
length), with the instance's own step costs in place of a fit per length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from xllm.types.instance import StepCosts

TYPICAL_OUTPUT = 128
"""Output tokens of a sequence whose end nobody knows: how long a row stays taken."""
LARGEST_PREFILL_SHARE = 0.9
UNKNOWN_BUDGET = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceWork:
    """What an instance has to do when a request comes."""

    num_running: int
    """Sequences in its steps."""
    num_waiting: int
    running_tokens: int
    """Context of the running sequences."""
    ahead_tokens: float
    """Prompt tokens to compute before the request's own."""
    max_num_seqs: int
    """Rows; 0: unknown."""
    max_num_batched_tokens: int
    prefill_share: float = 0.0
    """Share of the time that prompts take, lately."""


def predict_ttft_s(costs: StepCosts, work: InstanceWork, own_tokens: float, cached_tokens: float) -> float:
    """Seconds to the first token of a prompt with ``own_tokens`` to compute after ``cached_tokens`` that are there."""
    num_decoding = min(work.num_running, work.max_num_seqs or work.num_running)
    budget = max(1, (work.max_num_batched_tokens or UNKNOWN_BUDGET) - num_decoding)
    tokens = work.ahead_tokens + own_tokens
    num_steps = max(1, math.ceil(tokens / budget))
    per_step_s = costs.overhead_s + costs.row_s * (num_decoding + 1) + costs.context_s * work.running_tokens
    linear_s = max(costs.token_s * (tokens + num_steps * num_decoding), num_steps * costs.weights_s)
    pairs = own_tokens * (cached_tokens + own_tokens / 2.0)
    pairs += work.ahead_tokens * work.ahead_tokens / (2.0 * max(1, work.num_waiting))
    wait_s = num_steps * per_step_s + linear_s + costs.pair_s * pairs
    if work.num_running or work.num_waiting:
        wait_s += (per_step_s + max(costs.token_s * num_decoding, costs.weights_s)) / 2.0
    num_rowless = work.num_running + work.num_waiting + 1 - work.max_num_seqs
    if work.max_num_seqs and num_rowless > 0:
        row_s = TYPICAL_OUTPUT * predict_tpot_s(costs, work, 0)
        wait_s += row_s * num_rowless / work.max_num_seqs
    return wait_s


def predict_outstanding_s(
    costs: StepCosts, work: InstanceWork, own_tokens: float, cached_tokens: float
) -> float:
    """Seconds of work on the instance once it has a request: what it has to do, and what the request adds.

    A sequence costs what it adds to the steps it is in (overhead and weights are there anyway); those that run are
    half-way through a typical output.
    """
    row_s = costs.row_s + costs.token_s
    num_seqs = work.num_running + work.num_waiting
    there_s = (
        costs.token_s * work.ahead_tokens
        + (row_s * num_seqs + costs.context_s * work.running_tokens) * TYPICAL_OUTPUT / 2.0
    )
    length = own_tokens + cached_tokens
    own_s = (
        costs.token_s * own_tokens
        + costs.pair_s * own_tokens * (cached_tokens + own_tokens / 2.0)
        + (row_s + costs.context_s * length) * TYPICAL_OUTPUT
    )
    return there_s + own_s


def predict_tpot_s(costs: StepCosts, work: InstanceWork, num_tokens: float) -> float:
    """Mean seconds between two output tokens of a sequence with a context of ``num_tokens``."""
    num_rows = work.num_running + work.num_waiting + 1
    if work.max_num_seqs:
        num_rows = min(num_rows, work.max_num_seqs)
    context = work.running_tokens + work.ahead_tokens + num_tokens + TYPICAL_OUTPUT / 2.0
    step_s = (
        costs.overhead_s
        + costs.row_s * num_rows
        + max(costs.token_s * num_rows, costs.weights_s)
        + costs.context_s * context
    )
    return step_s / (1.0 - min(LARGEST_PREFILL_SHARE, max(0.0, work.prefill_share)))
