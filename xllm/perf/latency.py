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


def predict_latency(
    costs: StepCosts,
    own_tokens: float,
    cached_tokens: float,
    running: int,
    waiting: int,
    running_tokens: int,
    ahead_tokens: float,
    rows: int,
    budget: int,
    prefill_share: float = 0.0,
) -> Latency:
    """See the module: a prompt with ``own_tokens`` to compute after ``cached_tokens`` that are there.

    ``running`` and ``waiting`` sequences are on the instance, the running ones with a context of ``running_tokens``;
    ``ahead_tokens`` of prompts are to be computed first; it has ``rows`` rows (0: unknown) and takes ``budget`` tokens
    per step (0: unknown); lately prompts took ``prefill_share`` of its time. Outstanding work counts what each
    sequence adds to the steps it is in (overhead and weights are there anyway); those that run are half-way through a
    typical output. A decision calls this once per instance, hence the plain arithmetic.
    """
    row_s, token_s, weights_s, context_s = costs.row_s, costs.token_s, costs.weights_s, costs.context_s
    length, others = own_tokens + cached_tokens, running + waiting

    num_rows = others + 1 if not rows or others < rows else rows
    linear_s = token_s * num_rows
    linear_s = max(linear_s, weights_s)
    context = running_tokens + ahead_tokens + length + HALF_OUTPUT
    tpot_s = costs.overhead_s + row_s * num_rows + linear_s + context_s * context
    if prefill_share > 0.0:
        tpot_s /= 1.0 - (prefill_share if prefill_share < LARGEST_PREFILL_SHARE else LARGEST_PREFILL_SHARE)

    decoding = running if not rows or running < rows else rows
    tokens = ahead_tokens + own_tokens
    room = (budget or UNKNOWN_BUDGET) - decoding
    num_steps = ceil(tokens / room) if tokens > room > 0 else 1 if room > 0 else ceil(tokens)
    per_step_s = costs.overhead_s + row_s * (decoding + 1) + context_s * running_tokens
    linear_s, least_s = token_s * (tokens + num_steps * decoding), num_steps * weights_s
    own_pairs_s = costs.pair_s * own_tokens * (cached_tokens + own_tokens / 2.0)
    ttft_s = num_steps * per_step_s + (linear_s if linear_s > least_s else least_s) + own_pairs_s
    if waiting:
        ttft_s += costs.pair_s * ahead_tokens * ahead_tokens / (2.0 * waiting)
    if others:  # a step is in the way
        linear_s = token_s * decoding
        ttft_s += (per_step_s + (linear_s if linear_s > weights_s else weights_s)) / 2.0
        if rows and others >= rows:
            ttft_s += TYPICAL_OUTPUT * tpot_s * (others + 1 - rows) / rows

    seq_s = row_s + token_s
    outstanding_s = token_s * tokens + own_pairs_s
    outstanding_s += (seq_s * others + context_s * running_tokens) * HALF_OUTPUT
    outstanding_s += (seq_s + context_s * length) * TYPICAL_OUTPUT
    return ttft_s, tpot_s, outstanding_s
