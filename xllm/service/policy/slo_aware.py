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

from typing import NamedTuple

from xllm.perf.latency import InstanceWork, predict_outstanding_s, predict_tpot_s, predict_ttft_s
from xllm.service.cluster.view import ClusterView, InstanceView
from xllm.service.policy.load import TOKENS_PER_S, outstanding_tokens, queued_tokens
from xllm.service.policy.score import Policy, Score
from xllm.types.request import Request

LATE = 1e6
"""Added to the score of an instance that keeps a budget not: it comes after every one that does."""


def _score(request: Request, view: ClusterView) -> tuple[Score, ...]:
    cached = view.prefixes.match(request.block_hashes) if request.block_hashes else {}
    ttft_ms = request.slo.ttft_ms if request.slo.ttft_ms is not None else view.default_slo.ttft_ms
    tpot_ms = request.slo.tpot_ms if request.slo.tpot_ms is not None else view.default_slo.tpot_ms
    size, num_tokens = request.block_hash_size, float(request.num_prompt_tokens)
    scores = []
    for item in view.routable():
        hit_tokens = min(cached.get(item.info.id, 0.0) * size, num_tokens - 1.0)
        found = _predict(item, num_tokens, hit_tokens)
        violation = _excess(found.ttft_s + request.age_s, ttft_ms) + _excess(found.tpot_s, tpot_ms)
        parts = {**found._asdict(), "hit_tokens": hit_tokens, "violation": violation}
        scores.append(Score(item.info.id, LATE + violation if violation else found.outstanding_s, parts))
    return tuple(scores)


class _Predicted(NamedTuple):
    ttft_s: float
    tpot_s: float
    outstanding_s: float


def _predict(item: InstanceView, num_tokens: float, hit_tokens: float) -> _Predicted:
    """What the request would experience there; where costs are not published, by one rate for all."""
    load, costs = item.load, item.load.step_costs
    if costs is None:
        wait_s = (outstanding_tokens(item) + num_tokens - hit_tokens) / TOKENS_PER_S
        return _Predicted(wait_s, 0.0, wait_s)
    num_new = max(0, item.num_outstanding - load.num_running - load.num_waiting)
    work = InstanceWork(
        num_running=load.num_running,
        num_waiting=load.num_waiting + num_new,
        running_tokens=load.num_running_tokens,
        ahead_tokens=queued_tokens(item),
        max_num_seqs=item.info.max_num_seqs,
        max_num_batched_tokens=item.info.max_num_batched_tokens,
        prefill_share=item.prefill_share,
    )
    own = num_tokens - hit_tokens
    return _Predicted(
        predict_ttft_s(costs, work, own, hit_tokens),
        predict_tpot_s(costs, work, num_tokens),
        predict_outstanding_s(costs, work, own, hit_tokens),
    )


def _excess(predicted_s: float, budget_ms: float | None) -> float:
    """How far beyond the budget, as a share of it; 0: within, or there is no budget."""
    if budget_ms is None:
        return 0.0
    return max(0.0, predicted_s * 1e3 / budget_ms - 1.0)


slo_aware = Policy("slo_aware", _score, wants_prefixes=True)
