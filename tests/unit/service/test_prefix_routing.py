"""cache_aware and slo_aware inside a service: real servers, brains and RPC with timed steps; KV events that get lost."""

from __future__ import annotations

import asyncio
import random
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.scenes import run
from tests.fakes.served_engine import ServedEngine, make_request, served_engine, until
from tests.unit.service.test_service import Parts, Sink, serving
from xllm.engine.executor.thread import ThreadExecutor
from xllm.engine.server.engine_server import ServerOptions
from xllm.engine.timed import TimedRunner
from xllm.errors import CapacityError
from xllm.perf.learned import LearnedStepTime
from xllm.perf.step_time import PROFILES
from xllm.service.policy.cache_aware import cache_aware
from xllm.service.policy.least_loaded import least_loaded
from xllm.service.policy.round_robin import round_robin
from xllm.service.policy.score import Policy
from xllm.service.policy.slo_aware import slo_aware
from xllm.types.block_hash import block_hashes, root_hash
from xllm.types.request import Request, SloBudgets
from xllm.types.wire import KvEvents

BLOCK = 4
ROOT = root_hash(block_size=BLOCK)


def timed_engine(overhead_s: float = 0.0, **options: Any) -> AbstractAsyncContextManager[ServedEngine]:
    """Its steps last ``overhead_s``."""
    profile = replace(PROFILES["instant"], overhead_s=overhead_s)
    return served_engine(
        executor=lambda _: ThreadExecutor(TimedRunner(profile, vocab_size=1000, num_layers=1)),
        options=ServerOptions(heartbeat_s=0.02),
        max_num_seqs=16,
        times=LearnedStepTime(profile),
        **options,
    )


def ask(name: str, ids: list[int], **fields: Any) -> Request:
    hashes = block_hashes(ids, block_size=BLOCK, root=ROOT)
    return make_request(name, 4, prompt=tuple(ids), block_hashes=hashes, block_hash_size=BLOCK, **fields)


def draw(seed: int, num: int) -> list[int]:
    return [random.Random(f"{seed}-{i}").randrange(1000) for i in range(num)]


async def answered(parts: Parts, request: Request) -> Sink:
    sink = Sink()
    await parts.service.submit(request, sink)
    await until(lambda: bool(sink.reasons))
    assert sink.reasons == ["length"]
    return sink


def where(parts: Parts, name: str) -> dict[str, Any]:
    """The decision about a request."""
    (found,) = [event.fields for event in parts.trace.for_request(name) if event.event == "scored"]
    return found


def is_as_in(parts: Parts, engine: ServedEngine, name: str) -> bool:
    """Whether the index holds exactly what the engine has cached."""
    held = {block for event in engine.core.kv_snapshot() for block in event.hashes}
    known = {block for block in parts.service._prefixes.index._tiers["device"]}
    return all((name in parts.service._prefixes.index.match([b])) == (b in held) for b in held | known)


async def second_turns(policy: Policy) -> tuple[int, int, int]:
    """(second turns that went where their first turn was, instances used by first turns, cached tokens)."""
    async with timed_engine() as one, timed_engine() as two, serving(one, two, policy=policy) as parts:
        talks = {f"talk{number}": draw(number, 80) for number in range(6)}
        await asyncio.gather(*(answered(parts, ask(name, ids)) for name, ids in talks.items()))
        homes = {name: where(parts, name)["instance"] for name in talks}
        if policy.wants_prefixes:
            await until(lambda: is_as_in(parts, one, "engine-0") and is_as_in(parts, two, "engine-1"))
        by_home = sorted(talks, key=lambda name: (homes[name], name), reverse=True)
        order = [name for pair in zip(by_home[:3], by_home[3:], strict=True) for name in pair]
        num_same = num_cached = 0
        for name in order:
            sink = await answered(parts, ask(f"{name}-again", talks[name] + draw(99, 20)))
            num_same += where(parts, f"{name}-again")["instance"] == homes[name]
            num_cached += sum(output.num_cached_tokens or 0 for output in sink.outputs)
        decisions = {s.labels: s.value for s in parts.service.samples() if s.name == "route_decisions"}
        assert decisions.get(("cached",), 0) == (6 if policy is cache_aware else 0)
        return num_same, len(set(homes.values())), num_cached


