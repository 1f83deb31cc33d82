"""Instances judged by progress under a manual clock; views, routing and the memory registry."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from msgspec import structs

from xllm.base.clock import ManualClock
from xllm.errors import CapacityError, ConfigError
from xllm.registry.memory import MemoryRegistry
from xllm.registry.registry import InstanceRecord, RegistryEvent
from xllm.service.cluster.cluster import TICK_S, Cluster
from xllm.service.cluster.instance import Instance, Patience
from xllm.service.cluster.view import MAX_BLIND_REQUESTS
from xllm.service.policy import POLICIES
from xllm.service.policy.round_robin import round_robin
from xllm.service.router import Router
from xllm.types.instance import HealthReport, InstanceInfo, LoadReport
from xllm.types.request import Request
from xllm.types.wire import LoadReply

STALL_S = 5.0
PATIENCE = Patience(suspect_after_s=2.0, lost_after_s=8.0, forget_after_s=30.0)
REQUEST = Request(id="r", prompt_token_ids=(1,), seed=0)


def info(name: str = "e0", **fields: Any) -> InstanceInfo:
    fields = {"model": "m", "vocab_size": 9} | fields
    return InstanceInfo(id=name, incarnation="i", address="a", **fields)


def beat(state: Any = "ready", *, unfinished: int = 0, idle_s: float = 0.0) -> LoadReply:
    health = HealthReport(state=state, step=1, layers_done=1, num_unfinished=unfinished, idle_s=idle_s)
    return LoadReply(load=LoadReport(num_running=unfinished), health=health)


def connected(clock: ManualClock) -> Instance:
    instance = Instance(info(), clock, STALL_S, PATIENCE)
    assert instance.state == "joining"
    instance.on_connected(info())
    return instance


def test_silence_makes_suspect_and_a_heartbeat_brings_back() -> None:
    clock = ManualClock()
    instance = connected(clock)
    instance.on_heartbeat(beat())
    clock.advance(PATIENCE.suspect_after_s - 0.01)
    assert instance.state == "ready" and instance.is_healthy
    clock.advance(0.02)
    assert instance.state == "suspect" and not instance.is_healthy
    assert not instance.is_given_up
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


def test_silence_with_a_lease_is_given_up_late_and_without_one_early() -> None:
    for has_lease, after_s in ((True, PATIENCE.lost_after_s), (False, PATIENCE.suspect_after_s)):
        clock = ManualClock()
        instance = connected(clock)
        instance.on_heartbeat(beat(unfinished=1))
        instance.on_lease(has_lease)
        clock.advance(after_s - 0.01)
        assert not instance.is_given_up
        clock.advance(0.02)
        assert instance.is_given_up and instance.state == "lost"
        instance.on_lost("cut")
        assert instance.state == "lost" and not instance.is_given_up


def test_a_lease_that_ended_is_no_death_while_it_is_heard() -> None:
    clock = ManualClock()
    instance = connected(clock)
    instance.on_lease(False)
    for _ in range(100):
        instance.on_heartbeat(beat())
        clock.advance(1.0)
        assert instance.state == "ready" and not instance.is_forgettable
    instance.on_lost("connection reset")
    clock.advance(PATIENCE.forget_after_s - 0.1)
    assert not instance.is_forgettable
    clock.advance(0.2)
    assert instance.is_forgettable
    instance.on_lease(True)
    assert not instance.is_forgettable


def test_time_in_which_the_service_stood_still_is_forgiven() -> None:
    clock = ManualClock()
    cluster = build_cluster(clock, {"a": "ready"})
    cluster.tick()
    clock.advance(100.0)
    (instance,) = cluster
    assert instance.is_given_up
    cluster.tick()
    assert instance.state == "ready"
    for _ in range(40):
        clock.advance(TICK_S)
        cluster.tick()
    assert instance.is_given_up, "real silence counts"


def test_what_others_sent_and_what_we_sent_since_count_as_outstanding() -> None:
    instance = connected(ManualClock())
    instance.on_heartbeat(LoadReply(load=LoadReport(num_running=5, num_waiting=2), health=beat().health))
    assert instance.view().num_outstanding == 7
    for _ in range(3):
        instance.on_routed()
    assert instance.view().num_outstanding == 10
    instance.on_heartbeat(LoadReply(load=LoadReport(num_running=6), health=beat().health))
    assert instance.view().num_outstanding == 6


def join(cluster: Cluster, name: str, state: Any = "ready", **fields: Any) -> None:
    cluster.add(info(name, **fields))
    cluster.on_connected(info(name, **fields))
    cluster.on_heartbeat(name, beat(state))


def served(cluster: Cluster) -> list[str]:
    return [item.id for item in cluster.view().instances]


def test_another_revision_is_another_group_and_takes_over_when_as_many_of_it_are_up() -> None:
    clock = ManualClock()
    cluster = build_cluster(clock, {"b1": "ready", "b2": "ready"})
    old = cluster.group
    join(cluster, "a1", revision="v2", block_size=64)
    assert [instance.info.id for instance in cluster] == ["a1", "b1", "b2"]
    assert served(cluster) == ["b1", "b2"], "one of it is less than two"
    join(cluster, "a2", "loading", revision="v2", block_size=64)
    cluster.tick()
    assert served(cluster) == ["b1", "b2"], "a loading one does not count"
    cluster.on_heartbeat("b1", beat("draining"))
    cluster.tick()
    assert served(cluster) == ["a1", "a2"] and [v.id for v in cluster.view(old).instances] == ["b1", "b2"]
    cluster.on_heartbeat("a2", beat())
    cluster.on_heartbeat("b1", beat())
    clock.advance(PATIENCE.suspect_after_s)
    cluster.on_heartbeat("b1", beat())
    cluster.on_heartbeat("b2", beat())
    cluster.tick()
    assert served(cluster) == ["a1", "a2"], "a moment of silence changes nothing"
    cluster.remove("a1")
    cluster.on_heartbeat("a2", beat())
    cluster.tick()
    assert served(cluster) == ["b1", "b2"], "and back again when it is gone"


@pytest.mark.parametrize("old, new", [("a", "b"), ("b", "a")])
def test_replicas_agree_on_equal_groups_whenever_each_was_started(old: str, new: str) -> None:
    old_ids, new_ids = [f"{old}1", f"{old}2"], [f"{new}1", f"{new}2"]
    started_s = {old_ids[0]: 100.0, old_ids[1]: 500.0, new_ids[0]: 200.0, new_ids[1]: 300.0}

    def see(cluster: Cluster, name: str) -> None:
        join(cluster, name, revision=f"of-{name[0]}", started_unix_s=started_s[name])

    early = build_cluster(ManualClock(), {})
    for name in (*old_ids, *new_ids):  # as they came up
        see(early, name)
    late = build_cluster(ManualClock(), {})
    for name in sorted(started_s):  # as a snapshot of the registry names them
        see(late, name)
    gone = build_cluster(ManualClock(), {})
    for name in (*new_ids, *old_ids):  # it lost the old ones for a while
        see(gone, name)
    for cluster in (early, late, gone):
        cluster.tick()
        assert served(cluster) == new_ids, (
            "its oldest started later, though an old one was started again last"
        )
    for cluster in (early, late, gone):
        cluster.on_heartbeat(new_ids[0], beat("draining"))
        cluster.tick()
        assert served(cluster) == old_ids


def test_only_the_same_model_with_the_same_vocabulary_takes_over() -> None:
    cluster = build_cluster(ManualClock(), {"b": "ready"})
    cluster.on_heartbeat("b", beat("draining"))
    join(cluster, "a", model="other")
    join(cluster, "c", revision="v3", vocab_size=10)
    cluster.tick()
    assert served(cluster) == ["b"]
    join(cluster, "d", revision="v4")
    assert served(cluster) == ["d"]


def test_instances_outside_what_may_be_served_are_never_routed_to() -> None:
    only = Cluster(ManualClock(), stall_timeout_s=STALL_S, may_serve=lambda found: found.revision == "v2")
    only.add(info("b"))
    assert only.view().instances == ()
    only.add(info("a", revision="v2"))
    assert [item.id for item in only.view().instances] == ["a"]


def build_cluster(clock: ManualClock, states: dict[str, Any]) -> Cluster:
    cluster = Cluster(clock, stall_timeout_s=STALL_S, patience=PATIENCE)
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
        chosen.on_routed()
    assert counts == {"a": 10, "c": 10, "d": 10}


def test_round_robin_owes_nothing_to_who_joins_or_comes_back() -> None:
    clock = ManualClock()
    cluster = build_cluster(clock, {"a": "ready", "b": "ready"})
    router = Router(round_robin)

    def spread(num: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        for _ in range(num):
            chosen = cluster.get(router.route(REQUEST, cluster.view()).prefill)
            assert chosen is not None
            chosen.on_routed()
            counts[chosen.info.id] += 1
        return counts

    spread(40)
    join(cluster, "c")
    assert spread(9) == {"a": 3, "b": 3, "c": 3}
    away = cluster.get("c")
    assert away is not None
    away.on_lost("cable")
    assert spread(40) == {"a": 20, "b": 20}
    cluster.on_connected(info("c"))
    assert away.view().num_unreported == 3, "what it was sent before still counts as on its way"
    assert spread(9) == {"a": 3, "b": 3, "c": 3}


def test_a_silent_instance_gets_requests_only_when_there_is_nothing_better_and_not_many() -> None:
    clock = ManualClock()
    cluster = build_cluster(clock, {"a": "ready", "b": "ready"})
    clock.advance(PATIENCE.suspect_after_s)
    cluster.on_heartbeat("b", beat())
    assert {round_robin(REQUEST, cluster.view()).prefill for _ in range(3)} == {"b"}  # type: ignore[union-attr]
    cluster.remove("b")
    (silent,) = cluster
    for _ in range(MAX_BLIND_REQUESTS):
        assert Router(round_robin).route(REQUEST, cluster.view()).prefill == "a"
        silent.on_routed()
    with pytest.raises(CapacityError, match="a is suspect"):
        Router(round_robin).route(REQUEST, cluster.view())
    cluster.on_heartbeat("a", beat())
    assert Router(round_robin).route(REQUEST, cluster.view()).prefill == "a"
    clock.advance(PATIENCE.lost_after_s)
    with pytest.raises(CapacityError, match="a is lost"):
        Router(round_robin).route(REQUEST, cluster.view())


def test_a_degraded_instance_is_the_last_choice_but_one() -> None:
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


def test_instances_that_name_blocks_differently_are_refused() -> None:
    cluster = build_cluster(ManualClock(), {"a": "ready"})
    for field in ("block_size", "hash_version"):
        with pytest.raises(ConfigError, match=field):
            cluster.add(info("b", **{field: 32}))
        assert field in cluster.refused["b"] and cluster.get("b") is None
    cluster.remove("a")
    cluster.add(info("b", block_size=32))
    assert not cluster.refused


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


def test_pictures_are_kept_while_nothing_happens_and_never_out_of_date() -> None:
    rng, clock = random.Random(7), ManualClock()
    cluster = Cluster(clock, stall_timeout_s=STALL_S, patience=PATIENCE)
    num_kept = 0
    for _ in range(4000):
        name = f"e{rng.randrange(6)}"
        group = {"revision": rng.choice("ab")}
        event = rng.randrange(10)
        one = cluster.get(name)
        if one is None or event == 0:
            cluster.add(info(name, **group))
        elif event == 1:
            cluster.on_connected(info(name, **group))
        elif event in (2, 3, 4):
            cluster.on_heartbeat(
                name, beat(unfinished=rng.randrange(2), idle_s=rng.choice((0.0, STALL_S - 1)))
            )
        elif event == 5:
            one.on_lost("gone")
        elif event == 6:
            one.on_lease(rng.random() < 0.5)
        elif event == 7:
            one.on_counted(num_inflight=rng.randrange(9), num_pending_tokens=5, num_pending_prompt_tokens=6)
        elif event == 8:
            one.on_routed()
        elif rng.random() < 0.1:
            cluster.remove(name)
        before = cluster.pictures()
        clock.advance(rng.choice((0.0, 0.0, 0.1, 1.0, PATIENCE.suspect_after_s)))
        cluster.tick()
        for served in (("m", "a"), ("m", "b")):
            assert cluster.pictures(served) == tuple(each.view() for each in cluster.members(served))
        num_kept += sum(a is b for a, b in zip(before, cluster.pictures(), strict=False))
    assert num_kept > 1000
