"""Instances judged by progress under a manual clock; views, routing and the memory registry."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from msgspec import structs

from xllm.base.clock import ManualClock
from xllm.errors import CapacityError, ConfigError
from xllm.registry.memory import MemoryRegistry
from xllm.registry.registry import InstanceRecord, RegistryEvent
from xllm.service.cluster.cluster import Cluster
from xllm.service.cluster.instance import Instance
from xllm.service.policy import POLICIES
from xllm.service.policy.round_robin import round_robin
from xllm.service.router import Router
from xllm.types.instance import HealthReport, InstanceInfo, LoadReport
from xllm.types.request import Request
from xllm.types.wire import LoadReply

STALL_S = 5.0
REQUEST = Request(id="r", prompt_token_ids=(1,), seed=0)


def info(name: str = "e0", **fields: Any) -> InstanceInfo:
    return InstanceInfo(id=name, incarnation="i", address="a", model="m", vocab_size=9, **fields)


def beat(state: Any = "ready", *, unfinished: int = 0, idle_s: float = 0.0) -> LoadReply:
    health = HealthReport(state=state, step=1, layers_done=1, num_unfinished=unfinished, idle_s=idle_s)
    return LoadReply(load=LoadReport(num_running=unfinished), health=health)


def connected(clock: ManualClock) -> Instance:
    instance = Instance(info(), clock, STALL_S)
    assert instance.state == "lost"
    instance.on_connected(info())
    return instance


def test_silence_makes_suspect_and_a_heartbeat_brings_back() -> None:
    clock = ManualClock()
    instance = connected(clock)
    instance.on_heartbeat(beat())
    clock.advance(STALL_S - 0.01)
    assert instance.state == "ready" and instance.is_healthy
    clock.advance(0.02)
    assert instance.state == "suspect" and not instance.is_healthy
    instance.on_heartbeat(beat())
    assert instance.state == "ready"


def test_work_that_stands_still_makes_degraded_however_often_it_reports() -> None:
    clock = ManualClock()
    instance = connected(clock)
    for tenth in range(100):
        instance.on_heartbeat(beat(unfinished=1, idle_s=tenth / 10))
        assert (instance.state == "degraded") == (tenth / 10 >= STALL_S)
        clock.advance(0.1)
    assert "advanced" in instance.message
    assert instance.health.state == "degraded"
    instance.on_heartbeat(beat(unfinished=1, idle_s=0.0))
    assert instance.state == "ready"


def test_the_stall_is_aged_between_reports_but_an_idle_engine_never_stalls() -> None:
    clock = ManualClock()
    instance = connected(clock)
    instance.on_heartbeat(beat(unfinished=1, idle_s=4.5))
    clock.advance(0.6)
    assert instance.state == "degraded"
    instance.on_heartbeat(beat(unfinished=0, idle_s=100.0))
    assert instance.state == "ready"


@pytest.mark.parametrize("state", ["draining", "dead", "loading"])
def test_what_the_engine_says_of_itself_counts(state: str) -> None:
    instance = connected(ManualClock())
    instance.on_heartbeat(beat(state))
    assert instance.state == state
    assert instance.is_healthy == (state == "draining")
    assert not instance.view().is_routable


def test_lost_and_back_as_another_incarnation() -> None:
    instance = connected(ManualClock())
    instance.on_heartbeat(beat(unfinished=3))
    instance.on_lost("cable")
    assert instance.state == "lost" and "cable" in instance.message
    instance.on_connected(structs.replace(info(), incarnation="j"))
    assert (instance.state, instance.load.num_running) == ("ready", 0)


def build_cluster(clock: ManualClock, states: dict[str, Any]) -> Cluster:
    cluster = Cluster(clock, stall_timeout_s=STALL_S)
    for name, state in states.items():
        instance = cluster.add(info(name))
        instance.on_connected(info(name))
        instance.on_heartbeat(beat(state))
    return cluster


def test_round_robin_gives_equal_shares_to_ready_instances() -> None:
    cluster = build_cluster(ManualClock(), {"a": "ready", "b": "draining", "c": "ready", "d": "ready"})
    router = Router(round_robin)
    counts: Counter[str] = Counter()
    for _ in range(30):
        route = router.route(REQUEST, cluster.view())
        assert route.prefill == route.decode
        counts[route.prefill] += 1
        chosen = cluster.get(route.prefill)
        assert chosen is not None
        chosen.num_routed += 1
    assert counts == {"a": 10, "c": 10, "d": 10}


def test_a_degraded_instance_is_the_last_choice() -> None:
    clock = ManualClock()
    cluster = build_cluster(clock, {"a": "ready", "b": "ready"})
    stalled = cluster.get("a")
    assert stalled is not None
    stalled.on_heartbeat(beat(unfinished=1, idle_s=60.0))
    assert {round_robin(REQUEST, cluster.view()).prefill for _ in range(3)} == {"b"}  # type: ignore[union-attr]
    cluster.remove("b")
    assert round_robin(REQUEST, cluster.view()).prefill == "a"  # type: ignore[union-attr]


def test_nothing_routable_is_a_503_that_says_why() -> None:
    cluster = build_cluster(ManualClock(), {"a": "draining"})
    with pytest.raises(CapacityError, match="a is draining") as caught:
        Router(round_robin).route(REQUEST, cluster.view())
    assert caught.value.status == 503
    cluster.remove("a")
    with pytest.raises(CapacityError, match="none is known"):
        Router(round_robin).route(REQUEST, cluster.view())


def test_instances_of_another_model_are_refused() -> None:
    cluster = build_cluster(ManualClock(), {"a": "ready"})
    with pytest.raises(ConfigError, match="block_size"):
        cluster.add(info("b", block_size=32))


@pytest.mark.parametrize("name", POLICIES.names())
def test_every_policy_is_pure(name: str) -> None:
    policy: Any = POLICIES.load(name)
    view = build_cluster(ManualClock(), {"a": "ready", "b": "ready"}).view()
    assert policy(REQUEST, view) == policy(REQUEST, view)
    assert policy(REQUEST, build_cluster(ManualClock(), {}).view()) is None


def test_the_registry_tells_everything_once_and_in_order() -> None:
    registry = MemoryRegistry()
    seen: list[tuple[str, str, str]] = []

    def note(event: RegistryEvent) -> None:
        seen.append((event.kind, event.record.info.id, event.record.info.incarnation))

    registry.publish(InstanceRecord(info=info("a")))
    unwatch = registry.watch(note)
    registry.publish(InstanceRecord(info=structs.replace(info("a"), incarnation="2")))
    registry.withdraw("nobody")
    registry.withdraw("a")
    unwatch()
    registry.publish(InstanceRecord(info=info("b")))
    assert seen == [("added", "a", "i"), ("removed", "a", "i"), ("added", "a", "2"), ("removed", "a", "2")]
