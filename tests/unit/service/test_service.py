"""Service over real engine servers (real brain, fake steps) on loopback sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import structs

from tests.fakes.backend import fake_text
from tests.fakes.scenes import run
from tests.fakes.served_engine import ServedEngine, make_request, served_engine, until
from xllm.api.backend import ServedModel
from xllm.base.clock import MonotonicClock
from xllm.base.trace import DecisionTrace
from xllm.base.waits import WaitTable
from xllm.config.api import ApiConfig
from xllm.engine.server.engine_server import ServerOptions
from xllm.errors import CapacityError, DeadlineExceeded, InstanceLost, InvalidRequest
from xllm.registry.memory import MemoryRegistry
from xllm.registry.registry import InstanceRecord
from xllm.service.cluster.cluster import Cluster
from xllm.service.cluster.instance import Patience
from xllm.service.dispatch.dispatch import Dispatch
from xllm.service.hold_queue import HoldLimits
from xllm.service.policy.round_robin import round_robin
from xllm.service.policy.score import Policy
from xllm.service.policy.session_affinity import session_affinity
from xllm.service.router import Router
from xllm.service.service import Service
from xllm.types.output import RequestOutput
from xllm.types.request import SessionRef

PATIENCE = Patience(suspect_after_s=60.0, lost_after_s=120.0)
"""Nobody is suspect because the machine stood still; scenes about silence have their own."""


class Sink:
    """Collects; ``room`` outputs fit."""

    def __init__(self, room: int = 10**9) -> None:
        self.outputs: list[RequestOutput] = []
        self.room = room

    def deliver(self, outputs: Any) -> bool:
        if len(self.outputs) >= self.room:
            return not self.outputs.extend(o for o in outputs if o.finish_reason) and False
        self.outputs += outputs
        return True

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def reasons(self) -> list[str]:
        return [output.finish_reason for output in self.outputs if output.finish_reason]


class Parts:
    """A service and what it was wired from."""

    def __init__(
        self, hold: HoldLimits | None = None, *, fails_over: bool = False, policy: Policy = round_robin
    ) -> None:
        clock = MonotonicClock()
        self.registry = MemoryRegistry()
        self.waits = WaitTable(clock)
        self.trace = trace = DecisionTrace(clock, capacity=1024)
        self.dispatch = Dispatch(clock, trace)
        self.cluster = Cluster(clock, stall_timeout_s=5.0, patience=PATIENCE)
        self.service = Service(
            text=fake_text(),
            cluster=self.cluster,
            router=Router(policy),
            dispatch=self.dispatch,
            registry=self.registry,
            clock=clock,
            waits=self.waits,
            trace=trace,
            fails_over=fails_over,
            hold=hold,
            build_model=self.build_model,
        )
        self.models: list[ServedModel] = []

    def build_model(self, cluster: Cluster) -> ServedModel:
        self.models.append(ServedModel(names=("m",), max_model_len=400, vocab_size=1000, block_size=4))
        return self.models[-1]

    def publish(self, engine: ServedEngine, name: str = "engine-0") -> None:
        info = structs.replace(engine.server.info(), id=name, address=engine.address)
        self.registry.publish(InstanceRecord(info=info))

    def check_empty(self) -> None:
        assert len(self.dispatch) == 0
        assert len(self.service._delivery) == 0 and len(self.service._holding) == 0
        assert self.service._gate.num_open == 0 and not self.service._groups
        assert not [wait for wait in self.waits.snapshot() if wait.owner.startswith("request")]


@asynccontextmanager
async def serving(
    *engines: ServedEngine, hold: HoldLimits | None = None, **options: Any
) -> AsyncIterator[Parts]:
    parts = Parts(hold, **options)
    for number, engine in enumerate(engines):
        parts.publish(engine, f"engine-{number}")
    before = len(asyncio.all_tasks())
    try:
        await parts.service.start(100.0)
        await until(lambda: len(parts.service._connections.clients) == len(engines))
        yield parts
    finally:
        await parts.service.close()
        parts.check_empty()
        assert len(parts.service._tasks) == 0
        await until(lambda: len(asyncio.all_tasks()) <= before)


def test_streams_are_exact_and_leave_nothing() -> None:
    async def scene() -> None:
        async with served_engine() as engine, serving(engine) as parts:
            sinks = {f"r{i}": Sink() for i in range(40)}
            await asyncio.gather(
                *(parts.service.submit(make_request(name, 20), sink) for name, sink in sinks.items())
            )
            await until(lambda: all(sink.reasons for sink in sinks.values()))
            for sink in sinks.values():
                assert sink.tokens == list(range(3, 23))
                assert sink.reasons == ["length"]
            parts.check_empty()
            assert parts.service.is_ready() and parts.service.health().is_healthy

    run(scene)


def test_two_instances_share_the_requests() -> None:
    async def scene() -> None:
        async with served_engine() as one, served_engine() as two, serving(one, two) as parts:
            sinks = [Sink() for _ in range(10)]
            for index, sink in enumerate(sinks):
                await parts.service.submit(make_request(f"r{index}"), sink)
            await until(lambda: all(sink.reasons for sink in sinks))
            assert [instance.num_routed for instance in parts.cluster] == [5, 5]
            found = {(sample.name, *sample.labels): sample.value for sample in parts.service.samples()}
            assert found["route_decisions", "turn"] == 10 and found["attempts_retried",] == 0
            assert found["instance_state", "engine-0", "ready"] == 1
            assert one.runner.ran and two.runner.ran

    run(scene)


def test_a_session_chooses_the_instance_and_engines_are_not_told() -> None:
    async def scene() -> None:
        async with contextlib.AsyncExitStack() as stack:
            engines = [await stack.enter_async_context(served_engine()) for _ in range(3)]
            parts = await stack.enter_async_context(
                serving(*engines, policy=session_affinity, fails_over=True)
            )
            homes: dict[str, set[str]] = {}
            for number in range(24):
                session, sink, name = f"s{number % 8}", Sink(), f"r{number}"
                await parts.service.submit(make_request(name, session=SessionRef(id=session)), sink)
                await until(lambda: sink.reasons == ["length"])  # noqa: B023
                homes.setdefault(session, set()).update(
                    row.fields["instance"] for row in parts.trace.for_request(name) if row.event == "scored"
                )
            assert all(len(home) == 1 for home in homes.values()), homes
            assert len(set.union(*homes.values())) > 1, homes

    run(scene)


def test_a_session_outlives_the_instance_it_was_on() -> None:
    async def scene() -> None:
        async with served_engine() as one, served_engine() as two:
            async with serving(one, two, policy=session_affinity, fails_over=True) as parts:
                for engine in (one, two):
                    engine.runner.gate.clear()
                sink = Sink()
                await parts.service.submit(make_request("r", session=SessionRef(id="s")), sink)
                home = parts.dispatch._live["r"].instance
                parts.registry.withdraw(home)
                for engine in (one, two):
                    engine.runner.gate.set()
                await until(lambda: sink.reasons == ["length"])
                assert sink.tokens == [3, 4, 5, 6]

    run(scene)


def test_refusals_of_the_engine_keep_their_type() -> None:
    async def scene() -> None:
        async with served_engine() as engine, serving(engine) as parts:
            with pytest.raises(InvalidRequest):
                await parts.service.submit(make_request("bad", prompt=(5000,)), Sink())
            engine.runner.gate.clear()
            sink = Sink()
            await parts.service.submit(make_request("r"), sink)
            with pytest.raises(InvalidRequest, match="in use"):
                await parts.service.submit(make_request("r"), Sink())
            with pytest.raises(CapacityError) as caught:
                for index in range(100):
                    await parts.service.submit(make_request(f"q{index}"), Sink())
            assert caught.value.status == 429
            engine.runner.gate.set()
            await until(lambda: len(parts.dispatch) == 0)
            assert sink.tokens == [3, 4, 5, 6]

    run(scene)


def test_abort_and_slow_readers_end_in_the_engine() -> None:
    async def scene() -> None:
        async with served_engine() as engine, serving(engine) as parts:
            slow, left = Sink(room=3), Sink()
            await parts.service.submit(make_request("slow", 300), slow)
            await parts.service.submit(make_request("left", 300), left)
            await until(lambda: bool(left.tokens))
            parts.service.abort("left")
            parts.service.abort("nobody")
            await until(lambda: engine.core.num_unfinished == 0)
            await until(lambda: len(parts.dispatch) == 0)
            assert left.reasons == ["abort"] and len(left.tokens) < 300
            assert slow.reasons == ["abort"]

    run(scene)


def test_an_engine_that_ends_fails_its_requests_and_new_ones_get_503() -> None:
    async def scene() -> None:
        async with served_engine() as engine, serving(engine) as parts:
            sink = Sink()
            engine.runner.gate.clear()
            await parts.service.submit(make_request("r", 300), sink)
            engine.runner.gate.set()
            await until(lambda: bool(sink.tokens))
            engine.server.end("it was told to")
            await until(lambda: bool(sink.reasons))
            assert sink.reasons == ["error"]
            assert sink.outputs[-1].error is not None and sink.outputs[-1].error.status == 503
            await until(lambda: not parts.service.is_ready())
            assert not parts.service.health().is_healthy
            with pytest.raises((CapacityError, InstanceLost)):
                await parts.service.submit(make_request("s"), Sink())

    run(scene)


def test_a_broken_connection_is_opened_again() -> None:
    async def scene() -> None:
        options = ServerOptions(grace_s=30.0, heartbeat_s=0.05)
        async with served_engine(options=options) as engine, serving(engine) as parts:
            engine.runner.gate.clear()
            sink = Sink()
            await parts.service.submit(make_request("r", 300), sink)
            old = parts.service._connections.clients["engine-0"]
            await old.close()
            await until(lambda: bool(sink.reasons))
            assert sink.reasons == ["error"]
            await until(lambda: parts.service._connections.clients.get("engine-0") not in (None, old))
            assert parts.service.is_ready()
            engine.runner.gate.set()
            # The engine still runs what nobody waits for: its outputs come to the new connection and are ended.
            await until(lambda: engine.core.num_unfinished == 0)
            again = Sink()
            await parts.service.submit(make_request("s"), again)
            await until(lambda: bool(again.reasons))
            assert again.tokens == [3, 4, 5, 6]

    run(scene)


def test_drain_finishes_then_fails_what_is_left() -> None:
    async def scene() -> None:
        async with served_engine() as engine, serving(engine) as parts:
            quick = Sink()
            await parts.service.submit(make_request("quick", 5), quick)
            await parts.service.drain(100.0)
            assert quick.reasons == ["length"]
            assert not parts.service.is_ready()
            with pytest.raises(CapacityError) as caught:
                await parts.service.submit(make_request("late"), Sink())
            assert caught.value.status == 503
        async with served_engine() as engine, serving(engine) as parts:
            engine.runner.gate.clear()
            stuck = Sink()
            await parts.service.submit(make_request("stuck", 5), stuck)
            await parts.service.drain(0.05)
            assert stuck.reasons == ["error"]
            engine.runner.gate.set()
            await until(lambda: engine.core.num_unfinished == 0)

    run(scene)


def test_a_caller_that_gives_up_while_submitting_leaves_nothing() -> None:
    async def scene() -> None:
        async with served_engine() as engine, serving(engine) as parts:
            sink = Sink()
            submitting = asyncio.ensure_future(parts.service.submit(make_request("r", 300), sink))
            await asyncio.sleep(0)
            submitting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submitting
            parts.service.abort("r")
            await until(lambda: len(parts.dispatch) == 0 and engine.core.num_unfinished == 0)

    run(scene)


def test_a_withdrawn_instance_is_forgotten() -> None:
    async def scene() -> None:
        async with served_engine() as engine, serving(engine) as parts:
            engine.runner.gate.clear()
            sink = Sink()
            await parts.service.submit(make_request("r", 50), sink)
            parts.registry.withdraw("engine-0")
            assert sink.reasons == ["error"]
            assert list(parts.cluster) == []
            with pytest.raises(CapacityError, match="none is known"):
                await parts.service.submit(make_request("s"), Sink())
            await until(lambda: parts.service._connections.clients == {})
            engine.runner.gate.set()

    run(scene)


def test_nobody_to_connect_to_is_said() -> None:
    async def scene() -> None:
        parts = Parts()
        with pytest.raises(InstanceLost, match="none is published"):
            await parts.service.start(0.05)
        await parts.service.close()

    run(scene)


HOLD = HoldLimits(max_waiting_per_instance=1, max_online=7, max_stranded_s=0.3)


def submit_all(parts: Parts, names: list[str], **fields: Any) -> dict[str, tuple[Sink, asyncio.Future[None]]]:
    sinks = {name: Sink() for name in names}
    return {
        name: (sink, asyncio.ensure_future(parts.service.submit(make_request(name, **fields), sink)))
        for name, sink in sinks.items()
    }


def test_what_an_instance_has_no_room_for_waits_in_the_service_and_goes_on_in_order() -> None:
    async def scene() -> None:
        async with served_engine(max_num_seqs=2) as engine, serving(engine, hold=HOLD) as parts:
            engine.runner.gate.clear()
            first = submit_all(parts, [f"a{i}" for i in range(3)], tenant="flood")
            await until(lambda: len(parts.dispatch) == 3)
            flood = submit_all(parts, [f"b{i}" for i in range(4)], tenant="flood")
            await until(lambda: len(parts.service._holding) == 4)
            small = submit_all(parts, ["small"], tenant="small")
            offline = submit_all(parts, ["offline"], offline=True)
            left = submit_all(parts, ["left"])
            await until(lambda: len(parts.service._holding) == 7)
            assert parts.service._gate.num_open == 10 and len(parts.dispatch) == 3
            waits = {wait.owner: wait.reason for wait in parts.waits.snapshot()}
            assert waits["request small"] == "an instance with room"
            with pytest.raises(InvalidRequest, match="in use"):
                await parts.service.submit(make_request("small"), Sink())
            parts.service.abort("left")
            with pytest.raises(CapacityError, match="while it waited"):
                await left["left"][1]
            submit_all(parts, ["c0", "c1"], tenant="flood")
            await until(lambda: len(parts.service._holding) == 8)
            with pytest.raises(CapacityError, match="7 online requests wait") as caught:
                await parts.service.submit(make_request("x", tenant="flood"), Sink())
            assert caught.value.status == 429
            engine.runner.gate.set()
            everybody = first | flood | small | offline
            await until(lambda: all(sink.reasons for sink, _ in everybody.values()))
            await until(lambda: len(parts.dispatch) == 0)
            order = [row.request_id for row in parts.trace.recent(1024) if row.event == "scored"]
            assert order.index("small") < order.index("b1") and order[-1] == "offline"
            found = {(sample.name, *sample.labels): sample.value for sample in parts.service.samples()}
            assert found["requests_held",] == 9 and found["num_requests_held", "online"] == 0
            assert found["route_decisions", "only"] == 11

    run(scene)


@pytest.mark.parametrize("offline", [False, True], ids=["online", "offline"])
def test_one_request_among_five_thousand_of_another_tenant_is_served(offline: bool) -> None:
    config = ApiConfig()
    hold = HoldLimits(
        max_waiting_per_instance=16,  # a real engine has room for the default of 64 in its queue
        max_online=config.max_held_online,
        max_offline=config.max_held_offline,
    )

    async def scene() -> None:
        async with served_engine(max_num_seqs=2) as engine, serving(engine, hold=hold) as parts:
            engine.runner.gate.clear()
            flood = submit_all(parts, [f"f{i}" for i in range(5000)], tenant="flood", offline=offline)
            await until(lambda: sum(future.done() for _, future in flood.values()) == 5000 - 2048)
            mine = submit_all(parts, ["mine"], tenant="other", offline=offline)
            await until(lambda: "mine" in parts.service._holding.queue)
            refused = [future for _, future in flood.values() if future.done() and future.exception()]
            engine.runner.gate.set()
            await until(lambda: mine["mine"][0].reasons == ["length"])
            assert all(isinstance(f.exception(), CapacityError) for f in refused)
            assert len(parts.service._holding) > 1500, "it did not wait for the flood"
            parts.service._holding.close(CapacityError("the test is over"))
            await until(lambda: len(parts.dispatch) == 0 and all(f.done() for _, f in flood.values()))
            await asyncio.gather(*(f for _, f in flood.values()), return_exceptions=True)

    run(scene)


def test_nobody_waits_for_instances_that_do_not_come_back() -> None:
    async def scene() -> None:
        async with served_engine(max_num_seqs=2) as engine, serving(engine, hold=HOLD) as parts:
            engine.runner.gate.clear()
            submit_all(parts, [f"a{i}" for i in range(3)])
            await until(lambda: len(parts.dispatch) == 3)
            held = submit_all(parts, ["late"], deadline_in_s=0.1) | submit_all(parts, ["held"])
            with pytest.raises(DeadlineExceeded):
                await held["late"][1]
            parts.registry.withdraw("engine-0")
            with pytest.raises(CapacityError) as caught:
                await held["held"][1]
            assert caught.value.status == 503
            engine.runner.gate.set()

    run(scene)


def test_who_waits_when_the_service_drains_is_told_to_go_elsewhere() -> None:
    async def scene() -> None:
        async with served_engine(max_num_seqs=2) as engine, serving(engine, hold=HOLD) as parts:
            engine.runner.gate.clear()
            running = submit_all(parts, [f"a{i}" for i in range(3)])
            await until(lambda: len(parts.dispatch) == 3)
            held = submit_all(parts, ["held", "gone"])
            await until(lambda: len(parts.service._holding) == 2)
            held["gone"][1].cancel()
            await until(lambda: len(parts.service._holding) == 1)
            draining = asyncio.ensure_future(parts.service.drain(100.0))
            with pytest.raises(CapacityError, match="shutting down"):
                await held["held"][1]
            engine.runner.gate.set()
            await draining
            assert all(sink.reasons == ["length"] for sink, _ in running.values())

    run(scene)


def test_before_an_engine_joins_the_service_is_there_but_not_ready() -> None:
    async def scene() -> None:
        parts = Parts()
        await parts.service.start(None)
        try:
            assert not parts.service.is_ready()
            health = parts.service.health()
            assert health.is_healthy and "no engine has joined" in health.message
            with pytest.raises(CapacityError, match="none is known") as caught:
                await parts.service.submit(make_request("r"), Sink())
            assert caught.value.status == 503
            joined = asyncio.ensure_future(parts.service.until_joined())
            async with served_engine() as engine:
                parts.publish(engine)
                await joined
                assert parts.service.is_ready()
                sink = Sink()
                await parts.service.submit(make_request("r"), sink)
                await until(lambda: bool(sink.reasons))
                assert sink.tokens == [3, 4, 5, 6]
        finally:
            await parts.service.close()

    run(scene)


def test_another_revision_takes_new_requests_and_the_old_one_finishes_its_own() -> None:
    async def scene() -> None:
        async with served_engine() as old, served_engine(revision="v2") as new, serving(old) as parts:
            old.runner.gate.clear()
            first = Sink()
            await parts.service.submit(make_request("first", 30), first)
            parts.models.clear()
            parts.publish(new, "new")
            await until(lambda: parts.cluster.group == ("fake", "v2"))
            assert parts.models, "the model is looked at again"
            second = Sink()
            await parts.service.submit(make_request("second"), second)
            await until(lambda: bool(second.reasons))
            assert new.runner.ran and second.reasons == ["length"] and not first.reasons
            old.runner.gate.set()
            await until(lambda: bool(first.reasons))
            assert first.tokens == list(range(3, 33))

    run(scene)


def test_only_who_has_not_begun_to_answer_may_change_its_revision() -> None:
    async def scene() -> None:
        async with served_engine() as old, served_engine(revision="v2") as new, serving(old) as parts:
            parts.dispatch.choose = parts.service.choose
            begun, waiting = Sink(), Sink()
            await parts.service.submit(make_request("begun", 300), begun)
            await until(lambda: bool(begun.tokens))
            old.runner.gate.clear()
            await parts.service.submit(make_request("waiting"), waiting)
            parts.publish(new, "new")
            await until(lambda: parts.cluster.group == ("fake", "v2"))
            parts.registry.withdraw("engine-0")
            await until(lambda: bool(waiting.reasons))
            assert waiting.tokens == [3, 4, 5, 6] and new.runner.ran
            assert parts.dispatch.num_parked == 1 and not begun.reasons, "it waits for its own revision"
            parts.publish(old, "engine-1")
            old.runner.gate.set()
            await until(lambda: bool(begun.reasons))
            assert begun.tokens == list(range(3, 303)) and begun.reasons == ["length"]

    run(scene)


def test_debug_rows_say_where_they_come_from() -> None:
    async def scene() -> None:
        async with served_engine() as engine, serving(engine) as parts:
            sink = Sink()
            await parts.service.submit(make_request("r"), sink)
            await until(lambda: bool(sink.reasons))
            rows = await parts.service.debug_request("r")
            assert {row["source"] for row in rows} == {"service", "engine-0"}
            assert [row["event"] for row in rows if row["source"] == "service"] == [
                "routed",
                "scored",
                "accepted",
                "ended",
            ]
            assert all("owner" in row for row in await parts.service.debug_waits())

    run(scene)
