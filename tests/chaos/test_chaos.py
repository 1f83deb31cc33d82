"""The short chaos run: every family of faults once or twice under load, by a fixed seed; nothing may be lost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.chaos.run import ChaosOptions, format_report, run_chaos
from tests.chaos.schedule import ENGINE_KINDS, KINDS, Fault, build_outage, build_schedule, build_turns
from tests.chaos.world import WorldOptions

ENGINES = ("engine-0", "engine-1", "engine-2", "engine-3")
SERVICES = ("service-0", "service-1")


def short_schedule() -> list[Fault]:
    """About 20 s; what the long run draws at random is here in a row that meets every duty once."""
    return [
        Fault(kind="kill engine", target="engine-0", at_s=1.0, lasts_s=0.0),
        Fault(kind="kill etcd", target="etcd", at_s=2.5, lasts_s=4.0),
        Fault(kind="freeze engine", target="engine-1", at_s=4.0, lasts_s=5.0),
        Fault(kind="kill service", target="service-0", at_s=7.5, lasts_s=0.5),
        Fault(kind="cut engine", target="engine-2", at_s=12.0, lasts_s=3.0),
        Fault(kind="garbage to engine", target="engine-3", at_s=13.0, lasts_s=1.0),
        Fault(kind="slow etcd", target="etcd", at_s=14.0, lasts_s=3.0),
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_repeated_or_changed_whatever_breaks(tmp_path: Path) -> None:
    options = ChaosOptions(
        seed=11, faults=short_schedule(), world=WorldOptions(lease_ttl_s=2.0), num_clients=8, num_bodies=16,
        max_tokens=80,
    )  # fmt: skip
    report = asyncio.run(run_chaos(tmp_path, options))
    text = format_report(report)
    assert report["problems"] == [], text
    assert report["calls"]["right"] >= 20, text
    # On a slow machine etcd may still be starting when it is to be slow.
    left_out = {fault.kind for fault in options.faults} - {row["kind"] for row in report["faults"]}
    assert left_out <= {"slow etcd"}, text
    noticed = {row["kind"]: row["noticed_s"] for row in report["faults"]}
    assert noticed["kill engine"] and noticed["freeze engine"] and noticed["cut engine"], text
    assert report["attempts_started_anew"] >= 1 and report["logprobs_compared"] >= 100, text
    json.dumps(report)


def test_a_schedule_follows_from_its_seed_and_leaves_the_cluster_able_to_serve() -> None:
    for seed in range(20):
        schedule = build_schedule(seed, 120.0, engines=ENGINES, services=SERVICES)
        assert schedule == build_schedule(seed, 120.0, engines=ENGINES, services=SERVICES)
        assert len(schedule) >= 15
        for fault in schedule:
            struck = {
                other.target
                for other in schedule
                if other.at_s <= fault.at_s < other.at_s + other.lasts_s and other.kind in ENGINE_KINDS
            }
            assert len(struck) <= len(ENGINES) // 2


def test_turns_are_one_fault_of_each_kind() -> None:
    kinds = [kind for kind, weight in KINDS.items() if weight]
    turns = build_turns(3, kinds, engines=ENGINES, services=SERVICES)
    assert [fault.kind for fault in turns] == kinds
    assert {"kill service", "end service", "crawl engine", "8 CPU hogs"} <= {*kinds}
    assert turns == build_turns(3, kinds, engines=ENGINES, services=SERVICES)


def test_in_an_outage_of_etcd_some_engine_is_always_well() -> None:
    for seed in range(20):
        schedule = build_outage(seed, 210.0, engines=ENGINES)
        outage = schedule[0]
        assert outage.kind == "kill etcd" and outage.lasts_s == 210.0
        killed = [fault for fault in schedule if fault.kind == "kill engine"]
        others = [fault for fault in schedule if fault.kind not in ("kill engine", "kill etcd")]
        assert len(killed) == 2 and len(others) >= 10
        assert all(outage.at_s < fault.at_s < outage.at_s + outage.lasts_s for fault in killed)
        ends = [fault.at_s + fault.lasts_s for fault in others]
        assert all(fault.at_s > end for fault, end in zip(others[1:], ends, strict=False))
        assert {fault.target for fault in killed}.isdisjoint(fault.target for fault in others)
