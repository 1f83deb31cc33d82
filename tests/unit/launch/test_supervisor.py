"""The supervisor over engine processes that are only pretended: starts, deaths, departures, failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.fakes.scenes import run
from xllm.errors import ModelError
from xllm.launch.engine_process import EngineProcess
from xllm.launch.supervisor import Backoff, Supervisor
from xllm.types.instance import InstanceInfo


class FakeProcess:
    def __init__(self, name: str) -> None:
        self.info = InstanceInfo(id=name, incarnation="i", address="a", model="m")
        self.returncode: int | None = None
        self.is_closed = False

    @property
    def is_alive(self) -> bool:
        return self.returncode is None

    def close(self) -> None:
        self.is_closed = True
        if self.returncode is None:
            self.returncode = 0


class Slots:
    """Counts what is started; ``fail_next`` starts fail."""

    def __init__(self, num: int) -> None:
        self.started: list[list[FakeProcess]] = [[] for _ in range(num)]
        self.num_to_fail = 0
        self.ended: list[str] = []
        self._lock = threading.Lock()

    def start(self, slot: int) -> EngineProcess:
        with self._lock:
            if self.num_to_fail:
                self.num_to_fail -= 1
                raise ModelError("no such model")
            process = FakeProcess(f"engine-{slot}")
            self.started[slot].append(process)
            return cast(EngineProcess, process)

    async def note(self, process: Any) -> None:
        self.ended.append(process.info.id)

    def supervisor(self) -> Supervisor:
        return Supervisor(
            [lambda slot=slot: self.start(slot) for slot in range(len(self.started))],  # type: ignore[misc]
            on_ended=self.note,
            backoff=lambda: Backoff(first_s=0.01, longest_s=0.05),
        )


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def test_pauses_grow_to_a_bound_and_are_short_again_after_a_good_life() -> None:
    backoff = Backoff(first_s=1.0, longest_s=5.0, good_s=60.0)
    assert [backoff.next_pause_s(0.0) for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert backoff.next_pause_s(59.0) == 5.0
    assert backoff.next_pause_s(61.0) == 1.0


def test_the_dead_are_started_again_and_those_who_left_are_not() -> None:
    async def scene() -> None:
        slots = Slots(3)
        supervisor = slots.supervisor()
        await supervisor.start()
        slots.started[1][0].returncode = -9
        slots.started[2][0].returncode = 0
        await until(lambda: len(slots.started[1]) == 2 and len(slots.ended) == 2)
        assert slots.started[1][0].is_closed
        slots.num_to_fail = 2
        slots.started[1][1].returncode = 1
        await until(lambda: len(slots.started[1]) == 3)
        assert [len(found) for found in slots.started] == [1, 3, 1]
        assert sorted(p.info.id for p in supervisor.processes) == ["engine-0", "engine-1"]
        await supervisor.close()
        assert all(p.is_closed for found in slots.started for p in found)

    run(scene)


def test_an_engine_that_runs_already_is_adopted_and_its_successors_are_told() -> None:
    async def scene() -> None:
        slots = Slots(1)
        told: list[Any] = []
        supervisor = Supervisor(
            [lambda: slots.start(0)],
            on_ended=slots.note,
            on_started_again=told.append,
            backoff=lambda: Backoff(first_s=0.01, longest_s=0.05),
        )
        first = slots.start(0)
        supervisor.adopt([first])
        assert supervisor.processes == [first]
        slots.num_to_fail = 2
        slots.started[0][0].returncode = -9
        await until(lambda: bool(told))
        assert told == slots.started[0][1:] and slots.ended == ["engine-0"]
        await supervisor.close()
        assert all(p.is_closed for p in slots.started[0])

    run(scene)


def test_when_one_cannot_start_none_is_left() -> None:
    async def scene() -> None:
        slots = Slots(3)
        slots.num_to_fail = 1
        with pytest.raises(ModelError):
            await slots.supervisor().start()
        await until(lambda: all(p.is_closed for found in slots.started for p in found))

    run(scene)
