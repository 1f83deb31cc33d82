"""Policies are pure functions of request and view; each test draws the view by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from xllm.service.cluster.view import ClusterView, InstanceView
from xllm.service.kv_index import KvIndex
from xllm.service.policy import POLICIES
from xllm.service.policy.cache_aware import cache_aware
from xllm.service.policy.least_loaded import least_loaded
from xllm.service.policy.score import Policy
from xllm.service.policy.session_affinity import session_affinity
from xllm.service.policy.slo_aware import slo_aware
from xllm.service.prefix_feeds import ALARM_REQUESTS, PrefixFeeds
from xllm.service.router import Router
from xllm.types.block_hash import block_hashes, root_hash
from xllm.types.instance import InstanceInfo, LoadReport, StepCosts
from xllm.types.kv_event import KvEvent, KvEventBatch
from xllm.types.output import RequestOutput
from xllm.types.request import Request, SessionRef, SloBudgets

SIZE = 16


def instance(
    name: str, *, state: Any = "ready", inflight: int = 0, routed: int = 0, pending: int = 0, **load: Any
) -> InstanceView:
    return InstanceView(
        info=InstanceInfo(id=name, incarnation="i", address="a", model="m"),
        state=state,
        load=LoadReport(**load),
        num_inflight=inflight,
        num_routed=routed,
        num_pending_tokens=pending,
        num_pending_prompt_tokens=2 * pending,
    )


def request(num_tokens: int = 1600, first: int = 0, **fields: Any) -> Request:
    ids = tuple(range(first, first + num_tokens))
    hashes = block_hashes(ids, block_size=SIZE, root=root_hash(block_size=SIZE))
    return Request(id="r", prompt_token_ids=ids, seed=0, block_hashes=hashes, block_hash_size=SIZE, **fields)


def view(*instances: InstanceView, **held: int) -> ClusterView:
    """``held``: instance -> blocks of request()'s prefix it has."""
    index = KvIndex()
    for name, num in held.items():
        index.apply(
            name, KvEventBatch(0, (KvEvent("stored", request().block_hashes[:num]),)), is_snapshot=True
        )
    return ClusterView(instances=instances, prefixes=index)


def chosen(policy: Policy, wanted: Request, seen: ClusterView) -> str:
    decision = policy.decide(wanted, seen)
    assert decision is not None
    assert decision.chosen.total == min(score.total for score in decision.scores)
    return decision.route.prefill


@pytest.mark.parametrize(
    "name", ["round_robin", "least_loaded", "cache_aware", "slo_aware", "session_affinity"]
)
def test_every_policy_takes_only_who_can_serve_and_says_none(name: str) -> None:
    policy: Any = POLICIES.load(name)
    assert isinstance(policy, Policy) and policy.name == name
    assert (
        policy.decide(request(), view(instance("a", state="draining"), instance("b", state="lost"))) is None
    )
    assert chosen(policy, request(tenant="t"), view(instance("a", state="suspect"), instance("b"))) == "b"
    both = view(instance("a"), instance("b"))
    assert chosen(policy, request(tenant="t"), both) == chosen(policy, request(tenant="t"), both)
    router = Router(policy)
    decision = router.try_decide(request(), both, frozenset("a"))
    assert decision is not None and decision.route.decode == "b"
    assert router.try_decide(request(), both, frozenset("ab")) is None


def test_least_loaded_counts_what_waits_what_runs_and_what_is_on_its_way() -> None:
    def best(a: InstanceView, b: InstanceView) -> str:
        return chosen(least_loaded, request(), view(a, b))

    assert best(instance("a", num_waiting_tokens=500), instance("b")) == "b"
    assert best(instance("a", num_running=3), instance("b", num_running=2)) == "b"
    assert best(instance("a", inflight=3), instance("b", num_running=2)) == "b"
    assert best(instance("a", pending=300), instance("b", num_running=9)) == "b"
    assert best(instance("a", pending=30), instance("b", num_running=9)) == "a"
    # What it reports as waiting is what we sent ourselves, and half of that is cached.
    assert (
        best(instance("a", pending=100, num_waiting_tokens=200), instance("b", num_waiting_tokens=120)) == "a"
    )


def test_cache_aware_weighs_a_prefix_against_a_queue_as_real_numbers() -> None:
    assert chosen(cache_aware, request(), view(instance("a"), instance("b"), b=10)) == "b"
    # 10 of 100 blocks more are worth 160 tokens four times: less than a queue of 650, more than one of 630.
    busy, idle = instance("b", num_waiting_tokens=650), instance("a")
    assert chosen(cache_aware, request(), view(idle, busy, a=40, b=50)) == "a"
    busy = instance("b", num_waiting_tokens=630)
    assert chosen(cache_aware, request(), view(idle, busy, a=40, b=50)) == "b"
    assert (
        chosen(cache_aware, request(first=9), view(instance("a"), instance("b", num_running=1), b=100)) == "a"
    )


def test_cache_aware_does_not_feed_an_overloaded_instance() -> None:
    loaded = instance("b", num_waiting=40)
    seen = view(instance("a"), loaded, instance("c"), b=100)
    assert chosen(cache_aware, request(), seen) == "a"
    decision = cache_aware.decide(request(), seen)
    assert decision is not None
    assert next(s for s in decision.scores if s.instance == "b").parts["is_guarded"] == 1.0


