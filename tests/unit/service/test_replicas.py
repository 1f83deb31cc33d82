"""Two services over one engine: the same request id in both, aborts, loads that converge."""

from __future__ import annotations

import asyncio

from tests.fakes.served_engine import make_request, served_engine, until
from tests.unit.service.test_service import Sink, run, serving
from xllm.engine.server.engine_server import ServerOptions


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
