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

from collections.abc import Callable
from math import ceil

from xllm.types.instance import StepCosts

TYPICAL_OUTPUT = 128
"""Output tokens of a sequence whose end nobody knows: how long a row stays taken."""
HALF_OUTPUT = TYPICAL_OUTPUT / 2.0
LARGEST_PREFILL_SHARE = 0.9
UNKNOWN_BUDGET = 2048


Latency = tuple[float, float, float]
"""Seconds to the first token, seconds between two output tokens, and seconds of work on the instance with the request's
own: all three as the instance would need them."""
Predictor = Callable[[float, float], Latency]
"""(prompt tokens to compute, prompt tokens that are cached) -> what a request would experience; the former is > 0."""


def build_predictor(
    costs: StepCosts,
    *,
    running: int,
    waiting: int,
    running_tokens: int,
    ahead_tokens: float,
    rows: int,
    budget: int,
    prefill_share: float = 0.0,
) -> Predictor:
    """See the module: everything that depends on the instance only, worked out once.

    ``running`` and ``waiting`` sequences are on the instance, the running ones with a context of ``running_tokens``;
    ``ahead_tokens`` of prompts are to be computed first; it has ``rows`` rows (0: unknown) and takes ``budget`` tokens
    per step (0: unknown); lately prompts took ``prefill_share`` of its time. Outstanding work counts what each
    sequence adds to the steps it is in (overhead and weights are there anyway); those that run are half-way through a
    typical output.
    """
    token_s, weights_s, context_s, pair_s = costs.token_s, costs.weights_s, costs.context_s, costs.pair_s
    others = running + waiting
    is_full = rows > 0 and others >= rows

    decoded = rows if is_full else others + 1
    step_s = costs.overhead_s + costs.row_s * decoded + max(token_s * decoded, weights_s)
    free_share = 1.0 - min(prefill_share, LARGEST_PREFILL_SHARE)
    tpot_base_s = (step_s + context_s * (running_tokens + ahead_tokens + HALF_OUTPUT)) / free_share
    tpot_token_s = context_s / free_share

    decoding = running if not rows else min(running, rows)
    room = max(1, (budget or UNKNOWN_BUDGET) - decoding)
    per_step_s = costs.overhead_s + costs.row_s * (decoding + 1) + context_s * running_tokens
    decode_s = token_s * decoding
    wait_s = pair_s * ahead_tokens * ahead_tokens / (2.0 * waiting) if waiting else 0.0
    wait_s += (per_step_s + max(decode_s, weights_s)) / 2.0 if others else 0.0  # a step is in the way
    row_wait_tokens = TYPICAL_OUTPUT * (others + 1 - rows) / rows if is_full else 0.0

    seq_s = costs.row_s + token_s
    work_base_s = (seq_s * others + context_s * running_tokens) * HALF_OUTPUT + seq_s * TYPICAL_OUTPUT
    work_token_s = context_s * TYPICAL_OUTPUT

    def predict(own_tokens: float, cached_tokens: float) -> Latency:
        length, tokens = own_tokens + cached_tokens, ahead_tokens + own_tokens
        num_steps = ceil(tokens / room)
        own_pairs_s = pair_s * own_tokens * (cached_tokens + own_tokens / 2.0)
        compute_s = token_s * tokens
        linear_s, least_s = compute_s + num_steps * decode_s, num_steps * weights_s
        tpot_s = tpot_base_s + tpot_token_s * length
        ttft_s = num_steps * per_step_s + (linear_s if linear_s > least_s else least_s)
        ttft_s += own_pairs_s + wait_s + row_wait_tokens * tpot_s
        return ttft_s, tpot_s, compute_s + own_pairs_s + work_base_s + work_token_s * length

    return predict
