from __future__ import annotations

import asyncio
import os
import signal

import pytest

from xllm.base.clock import ManualClock
from xllm.base.waits import WaitTable, format_process_state, format_waits, install_dump_signal
from xllm.errors import DeadlineExceeded


def test_a_wait_is_listed_exactly_while_it_lasts() -> None:
    clock = ManualClock()
    table = WaitTable(clock)
    with table.watch("dispatch r1", "first token", 10.0):
        clock.advance(4.0)
        (info,) = table.snapshot()
        assert (info.owner, info.reason, info.age_s, info.remaining_s) == (
            "dispatch r1",
            "first token",
            4.0,
            6.0,
        )
        assert not info.overdue
        clock.advance(7.0)
        assert table.snapshot()[0].overdue
    assert table.snapshot() == [] and len(table) == 0


def test_an_exception_ends_the_wait() -> None:
    table = WaitTable()
    with pytest.raises(KeyError), table.watch("a", "b", 1.0):
        raise KeyError
    assert len(table) == 0


def test_the_most_urgent_comes_first() -> None:
    table = WaitTable(ManualClock())
    with table.watch("slow", "x", 50.0), table.watch("urgent", "x", 1.0), table.watch("middle", "x", 9.0):
        assert [info.owner for info in table.snapshot()] == ["urgent", "middle", "slow"]


@pytest.mark.parametrize("timeout_s", [float("inf"), float("nan"), -1.0])
def test_a_wait_needs_a_finite_deadline(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="finite deadline"):
        WaitTable().watch("a", "b", timeout_s)


async def _never() -> None:
    await asyncio.Event().wait()


def test_bounded_ends_at_its_deadline_and_cancels() -> None:
    async def run() -> None:
        table = WaitTable()
        task = asyncio.ensure_future(_never())
        with pytest.raises(DeadlineExceeded, match=r"router waited 0\.01 s for an answer"):
            await table.bounded(task, owner="router", reason="an answer", timeout_s=0.01)
        assert task.cancelled() and len(table) == 0

    asyncio.run(run())


def test_bounded_gives_the_result_and_is_listed_meanwhile() -> None:
    async def run() -> None:
        table = WaitTable()
        seen = []

        async def answer() -> int:
            seen.extend(table.snapshot())
            return 7

        assert await table.bounded(answer(), owner="a", reason="b", timeout_s=60.0) == 7
        assert [info.reason for info in seen] == ["b"] and len(table) == 0

    asyncio.run(run())


def test_bounded_lets_foreign_timeouts_and_cancellation_through() -> None:
    async def run() -> None:
        table = WaitTable()

        async def slow_disk() -> None:
            raise TimeoutError("disk")

        with pytest.raises(TimeoutError, match="disk"):
            await table.bounded(slow_disk(), owner="a", reason="b", timeout_s=60.0)
        task = asyncio.ensure_future(table.bounded(_never(), owner="a", reason="b", timeout_s=60.0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(table) == 0

    asyncio.run(run())


def test_process_state_shows_waits_and_stacks() -> None:
    table = WaitTable(ManualClock())
    with table.watch("engine", "a batch", 3.0):
        text = format_process_state(table)
    assert "engine: a batch (for 0.0 s, 3.0 s left)" in text
    assert "test_process_state_shows_waits_and_stacks" in text
    assert format_waits([]) == "no waits"


@pytest.mark.parametrize("has_loop", [True, False])
def test_sigusr1_writes_the_state(has_loop: bool) -> None:
    table = WaitTable(ManualClock())
    written: list[str] = []
    before = signal.getsignal(signal.SIGUSR1)

    async def run() -> None:
        loop = asyncio.get_running_loop() if has_loop else None
        install_dump_signal(table, write=written.append, loop=loop)
        with table.watch("edge", "a socket", 3.0):
            os.kill(os.getpid(), signal.SIGUSR1)
            async with asyncio.timeout(100):
                while not written:
                    await asyncio.sleep(0.001)

    try:
        asyncio.run(run())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert "edge: a socket" in written[0]
    assert ("1 asyncio tasks" in written[0]) == has_loop
