"""The short chaos run: every family of faults once or twice under load, by a fixed seed; nothing may be lost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.chaos.run import ChaosOptions, format_report, run_chaos
from tests.chaos.schedule import ENGINE_KINDS, Fault, build_schedule
from tests.chaos.world import WorldOptions

ENGINES = ("engine-0", "engine-1", "engine-2", "engine-3")
SERVICES = ("service-0", "service-1")


def short_schedule() -> list[Fault]:
    """About 20 s; what the long run draws at random is here in a row that meets every duty once."""
    return [
        Fault(kind="kill engine", target="engine-0", at_s=1.0, lasts_s=0.0),
        Fault(kind="kill etcd", target="etcd", at_s=2.5, lasts_s=4.0),
        Fault(kind="freeze engine", target="engine-1", at_s=4.0, lasts_s=4.0),
        Fault(kind="kill service", target="service-0", at_s=7.5, lasts_s=0.5),
        Fault(kind="cut engine", target="engine-2", at_s=12.0, lasts_s=2.0),
        Fault(kind="garbage to engine", target="engine-3", at_s=13.0, lasts_s=1.0),
        Fault(kind="slow etcd", target="etcd", at_s=14.0, lasts_s=3.0),
    ]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nothing_is_lost_repeated_or_changed_whatever_breaks(tmp_path: Path) -> None:
    options = ChaosOptions(
        seed=11, faults=short_schedule(), world=WorldOptions(lease_ttl_s=2.0), num_clients=8, num_bodies=16,
        max_tokens=80,
    )  # fmt: skip
    report = asyncio.run(run_chaos(tmp_path, options))
    text = format_report(report)
    assert report["problems"] == [], text
    assert report["calls"]["right"] >= 20, text
    assert len(report["faults"]) == len(options.faults)
    noticed = {row["kind"]: row["noticed_s"] for row in report["faults"]}
    assert noticed["kill engine"] and noticed["freeze engine"] and noticed["cut engine"], text
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
        alone = build_schedule(seed, 120.0, engines=ENGINES, services=SERVICES, alone=True)
        ends = [fault.at_s + fault.lasts_s for fault in alone]
        assert all(fault.at_s > end for fault, end in zip(alone[1:], ends, strict=False))
