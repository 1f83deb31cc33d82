"""HoldQueue: order over tenants and classes, bounds, aging, Retry-After from the pace."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from typing import Any

import pytest

from xllm.base.clock import ManualClock
from xllm.base.tenant_counters import MAX_TENANTS
from xllm.config.api import ApiConfig
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
        queue.push(request())
    assert caught.value.status == 429 and queue.num_refused == 3
    assert queue.remove("a0") and not queue.remove("a0")
    queue.push(request("a"))
    queue.check()
    assert len(queue) == 4


def flood(queue: HoldQueue, count: int, tenant: str = "flood", **fields: Any) -> int:
    """How many of them are refused."""
    before = queue.num_refused
    for _ in range(count):
        with contextlib.suppress(CapacityError):
            queue.push(request(tenant, **fields))
    return queue.num_refused - before


@pytest.mark.parametrize("offline", [False, True], ids=["online", "offline"])
def test_a_flood_fills_the_class_and_locks_nobody_out(offline: bool) -> None:
    config = ApiConfig()
    _, queue = build(max_online=config.max_held_online, max_offline=config.max_held_offline)
    assert flood(queue, 5000, offline=offline) == 5000 - 2048, "alone it may have all of it"
    queue.check()
    displaced = queue.push(request("other", offline=offline, name="mine"))
    assert displaced is not None and displaced.held.request.tenant == "flood"
    assert displaced.held.number == 2047, "the newest goes"
    assert displaced.error.status == 429 and "this client has the most" in displaced.error.message
    assert displaced.held.request.id not in queue and "mine" in queue and len(queue) == 2048
    queue.check()
    assert {release(queue), release(queue)} == {"flood", "other"}, "it does not stand behind the flood"


def test_a_full_class_is_shared_evenly_by_weight_and_then_nobody_displaces_anybody() -> None:
    _, queue = build(max_online=40, weights={"heavy": 2.0})
    for tenant in ("a", "b", "heavy"):
        flood(queue, 100, tenant)
        queue.check()
    assert Counter(held.request.tenant for held in queue._held.values()) == {"a": 10, "b": 10, "heavy": 20}
    assert flood(queue, 9, "a") == flood(queue, 9, "heavy") == 9


def test_who_is_displaced_is_the_last_of_its_own_order() -> None:
    _, queue = build(max_online=4)
    for name, priority in (("late", 5), ("first", -1), ("second", 0), ("third", 0)):
        queue.push(request("a", name=name, priority=priority))
    left = [queue.push(request("b", name=name)) for name in ("b0", "b1")]
    assert [each.held.request.id for each in left if each] == ["late", "third"]
    queue.check()


def test_in_order_of_arrival_nobody_is_displaced() -> None:
    _, queue = build(max_online=4, order="fcfs")
    flood(queue, 4)
    with pytest.raises(CapacityError, match="the limit is 4"):
        queue.push(request("other"))


def test_entries_of_those_that_left_do_not_pile_up() -> None:
    _, queue = build()
    queue.push(request("a", name="stays", priority=-1))
    for _ in range(3000):
        wanted = request("a")
        queue.push(wanted)
        assert queue.remove(wanted.id)
        queue.check()
    assert len(queue._heaps["a", False]) < 70
    names = [f"aged{i}" for i in range(AGED_TURN * 40)]
    for number, name in enumerate(names):
        queue.push(request("b", name=name, priority=-number))  # the oldest is the last of its heap
    for _ in range(len(names) - 1):
        queue.try_pop()
        queue.check()


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
    clock, queue = build(max_online=30, max_offline=20, max_per_tenant=30)
    waiting: dict[str, tuple[str, bool]] = {}
    num_displaced = 0
    for _ in range(3000):
        action = rng.random()
        clock.advance(0.01)
        if action < 0.6:
            tenant, offline = rng.choice("aaaabcd"), rng.random() < 0.3
            wanted = request(tenant, offline=offline, priority=rng.randrange(3))
            held_by = Counter(name for name, is_offline in waiting.values() if is_offline == offline)
            try:
                displaced = queue.push(wanted)
            except CapacityError as error:
                if "of this client" not in error.message:
                    assert held_by[tenant] + 1 >= max(held_by.values()), "less than its share, and refused"
            else:
                waiting[wanted.id] = tenant, offline
                if displaced is not None:
                    num_displaced += 1
                    gone, is_offline = waiting.pop(displaced.held.request.id)
                    assert is_offline == offline and held_by[gone] == max(held_by.values()) > held_by[tenant]
        elif action < 0.9:
            held = queue.try_pop()
            assert (held is None) == (not waiting)
            if held is not None:
                del waiting[held.request.id]
                queue.charge(held.request.tenant, prompt_tokens=rng.randrange(100))
        elif waiting:
            gone = rng.choice(sorted(waiting))
            assert queue.remove(gone)
            del waiting[gone]
        assert len(queue) == len(waiting)
        queue.check()
    assert num_displaced > 20


def test_counters_are_bounded() -> None:
    _, queue = build()
    queue.push(request("stays"))
    for index in range(MAX_TENANTS + 10):
        queue.charge(f"t{index}", prompt_tokens=index + 1)
    queue.check()
    assert "stays" in queue._counters and f"t{MAX_TENANTS + 9}" in queue._counters
