"""Token-fair tenants: bounded differences, no saved credit, weights."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fakes.small_brain import SmallBrain
from xllm.base.tenant_counters import MAX_TENANTS
from xllm.engine.scheduler.fairness import FairOrder
from xllm.engine.scheduler.limits import SloOptions
from xllm.engine.scheduler.order import ORDER_KEYS, StaticOrder
from xllm.errors import ConfigError
from xllm.types.tenant import parse_weights, user_tenant

PROMPT, OUTPUT = 20, 5
COST = PROMPT + 2 * OUTPUT


def make(weights: dict[str, float] | None = None, policy: str = "fcfs", seqs: int = 2) -> SmallBrain:
    slo = SloOptions(is_fair=True, weights=weights or {})
    return SmallBrain(
        num_blocks=64, max_num_seqs=seqs, max_num_batched_tokens=32, slo=slo, scheduling_policy=policy,
        enable_prefix_caching=False,
    )  # fmt: skip


def flood(brain: SmallBrain, tenant: str, count: int) -> None:
    for i in range(count):
        brain.add(f"{tenant}-{i}", PROMPT, tenant=tenant, max_tokens=OUTPUT, ignore_eos=True)


def served(brain: SmallBrain) -> Counter[str]:
    done: Counter[str] = Counter()
    for out in brain.outputs:
        if out.finish_reason is not None:
            done[out.request_id.partition("-")[0]] += 1
    return done


def test_two_backlogged_tenants_get_the_same_whoever_came_first() -> None:
    brain = make()
    flood(brain, "heavy", 60)
    flood(brain, "light", 20)
    order = brain.core.scheduler.order
    assert isinstance(order, FairOrder)
    while served(brain)["light"] < 19:
        brain.step()
        gap = abs(order.counter("heavy") - order.counter("light"))
        assert gap <= 3 * COST, "the difference is bounded while both have waiting requests"
    assert served(brain)["heavy"] < 25
    brain.run()
    assert served(brain) == {"heavy": 60, "light": 20}


def test_fcfs_without_fairness_lets_the_light_one_wait_for_all() -> None:
    brain = SmallBrain(num_blocks=64, max_num_seqs=2, max_num_batched_tokens=32)
    flood(brain, "heavy", 60)
    flood(brain, "light", 1)
    while not served(brain)["light"]:
        brain.step()
    assert served(brain)["heavy"] >= 58


@pytest.mark.parametrize("policy", ["fcfs", "priority", "deadline", "urgency"])
def test_a_late_light_tenant_waits_for_a_bounded_number_of_others(policy: str) -> None:
    brain = make(policy=policy)
    flood(brain, "heavy", 60)
    for _ in range(40):
        brain.step()
    before = served(brain)["heavy"]
    flood(brain, "light", 1)
    while not served(brain)["light"]:
        brain.step()
    assert served(brain)["heavy"] - before <= 4  # those that ran, and at most one more each
    brain.run(2000)


def test_weights_are_shares() -> None:
    brain = make({"gold": 3.0})
    flood(brain, "bronze", 60)
    flood(brain, "gold", 60)
    while sum(served(brain).values()) < 40:
        brain.step()
    assert 2.3 <= served(brain)["gold"] / served(brain)["bronze"] <= 3.8
    brain.run(2000)


def test_credit_cannot_be_saved_up() -> None:
    brain = make()
    flood(brain, "busy", 30)
    flood(brain, "idle", 1)
    while served(brain)["busy"] < 20:
        brain.step()
    flood_start = served(brain)["busy"]
    for i in range(100, 115):
        brain.add(f"idle-{i}", PROMPT, tenant="idle", max_tokens=OUTPUT, ignore_eos=True)
    while served(brain)["busy"] < flood_start + 5:
        brain.step()
    assert served(brain)["idle"] <= 1 + 5 + 3
    brain.run(2000)


def test_the_number_of_counters_is_bounded() -> None:
    brain = make(seqs=8)
    order = brain.core.scheduler.order
    assert isinstance(order, FairOrder)
    for i in range(MAX_TENANTS + 50):
        order._counters.charge(f"t{i}", prompt_tokens=i + 1)
    flood(brain, "a", 9)
    brain.run()
    assert len(order._counters) <= MAX_TENANTS + 1


def test_online_stays_before_offline() -> None:
    brain = make(seqs=1)
    for i in range(3):
        brain.add(f"off-{i}", PROMPT, tenant="poor", offline=True, max_tokens=1)
        brain.add(f"on-{i}", PROMPT, tenant="rich", max_tokens=1)
    brain.run()
    ended = [o.request_id for o in brain.outputs if o.finish_reason]
    assert [name.partition("-")[0] for name in ended] == ["on"] * 3 + ["off"] * 3


def test_weights_are_read_and_malformed_ones_refused() -> None:
    parsed = parse_weights(["user:alice=2", "key:00ff=0.5"])
    assert parsed == {user_tenant("alice"): 2.0, "key:00ff": 0.5}
    for text in (
        "alice=2",
        "user:alice",
        "user:alice=0",
        "user:alice=-1",
        "user:alice=nan",
        "user:=1",
        "group:a=1",
    ):
        with pytest.raises(ConfigError, match="tenant weight"):
            parse_weights([text])


def test_one_tenant_alone_runs_in_the_inner_order() -> None:
    order = FairOrder(StaticOrder(ORDER_KEYS["fcfs"]))
    assert order.counter("nobody") == 0.0
    brain = make(policy="priority", seqs=1)
    brain.add("low-0", PROMPT, tenant="t", priority=5, max_tokens=1)
    brain.add("high-0", PROMPT, tenant="t", priority=-5, max_tokens=1)
    brain.run()
    assert [o.request_id for o in brain.outputs if o.finish_reason] == ["high-0", "low-0"]
