"""HoldQueue: order over tenants and classes, bounds, aging, Retry-After from the pace."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from xllm.base.clock import ManualClock
from xllm.base.tenant_counters import MAX_TENANTS
from xllm.errors import CapacityError
from xllm.service.hold_queue import AGED_TURN, LONGEST_RETRY_S, HoldLimits, HoldQueue
from xllm.types.request import Request

numbers = iter(range(10**9))


def request(tenant: str = "", **fields: Any) -> Request:
    name = fields.pop("name", f"r{next(numbers)}")
    return Request(id=name, prompt_token_ids=(1,) * 10, seed=0, tenant=tenant, **fields)


def build(**limits: Any) -> tuple[ManualClock, HoldQueue]:
    clock = ManualClock()
    return clock, HoldQueue(clock, HoldLimits(**limits))


def release(queue: HoldQueue, cost: float = 10.0) -> str:
    """The next tenant; it gets ``cost`` prompt tokens."""
    held = queue.try_pop()
    assert held is not None
    queue.charge(held.request.tenant, prompt_tokens=cost)
    queue.check()
    return held.request.tenant


def test_a_flood_of_one_tenant_does_not_delay_another() -> None:
    _, queue = build()
    for _ in range(30):
        queue.push(request("flood"))
    assert [release(queue) for _ in range(5)] == ["flood"] * 5
    for _ in range(5):
        queue.push(request("small"))
    assert Counter(release(queue) for _ in range(10)) == {"flood": 5, "small": 5}
    _, plain = build(order="fcfs")
    for tenant in ("flood",) * 9 + ("small",):
        plain.push(request(tenant))
    assert [release(plain) for _ in range(10)] == ["flood"] * 9 + ["small"]


def test_weights_and_output_tokens_count() -> None:
    _, queue = build(weights={"heavy": 3.0})
    for _ in range(40):
        queue.push(request("heavy"))
        queue.push(request("light"))
    got = Counter(release(queue) for _ in range(40))
    assert got["heavy"] / got["light"] == pytest.approx(3.0, rel=0.25)
    queue.charge("light", output_tokens=500)
    assert {release(queue) for _ in range(7)} == {"heavy"}


def test_credit_cannot_be_saved_up() -> None:
    _, queue = build()
    for _ in range(20):
        queue.push(request("busy"))
    for _ in range(10):
        release(queue)
    for _ in range(10):
        queue.push(request("late"))
    assert queue.counter("late") == queue.counter("busy")
    assert Counter(release(queue) for _ in range(8)) == {"busy": 4, "late": 4}


def test_offline_waits_first_priority_orders_within_a_tenant_and_nobody_starves() -> None:
    _, queue = build()
    queue.push(request("t", name="offline", offline=True))
    for index in range(3 * AGED_TURN):
        queue.push(request("t", name=f"late{index}", priority=5))
    queue.push(request("t", name="urgent", priority=-1))
    order = []
    while (held := queue.try_pop()) is not None:
        order.append(held.request.id)
    assert order[0] == "urgent" and order[1] == "late0"
    assert order.index("offline") == AGED_TURN - 1, "the oldest has its turn"
    assert len(order) == 3 * AGED_TURN + 2


def test_classes_and_tenants_are_bounded() -> None:
    _, queue = build(max_online=3, max_offline=1, max_per_tenant=2)
    queue.push(request("a", name="a0"))
    queue.push(request("a"))
    with pytest.raises(CapacityError, match="of this client wait, the limit is 2"):
        queue.push(request("a"))
    queue.push(request("b", offline=True))
    with pytest.raises(CapacityError, match="1 offline requests wait, the limit is 1"):
        queue.push(request("c", offline=True))
    queue.push(request())
    with pytest.raises(CapacityError, match="3 online requests wait") as caught:
        queue.push(request("c"))
    assert caught.value.status == 429 and queue.num_refused == 3
    assert queue.remove("a0") and not queue.remove("a0")
    queue.push(request("a"))
    queue.check()
    assert len(queue) == 4


def test_retry_after_follows_the_pace_of_releases() -> None:
    clock, queue = build(max_online=20)
    for _ in range(20):
        queue.push(request())
    assert queue.predicted_wait_s(request()) is None
    for _ in range(10):
        clock.advance(2.0)
        queue.try_pop()
        queue.push(request())
    with pytest.raises(CapacityError) as caught:
        queue.push(request())
    assert caught.value.retry_after_s == pytest.approx(42.0)
    queue.push(request(offline=True))
    wait_s = queue.predicted_wait_s(request(offline=True))
    assert wait_s is not None and wait_s == pytest.approx(44.0)
    assert LONGEST_RETRY_S > 44.0


def test_deadlines_pass_while_it_waits() -> None:
    clock, queue = build()
    queue.push(request(name="short", deadline_in_s=1.0))
    queue.push(request(deadline_in_s=5.0))
    queue.push(request())
    clock.advance(1.0)
    assert [held.request.id for held in queue.overdue()] == ["short"]


def test_random_pushes_pops_and_removals_keep_the_books() -> None:
    rng = random.Random(3)
    clock, queue = build(max_online=50, max_offline=30, max_per_tenant=20)
    waiting: set[str] = set()
    for _ in range(3000):
        action = rng.random()
        clock.advance(0.01)
        if action < 0.55:
            wanted = request(rng.choice("abcd"), offline=rng.random() < 0.3, priority=rng.randrange(3))
            try:
                queue.push(wanted)
                waiting.add(wanted.id)
            except CapacityError:
                pass
        elif action < 0.9:
            held = queue.try_pop()
            assert (held is None) == (not waiting)
            if held is not None:
                waiting.remove(held.request.id)
                queue.charge(held.request.tenant, prompt_tokens=rng.randrange(100))
        elif waiting:
            gone = rng.choice(sorted(waiting))
            assert queue.remove(gone)
            waiting.remove(gone)
        assert len(queue) == len(waiting)
    queue.check()


def test_counters_are_bounded() -> None:
    _, queue = build()
    queue.push(request("stays"))
    for index in range(MAX_TENANTS + 10):
        queue.charge(f"t{index}", prompt_tokens=index + 1)
    queue.check()
    assert "stays" in queue._counters and f"t{MAX_TENANTS + 9}" in queue._counters
