"""SLO aware: the instance that is predicted to keep the request's latency budgets; the least late one when none is.

For each candidate, from the step costs that it publishes: time to the first token (with the prefix it has cached) and
time per output token, next to the request's ``ttft_slo_ms`` and ``tpot_slo_ms`` (the group's defaults when it has
none). Among instances that keep both, the one with the least outstanding time, in its own seconds and with the request
on it, so that a slow instance gets as much less as it is slower; otherwise the one with the least violation, which is
how far both are beyond their budgets, as shares of the budgets.

Global scheduler of the report (2.3): greedy least load under the constraint; the original takes the queue alone for
the wait, and the first instance that fits.
"""

from __future__ import annotations

import math

from xllm.perf.latency import Latency, predict_latency
from xllm.service.cluster.view import ClusterView, InstanceView
from xllm.service.policy.load import TOKENS_PER_S, outstanding_tokens, queued_tokens
from xllm.service.policy.score import Policy, Score
from xllm.types.request import Request

LATE = 1e6
"""Added to the score of an instance that keeps a budget not: it comes after every one that does."""


def _score(request: Request, view: ClusterView) -> tuple[Score, ...]:
    cached = view.prefixes.match(request.block_hashes) if request.block_hashes else {}
    own, default = request.slo, view.default_slo
    ttft_s = _seconds(default.ttft_ms if own.ttft_ms is None else own.ttft_ms)
    tpot_s = _seconds(default.tpot_ms if own.tpot_ms is None else own.tpot_ms)
    size, num_tokens, age_s = request.block_hash_size, float(request.num_prompt_tokens), request.age_s
    scores = []
    for item in view.routable():
        name = item.info.id
        hit_tokens = min(cached[name] * size, num_tokens - 1.0) if name in cached else 0.0
        first_s, each_s, outstanding_s = _predict(item, num_tokens - hit_tokens, hit_tokens)
        violation = 0.0
        if first_s + age_s > ttft_s:
            violation = (first_s + age_s) / ttft_s - 1.0
        if each_s > tpot_s:
            violation += each_s / tpot_s - 1.0
        parts = {
            "ttft_s": first_s,
            "tpot_s": each_s,
            "outstanding_s": outstanding_s,
            "hit_tokens": hit_tokens,
            "violation": violation,
        }
        scores.append(Score(name, LATE + violation if violation else outstanding_s, parts))
    return tuple(scores)


def _seconds(budget_ms: float | None) -> float:
    """A budget in seconds; infinite when there is none."""
    return math.inf if budget_ms is None else budget_ms * 1e-3


def _predict(item: InstanceView, own_tokens: float, hit_tokens: float) -> Latency:
    """What the request would experience there; where costs are not published, by one rate for all."""
    load, info = item.load, item.info
    if load.step_costs is None:
        wait_s = (outstanding_tokens(item) + own_tokens) / TOKENS_PER_S
        return wait_s, 0.0, wait_s
    return predict_latency(  # by position: this runs once per instance and decision
        load.step_costs,
        own_tokens,
        hit_tokens,
        load.num_running,
        load.num_waiting + item.num_unreported,
        load.num_running_tokens,
        queued_tokens(item),
        info.max_num_seqs,
        info.max_num_batched_tokens,
        item.prefill_share,
    )


slo_aware = Policy("slo_aware", _score, wants_prefixes=True)
