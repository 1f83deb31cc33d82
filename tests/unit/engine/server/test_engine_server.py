"""EngineServer over real sockets, with the real brain and a runner that can hang or fail."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.scenes import run
from tests.fakes.served_engine import make_request, served_engine, until
from tests.fakes.step_runner import FakeStepRunner
from xllm.engine.executor.faults import PlainFaults
from xllm.engine.executor.thread import ThreadExecutor
from xllm.engine.server.engine_server import EXIT_FAILED, EXIT_OK, ServerOptions
from xllm.errors import CapacityError, InstanceLost, InvalidRequest, Unsupported
from xllm.types.batch import Batch
from xllm.types.wire import MIGRATED


class DeviceGone(PlainFaults):
    def is_device_lost(self, error: BaseException) -> bool:
        return True


def test_a_request_streams_and_ends_exactly_once() -> None:
    async def scene() -> None:
        async with served_engine() as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(make_request("a", max_tokens=5))
            await until(lambda: bool(inbox.terminal()))
            assert inbox.tokens("a") == [3, 4, 5, 6, 7]
            (terminal,) = inbox.terminal()["a", 0]
            assert terminal.finish_reason == "length"
            assert [output.first_token_index for output in inbox.outputs] == [0, 1, 2, 3, 4]
            info = await client.info()
            assert (info.id, info.state, info.address) == ("engine-0", "ready", engine.address)
            await client.close()
            engine.core.check()

    run(scene)


def test_one_frame_per_step_holds_all_outputs_of_the_connection() -> None:
    async def scene() -> None:
        runner = FakeStepRunner()
        runner.gate.clear()
        async with served_engine(runner=runner) as engine:
            client, inbox = await engine.connect("edge")
            await asyncio.gather(*(client.submit(make_request(f"r{i}", max_tokens=3)) for i in range(10)))
            runner.gate.set()
            await until(lambda: len(inbox.terminal()) == 10)
            steps = [frame.step for frame in inbox.frames]
            assert steps == sorted(set(steps))
            assert max(len(frame.outputs) for frame in inbox.frames) == 10
            await client.close()

    run(scene)


def test_two_connections_each_get_only_their_own_outputs() -> None:
    async def scene() -> None:
        runner = FakeStepRunner()
        runner.gate.clear()
        async with served_engine(runner=runner) as engine:
            one, inbox_one = await engine.connect("edge-1")
            two, inbox_two = await engine.connect("edge-2")
            for i in range(6):
                await (one if i % 2 else two).submit(make_request(f"r{i}", n=2))
            runner.gate.set()
            await until(lambda: len(inbox_one.terminal()) + len(inbox_two.terminal()) == 12)
            assert inbox_one.ids == {"r1", "r3", "r5"}
            assert inbox_two.ids == {"r0", "r2", "r4"}
            # both were served by the same steps
            assert {f.step for f in inbox_one.frames} & {f.step for f in inbox_two.frames}
            await one.close()
            await two.close()

    run(scene)


def test_refusals_are_typed_and_leave_nothing_behind() -> None:
    async def scene() -> None:
        async with served_engine() as engine:
            client, inbox = await engine.connect("edge")
            with pytest.raises(InvalidRequest):
                await client.submit(make_request("bad", prompt=(5000,)))
            with pytest.raises(Unsupported):
                await client.start_profile()
            await client.submit(make_request("a"))
            await until(lambda: bool(inbox.terminal()))
            assert inbox.ids == {"a"}
            await client.close()

    run(scene)


def test_abort_ends_a_request_of_a_hanging_engine() -> None:
    async def scene() -> None:
        runner = FakeStepRunner()
        runner.gate.clear()
        async with served_engine(runner=runner) as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(make_request("a", n=2))
            await client.submit(make_request("b"))
            await client.abort("a")
            await client.abort("nobody")
            assert {key: [o.finish_reason for o in outs] for key, outs in inbox.terminal().items()} == {
                ("a", 0): ["abort"],
                ("a", 1): ["abort"],
            }
            runner.gate.set()
            await until(lambda: ("b", 0) in inbox.terminal())
            assert len(inbox.terminal()["a", 0]) == 1
            await client.close()

    run(scene)


def test_a_forward_that_hangs_shows_in_health_and_waits_while_calls_are_answered() -> None:
    async def scene() -> None:
        runner = FakeStepRunner()
        async with served_engine(runner=runner) as engine:
            client, inbox = await engine.connect("edge")
            assert (await client.health()).idle_s == 0
            runner.gate.clear()
            await client.submit(make_request("a", max_tokens=50))
            await until(lambda: engine.executor.step_in_flight is not None)
            before = await client.health()
            engine.clock.advance(7.0)
            hung = await client.health()
            assert (hung.state, hung.num_unfinished) == ("ready", 1)
            assert hung.idle_s == before.idle_s + 7.0
            assert hung.step == before.step
            assert (await client.load()).health.idle_s >= 7.0
            (wait,) = [row for row in await client.debug_waits() if row["owner"] == "step loop"]
            assert wait["reason"] == f"step {hung.step} of the executor"
            runner.layers_done += 1  # a long forward that advances is alive
            assert (await client.health()).idle_s == 0
            engine.clock.advance(7.0)
            runner.gate.set()
            await until(lambda: ("a", 0) in inbox.terminal())
            assert (await client.health()).idle_s == 0
            assert await client.debug_waits() == []
            await client.close()

    run(scene)


def test_an_engine_without_progress_gives_itself_up() -> None:
    async def scene() -> None:
        runner = FakeStepRunner()
        runner.gate.clear()
        options = ServerOptions(heartbeat_s=0.01, max_stall_s=60.0, close_timeout_s=0.05)
        async with served_engine(runner=runner, options=options) as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(make_request("a"))
            assert (await client.health()).idle_s == 0  # it has seen the step begin
            engine.clock.advance(59.0)
            num_beats = len(inbox.beats)
            await until(lambda: len(inbox.beats) > num_beats + 1)
            assert not inbox.terminal()
            engine.clock.advance(2.0)
            await until(lambda: bool(inbox.lost))
            (terminal,) = inbox.terminal()["a", 0]
            assert terminal.error is not None
            assert (terminal.error.type_name, terminal.error.retryable) == ("InstanceLost", True)
            assert await engine.running == EXIT_FAILED

    run(scene)


def test_heartbeats_come_unasked() -> None:
    async def scene() -> None:
        async with served_engine(options=ServerOptions(heartbeat_s=0.01)) as engine:
            client, inbox = await engine.connect("edge")
            await until(lambda: len(inbox.beats) > 3)
            assert inbox.beats[-1].health.state == "ready"
            assert inbox.beats[-1].load.blocks_total == 200
            await client.close()

    run(scene)


def test_a_failed_step_fails_its_requests_only() -> None:
    async def scene() -> None:
        runner = FakeStepRunner(failures={2: ValueError("bad kernel")})
        async with served_engine(runner=runner) as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(make_request("a"))
            await until(lambda: ("a", 0) in inbox.terminal())
            (terminal,) = inbox.terminal()["a", 0]
            assert terminal.finish_reason == "error"
            assert terminal.error is not None
            assert "bad kernel" in terminal.error.message
            await client.submit(make_request("b"))
            await until(lambda: ("b", 0) in inbox.terminal())
            assert inbox.terminal()["b", 0][0].finish_reason == "length"
            assert (await client.health()).state == "ready"
            await client.close()
            engine.core.check()

    run(scene)


def test_a_lost_device_ends_every_request_and_the_process() -> None:
    async def scene() -> None:
        runner = FakeStepRunner(failures={1: ValueError("device gone")})
        runner.gate.clear()
        async with served_engine(
            runner=runner, executor=lambda r: ThreadExecutor(r, faults=DeviceGone())
        ) as engine:
            one, inbox_one = await engine.connect("edge-1")
            two, inbox_two = await engine.connect("edge-2")
            await one.submit(make_request("a", n=3))
            for i in range(20):
                await two.submit(make_request(f"r{i}"))
            runner.gate.set()
            await until(lambda: bool(inbox_one.lost and inbox_two.lost))
            ends = {**inbox_one.terminal(), **inbox_two.terminal()}
            assert len(ends) == 23
            assert all(len(outputs) == 1 and outputs[0].finish_reason == "error" for outputs in ends.values())
            assert inbox_two.beats[-1].health.state == "dead"
            assert await engine.running == EXIT_FAILED

    run(scene)


def test_a_core_that_breaks_still_ends_every_request() -> None:
    async def scene() -> None:
        class Liar(FakeStepRunner):
            def run(self, batch: Batch, take_mask: object) -> object:  # type: ignore[override]
                result = super().run(batch, take_mask)  # type: ignore[arg-type]
                return type(result)(step=result.step + 7, status="ok")  # no such step: the core raises

        async with served_engine(runner=Liar()) as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(make_request("a", n=2))
            await until(lambda: bool(inbox.lost))
            assert [len(outputs) for outputs in inbox.terminal().values()] == [1, 1]
            assert await engine.running == EXIT_FAILED

    run(scene)


def test_drain_refuses_new_requests_finishes_the_old_and_aborts_what_is_late() -> None:
    async def scene() -> None:
        runner = FakeStepRunner()
        runner.gate.clear()
        async with served_engine(runner=runner) as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(make_request("quick"))
            await client.drain(30.0)
            with pytest.raises(CapacityError) as refused:
                await client.submit(make_request("late"))
            assert refused.value.status == 503
            assert (await client.health()).state == "draining"
            assert "drain" in [row["owner"] for row in await client.debug_waits()]
            runner.gate.set()
            await until(lambda: ("quick", 0) in inbox.terminal())
            assert inbox.terminal()["quick", 0][0].finish_reason == "length"
            assert not engine.running.done()  # drained, but nobody told it to end
            await client.close()
        runner = FakeStepRunner()
        runner.gate.clear()
        async with served_engine(runner=runner, options=ServerOptions(close_timeout_s=0.05)) as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(make_request("slow"))
            engine.server.drain_and_end(0.01)
            await until(lambda: bool(inbox.lost))
            (terminal,) = inbox.terminal()["slow", 0]
            assert terminal.error is not None
            assert terminal.error.retryable
            assert await engine.running == EXIT_OK

    run(scene)


def test_a_draining_engine_says_when_it_hands_over_and_counts_what_was_taken_away() -> None:
    async def scene() -> None:
        runner = FakeStepRunner()
        runner.gate.clear()
        async with served_engine(runner=runner) as engine:
            client, inbox = await engine.connect("edge")
            for name in ("goes on elsewhere", "left by its client"):
                await client.submit(make_request(name, 300))
            for seconds in (-1.0, float("nan"), 1e9):
                with pytest.raises(InvalidRequest, match="migrate_after_s"):
                    await client.drain(30.0, seconds)
            assert (await client.health()).state == "ready"
            for after_s, hands_over in ((60.0, False), (None, False), (0.0, True)):
                await client.drain(30.0, after_s)
                assert (await client.health()).hands_over == hands_over
            await client.abort("goes on elsewhere", reason=MIGRATED)
            await client.abort("left by its client")
            assert (await client.health()).num_migrated == 1
            runner.gate.set()
            await until(lambda: len(inbox.terminal()) == 2)
            await client.close()

    run(scene)


def test_shutdown_is_answered_then_ends_the_engine() -> None:
    async def scene() -> None:
        async with served_engine() as engine:
            client, inbox = await engine.connect("edge")
            await client.shutdown()
            await until(lambda: bool(inbox.lost))
            assert isinstance(inbox.lost[0], InstanceLost)
            assert await engine.running == EXIT_OK

    run(scene)


def test_kv_events_begin_with_a_snapshot_and_are_numbered_without_gaps() -> None:
    async def scene() -> None:
        async with served_engine() as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(make_request("a", prompt=tuple(range(40))))
            await until(lambda: ("a", 0) in inbox.terminal())
            assert inbox.kv_events == []
            await client.subscribe_kv_events()
            (snapshot,) = inbox.kv_events
            assert snapshot.is_snapshot
            stored = {h for event in snapshot.batch.events for h in event.hashes}
            assert len(stored) == len(engine.core.kv_snapshot()[0].hashes) or len(stored) >= 10
            await client.submit(make_request("b", prompt=tuple(range(100, 140))))
            await until(lambda: ("b", 0) in inbox.terminal())
            await client.reset_prefix_cache()
            later = inbox.kv_events[1:]
            assert {event.kind for batch in later for event in batch.batch.events} == {"stored", "cleared"}
            numbers = [event.batch.sequence for event in inbox.kv_events]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            await client.close()

    run(scene)


def test_debug_request_tells_what_was_decided() -> None:
    async def scene() -> None:
        async with served_engine() as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(make_request("a"))
            await until(lambda: bool(inbox.terminal()))
            events = [row["event"] for row in await client.debug_request("a")]
            assert events[0] == "queued"
            assert events[-1] == "finished"
            assert await client.debug_request("nobody") == []
            await client.close()

    run(scene)


def test_a_deadline_ends_a_waiting_request() -> None:
    async def scene() -> None:
        runner = FakeStepRunner()
        runner.gate.clear()
        async with served_engine(runner=runner) as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(make_request("a", deadline_in_s=0.01))
            engine.clock.advance(1.0)
            await until(lambda: bool(inbox.terminal()))
            assert inbox.terminal()["a", 0][0].finish_reason == "deadline"
            await client.close()

    run(scene)
