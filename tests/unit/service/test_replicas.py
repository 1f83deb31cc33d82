"""Two services over one engine: the same request id in both, aborts, loads that converge."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from tests.fakes.served_engine import make_request, served_engine, until
from tests.fakes.step_runner import FakeStepRunner
from tests.unit.service.test_service import Parts, Sink, run, serving
from xllm.engine.server.engine_server import ServerOptions
from xllm.service.hold_queue import HoldLimits
from xllm.types.batch import Batch, BatchResult, StepMask


def test_the_same_id_in_two_replicas_is_two_requests() -> None:
    async def scene() -> None:
        async with served_engine() as engine, serving(engine) as one, serving(engine) as two:
            engine.runner.gate.clear()
            first, second = Sink(), Sink()
            await one.service.submit(make_request("same", 30, prompt=(1, 2, 3)), first)
            await two.service.submit(make_request("same", 20, prompt=(1, 2, 3, 4, 5)), second)
            assert len(two.service._names) == 1 and len(one.service._names) == 0
            engine.runner.gate.set()
            await until(lambda: bool(first.reasons) and bool(second.reasons))
            assert first.tokens == list(range(3, 33)) and second.tokens == list(range(5, 25))
            assert {output.request_id for output in first.outputs + second.outputs} == {"same"}
            assert len(two.service._names) == 0

    run(scene)


def test_an_abort_ends_the_own_request_only() -> None:
    async def scene() -> None:
        async with served_engine() as engine, serving(engine) as one, serving(engine) as two:
            engine.runner.gate.clear()
            first, second = Sink(), Sink()
            await one.service.submit(make_request("same", 30), first)
            await two.service.submit(make_request("same", 30), second)
            two.service.abort("same")
            two.service._connections.clients["engine-0"].send_abort("same")  # not its own: without effect
            await asyncio.sleep(0.05)
            engine.runner.gate.set()
            await until(lambda: bool(first.reasons) and bool(second.reasons))
            assert first.reasons == ["length"] and len(first.tokens) == 30
            assert second.reasons == ["abort"]

    run(scene)


def test_each_replica_sees_what_the_other_sent() -> None:
    async def scene() -> None:
        options = ServerOptions(heartbeat_s=0.02)
        async with served_engine(options=options) as engine, serving(engine) as one, serving(engine) as two:
            engine.runner.gate.clear()
            for number in range(5):
                await one.service.submit(make_request(f"r{number}"), Sink())
            await until(lambda: one.cluster.view().instances[0].num_outstanding == 5)
            await until(lambda: two.cluster.view().instances[0].num_outstanding == 5)
            engine.runner.gate.set()
            await until(lambda: two.cluster.view().instances[0].num_outstanding == 0)

    run(scene)


def test_a_replica_that_starts_later_serves_the_same_revision() -> None:
    async def scene() -> None:
        async with (
            served_engine(revision="zinc", started_unix_s=100.0) as old,
            served_engine(revision="argon", started_unix_s=200.0) as new,
            serving(old) as early,
        ):
            assert early.cluster.group == ("fake", "zinc")
            early.publish(new, "before-0")
            await until(lambda: early.cluster.group == ("fake", "argon"))
            late = Parts()
            late.publish(new, "before-0")  # a registry's snapshot is ordered by key
            late.publish(old, "engine-0")
            try:
                await late.service.start(None)
                await until(lambda: len(late.service._connections.clients) == 2)
                late.cluster.tick()
                assert late.cluster.group == early.cluster.group
                for parts in (early, late):
                    sink = Sink()
                    await parts.service.submit(make_request("r"), sink)
                    await until(lambda s=sink: bool(s.reasons))  # type: ignore[misc]
                assert new.runner.ran and not old.runner.ran
            finally:
                await late.service.close()

    run(scene)


HOLD = HoldLimits(max_waiting_per_instance=4, max_online=1000)


class Paced(FakeStepRunner):
    """Its steps are long enough, on any machine, for heartbeats to come between a few of them."""

    def run(self, batch: Batch, take_mask: Callable[[], StepMask]) -> BatchResult:
        time.sleep(0.001)
        return super().run(batch, take_mask)


class Crowd:
    """Requests submitted at once through one replica; ``num_done`` have had their end."""

    def __init__(self, parts: Parts, tenant: str, count: int, suffix: str = "") -> None:
        self.sinks = [Sink() for _ in range(count)]
        self._tasks = [
            asyncio.ensure_future(
                parts.service.submit(make_request(f"{tenant}{suffix}-{n}", 12, tenant=tenant), sink)
            )
            for n, sink in enumerate(self.sinks)
        ]

    @property
    def num_done(self) -> int:
        return sum(bool(sink.reasons) for sink in self.sinks)

    async def done(self) -> None:
        await until(lambda: self.num_done == len(self.sinks))
        await asyncio.gather(*self._tasks)
        assert all(sink.reasons == ["length"] for sink in self.sinks)


@contextlib.asynccontextmanager
async def two_busy_replicas() -> AsyncIterator[tuple[Parts, Parts]]:
    """Over one engine of four sequences, with requests held in the services."""
    options = ServerOptions(heartbeat_s=0.02)
    async with (
        served_engine(options=options, runner=Paced(), max_num_seqs=4) as engine,
        serving(engine, hold=HOLD) as one,
        serving(engine, hold=HOLD) as two,
    ):
        yield one, two


def test_a_tenant_at_another_replica_than_the_one_that_floods_gets_its_part() -> None:
    async def scene() -> None:
        async with two_busy_replicas() as (one, two):
            flood = Crowd(one, "flood", 300)
            await until(lambda: flood.num_done > 10)
            before = flood.num_done
            calm = Crowd(two, "calm", 40)
            await calm.done()
            # Half of the engine each, so about as many of the other's ended meanwhile; alone it would have been all.
            assert flood.num_done - before < 120, flood.num_done - before
            assert flood.num_done < 300
            await flood.done()

    run(scene)


def test_tenants_whose_requests_come_through_both_replicas_get_the_same() -> None:
    async def scene() -> None:
        async with two_busy_replicas() as (one, two):
            floods = [Crowd(parts, "flood", 150, str(n)) for n, parts in enumerate((one, two))]
            await until(lambda: all(crowd.num_done > 5 for crowd in floods))
            before = sum(crowd.num_done for crowd in floods)
            calm = [Crowd(parts, "calm", 30, str(n)) for n, parts in enumerate((one, two))]
            for crowd in calm:
                await crowd.done()
            meanwhile = sum(crowd.num_done for crowd in floods) - before
            assert meanwhile < 120, meanwhile
            for crowd in floods:
                await crowd.done()

    run(scene)
