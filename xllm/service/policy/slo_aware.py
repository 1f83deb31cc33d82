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

from xllm.perf.latency import Latency, Predictor
from xllm.service.cluster.view import ClusterView, InstanceView
from xllm.service.policy.load import TOKENS_PER_S, hit_column
from xllm.service.policy.score import Policy, ScoreTable
from xllm.types.request import Request

LATE = 1e6
"""Added to the score of an instance that keeps a budget not: it comes after every one that does."""


def _score(request: Request, view: ClusterView) -> ScoreTable:
    items = view.routable()
    instances = [item.id for item in items]
    cached = view.prefixes.match(request.block_hashes) if request.block_hashes else {}
    hit_tokens = hit_column(request, instances, cached)
    num_tokens, age_s = float(request.num_prompt_tokens), request.age_s
    own, default = request.slo, view.default_slo
    ttft_slo_s = _seconds(default.ttft_ms if own.ttft_ms is None else own.ttft_ms)
    tpot_slo_s = _seconds(default.tpot_ms if own.tpot_ms is None else own.tpot_ms)

    ttft_s, tpot_s, outstanding_s, violation, totals = [], [], [], [], []
    for item, hit in zip(items, hit_tokens, strict=True):
        first_s, each_s, work_s = (item.predictor or _by_rate(item))(num_tokens - hit, hit)
        late = 0.0
        if first_s + age_s > ttft_slo_s:
            late = (first_s + age_s) / ttft_slo_s - 1.0
        if each_s > tpot_slo_s:
            late += each_s / tpot_slo_s - 1.0
        ttft_s.append(first_s)
        tpot_s.append(each_s)
        outstanding_s.append(work_s)
        violation.append(late)
        totals.append(LATE + late if late else work_s)
    parts = {
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "outstanding_s": outstanding_s,
        "hit_tokens": hit_tokens,
        "violation": violation,
    }
    return ScoreTable(instances, totals, parts)


def _seconds(budget_ms: float | None) -> float:
    """A budget in seconds; infinite when there is none."""
    return math.inf if budget_ms is None else budget_ms * 1e-3


def _by_rate(item: InstanceView) -> Predictor:
    """Where costs are not published: one rate for all instances."""

    def predict(own_tokens: float, cached_tokens: float) -> Latency:
        wait_s = (item.outstanding_tokens + own_tokens) / TOKENS_PER_S
        return wait_s, 0.0, wait_s

    return predict


slo_aware = Policy("slo_aware", _score, wants_prefixes=True)
