"""The step loop with two steps in flight, over real sockets and the real brain: the same scenes at depth 1 and 2."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from msgspec import structs

from tests.fakes.scenes import run
from tests.fakes.served_engine import make_request, served_engine, until
from tests.fakes.step_runner import FakeStepRunner
from xllm.engine.executor.faults import PlainFaults
from xllm.engine.executor.thread import ThreadExecutor
from xllm.engine.server.engine_server import EXIT_FAILED, EXIT_OK
from xllm.types.batch import Batch, BatchResult, StepMask
from xllm.types.request import Request

DEPTHS = pytest.mark.parametrize("depth", [1, 2])


class OpenAll(threading.Event):
    """What the end of a scene sets: nothing waits any more."""

    def __init__(self, tickets: threading.Semaphore) -> None:
        super().__init__()
        self._tickets = tickets

    def set(self) -> None:
        super().set()
        self._tickets.release(1000)


class GatedRunner(FakeStepRunner):
    """Lets single steps pass: ``allow`` counts them."""

    def __init__(self, *, failures: dict[int, Exception] | None = None) -> None:
        super().__init__(failures=failures)
        self.tickets = threading.Semaphore(0)
        self.gate = OpenAll(self.tickets)

    def allow(self, num_steps: int = 1) -> None:
        self.tickets.release(num_steps)

    def run(self, batch: Batch, take_mask: Callable[[], StepMask]) -> BatchResult:
        self.tickets.acquire(timeout=100)
        self.ran.append(batch.step)
        if batch.has_mask:
            self.masks.append(take_mask())
        if batch.step in self.failures:
            raise self.failures[batch.step]
        self.layers_done += 1
        tokens = tuple((row.start + row.num_new_tokens,) for row in batch.rows)
        return BatchResult(step=batch.step, status="ok", tokens=tokens)


class DeviceGone(PlainFaults):
    def is_device_lost(self, error: BaseException) -> bool:
        return True


def masked(name: str, **fields: object) -> Request:
    request = make_request(name, max_tokens=5)
    sampling = structs.replace(request.sampling, **{"bad_words_token_ids": ((9,), (3, 8)), **fields})
    return structs.replace(request, sampling=sampling)


@DEPTHS
def test_as_many_steps_are_in_flight_as_the_core_allows(depth: int) -> None:
    async def scene() -> None:
        runner = GatedRunner()
        async with served_engine(runner=runner, depth=depth) as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(make_request("a", max_tokens=4))
            await until(lambda: engine.core.num_inflight_steps == depth)
            waits = [row["reason"] for row in await client.debug_waits() if row["owner"] == "step loop"]
            assert waits == [f"step {step} of the executor" for step in range(1, depth + 1)]
            runner.allow()
            await until(lambda: inbox.tokens("a") == [3])
            await until(lambda: engine.core.num_inflight_steps == depth)
            runner.allow(10)
            await until(lambda: bool(inbox.terminal()))
            assert inbox.tokens("a") == [3, 4, 5, 6]
            assert engine.core.step == 4  # the last token is known to be the last: no step is wasted
            await client.close()
            engine.core.check()

    run(scene)


@DEPTHS
def test_the_step_after_a_stop_token_is_dropped_and_its_blocks_are_free(depth: int) -> None:
    async def scene() -> None:
        runner = GatedRunner()
        async with served_engine(runner=runner, depth=depth) as engine:
            client, inbox = await engine.connect("edge")
            request = make_request("a", max_tokens=9)
            sampling = structs.replace(request.sampling, stop_token_ids=(5,))
            await client.submit(structs.replace(request, sampling=sampling))
            runner.allow(3)
            await until(lambda: bool(inbox.terminal()))
            assert inbox.tokens("a") == [3, 4, 5]
            assert engine.core.num_inflight_steps == depth - 1
            load = engine.core.load()
            assert (load.blocks_used, load.num_wasted_tokens) == (0, depth - 1)
            rows = await client.debug_request("a")
            assert rows[-1]["wasted_tokens"] == depth - 1 == engine.core.num_wasted_tokens
            runner.allow(10)
            await until(lambda: engine.core.num_inflight_steps == 0)
            await client.submit(make_request("b", max_tokens=3))
            await until(lambda: ("b", 0) in inbox.terminal())
            assert (inbox.tokens("a"), inbox.tokens("b")) == ([3, 4, 5], [3, 4, 5])
            await client.close()
            engine.core.check()

    run(scene)


@DEPTHS
def test_a_mask_comes_when_the_tokens_before_it_are_known(depth: int) -> None:
    async def scene() -> None:
        runner = GatedRunner()
        async with served_engine(runner=runner, depth=depth) as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(masked("a"))
            await until(lambda: engine.core.num_inflight_steps == depth)
            runner.allow(20)
            await until(lambda: bool(inbox.terminal()))
            assert inbox.tokens("a") == [3, 4, 5, 6, 7]
            assert [mask.step for mask in runner.masks] == [1, 2, 3, 4, 5]
            forbids_8 = [not mask.bits[1] & 1 for mask in runner.masks]
            assert forbids_8 == [False, True, False, False, False]  # right after the 3, whose step ran before
            await client.close()

    run(scene)


@DEPTHS
def test_a_masked_row_that_ends_while_its_next_step_waits_for_the_mask(depth: int) -> None:
    async def scene() -> None:
        runner = GatedRunner()
        async with served_engine(runner=runner, depth=depth) as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(masked("a", stop_token_ids=(4,)))
            await client.submit(make_request("b", max_tokens=6))
            runner.allow(30)
            await until(lambda: len(inbox.terminal()) == 2)
            assert (inbox.tokens("a"), inbox.tokens("b")) == ([3, 4], [3, 4, 5, 6, 7, 8])
            await until(lambda: engine.core.num_inflight_steps == 0)
            await client.close()
            engine.core.check()

    run(scene)


def test_closing_does_not_wait_for_a_mask_that_will_not_come() -> None:
    async def scene() -> None:
        runner = FakeStepRunner()
        entered = threading.Event()

        class Waits(FakeStepRunner):
            def run(self, batch: Batch, take_mask: Callable[[], StepMask]) -> BatchResult:
                entered.set()
                take_mask()  # nobody sends one: the batch has no masked row
                raise AssertionError("a mask came from nowhere")

        runner = Waits()
        async with served_engine(runner=runner, depth=2) as engine:
            client, _ = await engine.connect("edge")
            await client.submit(make_request("a"))
            await until(entered.is_set)
            await asyncio.to_thread(engine.executor.close)
            assert engine.executor.step_in_flight is None
            await client.close()

    run(scene)


@DEPTHS
def test_a_failed_step_ends_its_requests_and_the_one_behind_it_is_taken_back(depth: int) -> None:
    async def scene() -> None:
        runner = GatedRunner(failures={2: ValueError("bad kernel")})
        async with served_engine(runner=runner, depth=depth) as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(make_request("a"))
            runner.allow()
            await until(lambda: inbox.tokens("a") == [3])
            await until(lambda: engine.core.num_inflight_steps == depth)
            await client.submit(make_request("b"))  # not in the broken step
            runner.allow(20)
            await until(lambda: len(inbox.terminal()) == 2)
            (end,) = inbox.terminal()["a", 0]
            assert end.error is not None and "bad kernel" in end.error.message
            assert inbox.tokens("b") == [3, 4, 5, 6]
            await client.close()
            engine.core.check()

    run(scene)


@DEPTHS
def test_a_lost_device_ends_everything_once(depth: int) -> None:
    async def scene() -> None:
        runner = GatedRunner(failures={3: ValueError("device gone")})
        async with served_engine(
            runner=runner, depth=depth, executor=lambda r: ThreadExecutor(r, faults=DeviceGone())
        ) as engine:
            client, inbox = await engine.connect("edge")
            for i in range(20):  # more than there are rows
                await client.submit(make_request(f"r{i}", max_tokens=9))
            runner.allow(50)
            await until(lambda: bool(inbox.lost))
            assert [len(ends) for ends in inbox.terminal().values()] == [1] * 20
            assert await engine.running == EXIT_FAILED

    run(scene)


@DEPTHS
def test_abort_deadline_and_drain_with_steps_in_flight(depth: int) -> None:
    async def scene() -> None:
        runner = GatedRunner()
        async with served_engine(runner=runner, depth=depth) as engine:
            client, inbox = await engine.connect("edge")
            await client.submit(make_request("aborted", max_tokens=9))
            await client.submit(make_request("late", max_tokens=9, deadline_in_s=5.0))
            await client.submit(make_request("fine", max_tokens=6))
            runner.allow(3)
            await until(lambda: bool(inbox.tokens("fine")))
            await until(lambda: engine.core.num_inflight_steps == depth)
            await client.abort("aborted")
            engine.clock.advance(6.0)
            engine.server.drain_and_end(30.0)
            runner.allow(50)
            assert await engine.running == EXIT_OK
            ends = {key: outputs[0].finish_reason for key, outputs in inbox.terminal().items()}
            assert ends.keys() == {("aborted", 0), ("late", 0), ("fine", 0)}
            assert (ends["aborted", 0], ends["fine", 0]) == ("abort", "length")
            assert inbox.tokens("fine") == [3, 4, 5, 6, 7, 8]
            engine.core.check()

    run(scene)
