"""OverloadGate: bounds in all, per tenant and of offline work; Retry-After follows the predicted wait."""

from __future__ import annotations

from typing import Any

import pytest

from xllm.config.api import ApiConfig
from xllm.errors import CapacityError
from xllm.service.cluster.view import InstanceView
from xllm.service.overload import LONGEST_RETRY_S, OverloadGate, OverloadLimits
from xllm.service.policy.load import TOKENS_PER_S
from xllm.types.instance import InstanceInfo, LoadReport
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams


def request(name: str, n: int = 1, **fields: Any) -> Request:
    return Request(id=name, prompt_token_ids=(1,), seed=0, sampling=SamplingParams(n=n), **fields)


def waiting(num_tokens: int) -> InstanceView:
    info = InstanceInfo(id=f"e{num_tokens}", incarnation="i", address="a", model="m")
    load = LoadReport(num_waiting_tokens=num_tokens)
    return InstanceView(info=info, state="ready", load=load, num_inflight=0, num_routed=0)


def fill(gate: OverloadGate, name: str, **fields: Any) -> None:
    wanted = request(name, **fields)
    gate.check(wanted, ())
    gate.enter(wanted)


def test_the_whole_is_bounded_in_choices_and_opens_again() -> None:
    gate = OverloadGate(OverloadLimits(max_open=4))
    fill(gate, "a", n=3)
    with pytest.raises(CapacityError, match="3 choices are open, the limit is 4"):
        gate.check(request("b", n=2), ())
    fill(gate, "c")
    with pytest.raises(CapacityError):
        gate.check(request("d"), ())
    gate.leave("a")
    gate.leave("a")
    gate.leave("unknown")
    fill(gate, "d", n=3)
    assert gate.num_open == 4 and gate.num_refused == 2


def test_offline_work_is_refused_before_online_requests() -> None:
    gate = OverloadGate(OverloadLimits(max_open=4))
    fill(gate, "a")
    fill(gate, "b", offline=True)
    with pytest.raises(CapacityError, match="offline work may take 2"):
        gate.check(request("c", offline=True), ())
    fill(gate, "d")
    fill(gate, "e")


def test_one_tenant_cannot_take_the_room_of_others() -> None:
    gate = OverloadGate(OverloadLimits(max_open_per_tenant=2))
    fill(gate, "a", tenant="x", n=2)
    with pytest.raises(CapacityError, match="of this client"):
        gate.check(request("b", tenant="x"), ())
    fill(gate, "c", tenant="y")
    for index in range(9):
        fill(gate, f"nobody-{index}")
    gate.leave("a")
    fill(gate, "b", tenant="x", n=2)
    gate.leave("b")
    gate.leave("c")
    assert gate._by_tenant == {"": 9}


def test_what_one_tenant_leaves_free_is_there_for_others() -> None:
    gate = OverloadGate(OverloadLimits(max_open=ApiConfig().max_open_requests))
    for index in range(56):  # 64 of these would be all there is
        fill(gate, f"flood-{index}", tenant="flood", n=128)
    with pytest.raises(CapacityError, match="of this client are open; what is free is kept for others"):
        fill(gate, "flood", tenant="flood", n=128)
    for tenant in ("a", "b", ""):
        fill(gate, f"one of {tenant}", tenant=tenant)
    assert gate.num_open == 56 * 128 + 3
    others = range(200)
    for index in others:
        fill(gate, f"one of {index}", tenant=f"t{index}")
    small = OverloadGate(OverloadLimits(max_open=128))
    fill(small, "all", tenant="flood", n=128)


def test_offline_work_of_one_tenant_leaves_room_for_that_of_others() -> None:
    gate = OverloadGate(OverloadLimits(max_open=64))
    for index in range(28):
        fill(gate, f"flood-{index}", tenant="flood", offline=True)
    with pytest.raises(CapacityError, match="kept for others, the limit is 32"):
        fill(gate, "flood", tenant="flood", offline=True)
    fill(gate, "other", tenant="other", offline=True)


@pytest.mark.parametrize(("num_tokens", "expected_s"), [(0, 1.0), (10, 10.0), (10**6, LONGEST_RETRY_S)])
def test_retry_after_is_the_predicted_wait(num_tokens: int, expected_s: float) -> None:
    gate = OverloadGate(OverloadLimits(max_open=1))
    fill(gate, "a")
    instances = [waiting(int(num_tokens * TOKENS_PER_S)), waiting(int(num_tokens * TOKENS_PER_S) + 99)]
    with pytest.raises(CapacityError) as caught:
        gate.check(request("b"), instances)
    assert caught.value.status == 429
    assert caught.value.retry_after_s == pytest.approx(expected_s)