def test_a_second_turn_goes_to_the_instance_that_holds_the_first() -> None:
    async def scene() -> None:
        assert await second_turns(cache_aware) == (6, 2, 6 * 80)
        num_same, num_homes, num_cached = await second_turns(round_robin)
        assert num_homes == 2 and num_same < 6 and num_cached < 6 * 80, "by turns it is found by chance"

    run(scene)


class Loss:
    """Stands between the connections and a service, loses batches of KV events on demand, and counts snapshots."""

    def __init__(self, service: Any) -> None:
        self.num_to_lose = self.num_lost = self.num_after = self.num_snapshots = 0
        self._deliver = service.on_kv_events
        service.on_kv_events = self.take

    def take(self, instance_id: str, events: KvEvents) -> None:
        self.num_snapshots += events.is_snapshot
        if self.num_to_lose and not events.is_snapshot:
            self.num_to_lose -= 1
            self.num_lost += 1
            return
        self.num_after += bool(self.num_lost and not events.is_snapshot)
        self._deliver(instance_id, events)


def test_a_lost_batch_of_events_leads_to_one_snapshot_and_a_true_index(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene() -> None:
        async with timed_engine() as one, serving(one, policy=cache_aware) as parts:
            index = parts.service._prefixes.index
            await until(lambda: "engine-0" in index)
            loss = Loss(parts.service)
            await answered(parts, ask("first", draw(1, 80)))
            await until(lambda: is_as_in(parts, one, "engine-0"))
            assert index.num_gaps == 0 and "engine-0" in index
            for number in range(1, 4):
                loss.num_to_lose = 1
                await answered(
                    parts, ask(f"long{number}", draw(10 + number, 380))
                )  # six steps, so six batches
                await until(lambda n=number: loss.num_snapshots == n)  # type: ignore[misc]
                await until(lambda: is_as_in(parts, one, "engine-0"))
                assert loss.num_lost == index.num_gaps == number
            assert loss.num_after >= 3
            again = await answered(parts, ask("again", draw(13, 380) + draw(5, 8)))
            assert where(parts, "again")["hit_tokens"] == 380
            assert sum(output.num_cached_tokens or 0 for output in again.outputs) == 380
            assert loss.num_snapshots == 3, "one for each gap"

    run(scene)
    told = [record for record in caplog.records if "KV events are missing" in record.message]
    assert len(told) == 3


def test_slo_aware_keeps_budgets_in_a_service() -> None:
    async def scene() -> None:
        async with timed_engine(0.2) as slow, timed_engine(0.001) as fast:
            for policy in (slo_aware, least_loaded):
                async with serving(slow, fast, policy=policy) as parts:
                    await compare(parts, policy)

    async def compare(parts: Parts, policy: Policy) -> None:
        await until(lambda: all(each.load.step_costs for each in parts.cluster.view().instances))
        budget = SloBudgets(ttft_ms=100.0)
        if policy is least_loaded:  # it knows nothing of speeds: the first of two idle ones, which refuses
            with pytest.raises(CapacityError, match="budget allows"):
                await answered(parts, ask("r", draw(1, 20), slo=budget))
            assert where(parts, "r")["instance"] == "engine-0"
            return
        for number in range(4):
            await answered(parts, ask(f"r{number}", draw(number, 20), slo=budget))
            found = where(parts, f"r{number}")
            assert found["instance"] == "engine-1" and found["violation"] == 0 and 0 < found["ttft_s"] < 0.1
        reasons = {s.labels: s.value for s in parts.service.samples() if s.name == "route_decisions"}
        assert reasons == {("in_budget",): 4}

    run(scene)