def test_a_burst_of_one_prefix_stays_together_before_any_event() -> None:
    seen = view(instance("a"), instance("b"), a=0, b=0)
    index = seen.prefixes
    assert isinstance(index, KvIndex)
    index.expect("b", request().block_hashes)
    assert chosen(cache_aware, request(), seen) == "b"


COSTS = StepCosts(overhead_s=0.001, row_s=0.0001, token_s=0.0001, weights_s=0.003, context_s=0.0, pair_s=0.0)


def slowed(factor: float) -> StepCosts:
    return StepCosts(**{name: factor * getattr(COSTS, name) for name in COSTS.__struct_fields__})


def test_slo_aware_keeps_the_budgets_and_then_the_least_work() -> None:
    def best(slo: SloBudgets, **loads: Any) -> str:
        nodes = [instance(name, **{"step_costs": COSTS, **load}) for name, load in loads.items()]
        return chosen(slo_aware, request(slo=slo), view(*nodes))

    tight, loose = SloBudgets(ttft_ms=300.0), SloBudgets(ttft_ms=3000.0)
    # 1600 own tokens take 0.17 s; 2000 more on top break the tight budget, not the loose one.
    queue, rows = {"num_waiting_tokens": 2000}, {"num_running": 60, "num_running_tokens": 60}
    assert best(tight, a=queue, b=rows) == "b"
    assert best(loose, a=queue, b=rows) == "a", "2000 prompt tokens are less than 60 half outputs"
    assert best(SloBudgets(ttft_ms=10.0), a=queue, b={"num_waiting_tokens": 1000}) == "b", "least late"
    # A third of the speed: the fast one is better even with some work.
    assert best(loose, a={"step_costs": slowed(3.0)}, b={"num_waiting_tokens": 500}) == "b"
    assert best(SloBudgets(tpot_ms=12.0), a={"step_costs": slowed(3.0)}, b={"num_running": 40}) == "b"


def test_slo_aware_explains_itself_and_falls_back_on_defaults_and_on_one_rate() -> None:
    late = instance("a", step_costs=COSTS, num_waiting_tokens=20_000)
    seen = replace(view(late, instance("b"), b=50), default_slo=SloBudgets(ttft_ms=500.0))
    decision = slo_aware.decide(request(), seen)
    assert decision is not None and decision.route.prefill == "b"
    parts = {score.instance: score.parts for score in decision.scores}
    assert parts["a"]["violation"] > 3 and parts["a"]["ttft_s"] > 2.0 and parts["a"]["tpot_s"] > 0
    assert parts["b"]["violation"] == 0 and parts["b"]["hit_tokens"] == 800
    assert chosen(slo_aware, request(age_s=0.4), seen) == "b"


def test_sessions_stay_and_only_those_of_a_lost_instance_move() -> None:
    names = [f"e{i}" for i in range(8)]
    whole = ClusterView(instances=tuple(instance(n) for n in names))
    less = ClusterView(instances=tuple(instance(n) for n in names if n != "e3"))
    before = {f"t{i}": chosen(session_affinity, request(8, tenant=f"t{i}"), whole) for i in range(400)}
    after = {tenant: chosen(session_affinity, request(8, tenant=tenant), less) for tenant in before}
    assert all(after[t] == home for t, home in before.items() if home != "e3")
    assert min(Counter(before.values()).values()) > 20
    home = before["t0"]
    full = [instance(n, num_waiting=100 if n == home else 0) for n in names]
    assert chosen(session_affinity, request(8, tenant="t0"), ClusterView(instances=tuple(full))) != home


def test_a_session_counts_before_its_tenant_and_belongs_to_it() -> None:
    names = [f"e{i}" for i in range(8)]
    seen = ClusterView(instances=tuple(instance(n) for n in names))

    def home(session: str, tenant: str = "") -> str:
        return chosen(session_affinity, request(8, tenant=tenant, session=SessionRef(id=session)), seen)

    homes = [home(f"s{i}", "one") for i in range(400)]
    assert homes == [home(f"s{i}", "one") for i in range(400)]
    assert min(Counter(homes).values()) > 20 and len(set(homes)) == 8, "one tenant's sessions are spread"
    assert len({home("1", f"t{i}") for i in range(100)}) == 8, "and so are sessions of one name"
    assert home("s") == home("s")


def first_output(name: str, cached: int) -> RequestOutput:
    return RequestOutput(name, 0, 0, 0, (1,), num_cached_tokens=cached)


def test_predictions_are_compared_with_what_was_found_and_the_log_says_when_they_part() -> None:
    feeds = PrefixFeeds()
    wanted = request()
    for actual, alarms in ((1600, 0), (100, 1), (100, 1)):
        for _ in range(ALARM_REQUESTS):
            feeds.on_routed(wanted, "a", 1599.0)
            feeds.on_outputs([first_output("r", actual), RequestOutput("r", 0, 0, 1, (2,))])
        feeds.tick()
        assert feeds.num_alarms == alarms
    assert not feeds.pending_tokens and not feeds.pending_prompt_tokens and not feeds._sent
    assert feeds.predicted_tokens["a"] == 1599 * 3 * ALARM_REQUESTS
    assert feeds.actual_tokens["a"] == 1800 * ALARM_REQUESTS
