"""Connections: what an old connection says never touches the next incarnation; nothing is left open."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from msgspec import structs

from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.scenes import run
from tests.fakes.served_engine import ServedEngine, make_request, served_engine, until
from tests.unit.service.test_service import Sink, serving
from xllm.base.clock import MonotonicClock
from xllm.base.waits import WaitTable
from xllm.engine.server.engine_server import ServerOptions
from xllm.errors import XllmError
from xllm.registry.memory import MemoryRegistry
from xllm.registry.registry import InstanceRecord
from xllm.service.cluster.cluster import Cluster
from xllm.service.cluster.instance import Patience
from xllm.service.connections import Connections
from xllm.service.tasks import Tasks
from xllm.types.ids import InstanceId
from xllm.types.output import OutputFrame
from xllm.types.wire import KvEvents, LoadReply


class Told(list[tuple[str, str]]):
    def on_outputs(self, instance_id: InstanceId, frame: OutputFrame) -> None: ...

    def on_heartbeat(self, instance_id: InstanceId, reply: LoadReply) -> None: ...

    def on_kv_events(self, instance_id: InstanceId, events: KvEvents) -> None: ...

    def on_connected(self, instance_id: InstanceId, *, is_same: bool) -> None:
        self.append(("connected", instance_id))

    def on_lost(self, instance_id: InstanceId, error: XllmError) -> None:
        self.append(("lost", error.message))


class Scene:
    def __init__(self) -> None:
        clock = MonotonicClock()
        self.cluster = Cluster(clock, stall_timeout_s=5.0)
        self.registry, self.tasks, self.told = MemoryRegistry(), Tasks(), Told()
        self.connections = Connections(self.cluster, peer="p", waits=WaitTable(clock), tasks=self.tasks)
        self.connections.watch(self.registry, self.told)

    def publish(self, engine: ServedEngine, incarnation: str, address: str = "") -> None:
        info = structs.replace(engine.server.info(), id="e", incarnation=incarnation)
        info = structs.replace(info, address=address or engine.address)
        self.registry.publish(InstanceRecord(info=info))

    async def close(self) -> None:
        await self.connections.close()
        await self.tasks.close()


def test_the_end_of_an_old_connection_does_not_touch_the_next_incarnation() -> None:
    async def scene() -> None:
        async with served_engine() as first, served_engine() as second:
            parts = Scene()
            parts.publish(first, "1")
            await until(lambda: parts.told == [("connected", "e")])
            old = parts.connections.clients["e"]
            parts.publish(second, "2")
            await until(lambda: old.is_lost and parts.connections.clients.get("e") not in (None, old))
            await until(lambda: not first.server._sessions.connections)
            assert parts.told == [
                ("connected", "e"),
                ("lost", "instance e was withdrawn"),
                ("connected", "e"),
            ]
            instance = parts.cluster.get("e")
            assert instance is not None and instance.state == "ready"
            await parts.close()

    run(scene)


def test_an_instance_that_goes_while_it_is_connected_to_leaves_no_connection() -> None:
    async def scene() -> None:
        async with served_engine() as engine:
            parts = Scene()
            for num_turns in range(60):
                parts.publish(engine, str(num_turns))
                for _ in range(num_turns):
                    await asyncio.sleep(0)
                parts.registry.withdraw("e")
                await until(lambda: not engine.server._sessions.connections)
            assert parts.connections.clients == {}
            assert any(what == "connected" for what, _ in parts.told), "none came so far"
            await parts.close()

    run(scene)


def test_why_an_instance_cannot_be_reached_is_logged_once(caplog) -> None:  # type: ignore[no-untyped-def]
    async def scene() -> None:
        async with served_engine() as engine:
            parts = Scene()
            parts.publish(engine, "1", address="127.0.0.1:1")
            await until(lambda: len(parts.told) >= 3)
            await parts.close()

    run(scene)
    assert len([line for line in caplog.messages if "cannot connect" in line]) == 1


def test_a_suspect_instance_that_is_heard_again_has_killed_nobody() -> None:
    async def scene() -> None:
        options = ServerOptions(heartbeat_s=0.05)
        async with (
            served_engine(options=options) as first,
            served_engine(options=options) as second,
            FaultProxy(first.address) as proxy,
            serving(replace(first, address=proxy.address)) as parts,
        ):
            for instance in parts.cluster:
                instance._patience = Patience(suspect_after_s=0.5, lost_after_s=30.0)
            parts.dispatch.choose = parts.service.choose
            first.runner.gate.clear()
            second.runner.gate.clear()
            sink = Sink()
            await parts.service.submit(make_request("r", 20), sink)
            parts.publish(second, "engine-1")
            proxy.hold("down")
            await until(lambda: parts.dispatch._live["r"].instance == "engine-1")
            assert parts.dispatch._live["r"].killers == ["engine-0"]
            proxy.heal()
            await until(lambda: parts.dispatch._live["r"].killers == [])
            second.runner.gate.set()
            await until(lambda: bool(sink.reasons))
            assert sink.tokens == list(range(3, 23)) and sink.reasons == ["length"]
            first.runner.gate.set()
            await until(lambda: first.core.num_unfinished == 0)

    run(scene)
