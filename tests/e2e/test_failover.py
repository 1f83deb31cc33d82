"""Failover with real processes and a real model: kill -9 and a freeze in the middle of streams, tokens and
log-probabilities compared."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec import structs

from tests.chaos.requests import REAL_TOLERANCE, Case, StreamBooks, build_pool, difference
from tests.cluster.test_drain import metric
from tests.cluster.test_local_cluster import Cluster as LocalCluster
from tests.fakes.backend import fake_text
from tests.fakes.command import Command
from tests.fakes.served_engine import until
from xllm.api.backend import ServedModel
from xllm.base.clock import MonotonicClock
from xllm.base.trace import DecisionTrace
from xllm.base.waits import WaitTable
from xllm.config.load import load_arguments
from xllm.config.serve import EngineConfig
from xllm.launch.engine_process import EngineProcess
from xllm.registry.memory import MemoryRegistry
from xllm.registry.registry import InstanceRecord
from xllm.service.cluster.cluster import Cluster
from xllm.service.dispatch.dispatch import Dispatch
from xllm.service.policy.round_robin import round_robin
from xllm.service.router import Router
from xllm.service.service import Service
from xllm.types.output import RequestOutput
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams

PROMPT = tuple(range(20, 60))
NUM_TOKENS = 150
NUM_TRIES = 5
"""A reader that was starved may get its first tokens when all have been made: then there is nothing to move."""


class Sink:
    def __init__(self) -> None:
        self.outputs: list[RequestOutput] = []
        self.on_first: Callable[[], None] = lambda: None

    def deliver(self, outputs: Any) -> bool:
        if not self.outputs:
            self.on_first()
        self.outputs += outputs
        return True

    def stream(self, choice: int) -> tuple[list[int], list[float], list[str]]:
        """Tokens, log-probabilities and ends of a choice."""
        mine = [o for o in self.outputs if o.choice == choice]
        indices = [o.first_token_index + i for o in mine for i in range(len(o.token_ids))]
        assert indices == list(range(len(indices)))
        logprobs = [p.token.logprob for o in mine for p in o.logprobs or ()]
        ends = [o.finish_reason for o in mine if o.finish_reason]
        return [t for o in mine for t in o.token_ids], logprobs, [str(end) for end in ends]


def requests(suffix: str) -> list[Request]:
    greedy = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, logprobs=0, ignore_eos=True)
    drawn = SamplingParams(
        max_tokens=NUM_TOKENS, n=2, temperature=1.0, frequency_penalty=0.5, ignore_eos=True
    )
    return [
        Request(id=f"greedy-{suffix}", prompt_token_ids=PROMPT, seed=1, sampling=greedy),
        Request(id=f"drawn-{suffix}", prompt_token_ids=PROMPT[5:], seed=77, sampling=drawn),
        Request(id=f"other-{suffix}", prompt_token_ids=PROMPT[9:], seed=3, sampling=greedy),
    ]


class Engines(list[EngineProcess]):
    def __init__(self, config: EngineConfig) -> None:
        self._config = config

    def fill(self, count: int) -> None:
        """So many run; whoever was frozen goes on."""
        for engine in self:
            if engine.is_alive:
                os.kill(engine.pid, signal.SIGCONT)
        while sum(engine.is_alive for engine in self) < count:
            self.append(EngineProcess.start(self._config, sink=lambda line: None))


@pytest.fixture(scope="module")
def engines(tiny_model_dir: Path) -> Iterator[Engines]:
    said = {
        "model": str(tiny_model_dir),
        "dtype": "float32",
        "device": "cpu",
        "num_threads": 1,
        "max_model_len": 256,
    }
    started = Engines(load_arguments(said).engine())
    try:
        started.fill(3)
        yield started
    finally:
        for engine in started:
            if engine.is_alive:
                os.kill(engine.pid, signal.SIGCONT)
            engine.close()


@asynccontextmanager
async def serving(engines: list[EngineProcess]) -> AsyncIterator[tuple[Service, Dispatch]]:
    clock, registry = MonotonicClock(), MemoryRegistry()
    dispatch = Dispatch(clock, trace := DecisionTrace(clock, capacity=1024))
    service = Service(
        text=fake_text(),
        cluster=Cluster(clock, stall_timeout_s=5.0),
        router=Router(round_robin),
        dispatch=dispatch,
        registry=registry,
        clock=clock,
        waits=WaitTable(clock),
        trace=trace,
        build_model=lambda cluster: ServedModel(
            names=("m",), max_model_len=256, vocab_size=400, block_size=16
        ),
    )
    alive = [engine for engine in engines if engine.is_alive]
    for engine in alive:
        name = f"engine-{engine.pid}"
        registry.publish(InstanceRecord(info=structs.replace(engine.info, id=name), token=engine.token))
    try:
        await service.start(100.0)
        await until(lambda: len(service._connections.clients) == len(alive))
        yield service, dispatch
    finally:
        await service.close()


async def streams(
    service: Service, suffix: str, on_first_drawn: Callable[[], None] = lambda: None
) -> list[Sink]:
    sinks = [Sink() for _ in requests(suffix)]
    sinks[1].on_first = on_first_drawn
    for request, sink in zip(requests(suffix), sinks, strict=True):
        await service.submit(request, sink)
    return sinks


def all_streams(sinks: list[Sink]) -> list[Any]:
    return [sinks[0].stream(0), sinks[1].stream(0), sinks[1].stream(1), sinks[2].stream(0)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_streams_go_on_token_exact_when_an_engine_is(how: str, engines: Engines) -> None:
    async def scene() -> bool:
        async with serving(engines) as (service, dispatch):
            calm = await streams(service, "calm")
            await until(lambda: len(dispatch) == 0)
            victims = [engine for engine in engines if engine.is_alive]

            def strike() -> None:  # with its first tokens; the others may be anywhere
                victim = int(dispatch._live["drawn-hit"].instance.removeprefix("engine-"))
                os.kill(victim, signal.SIGKILL if how == "killed" else signal.SIGSTOP)

            sinks = await streams(service, "hit", strike)
            await until(lambda: len(dispatch) == 0)
            for got, expected in zip(all_streams(sinks), all_streams(calm), strict=True):
                assert got[0] == expected[0] and got[2] == expected[2] == ["length"]
                assert got[1] == pytest.approx(expected[1], abs=1e-4)
            assert len(victims) >= 2
            return dispatch.num_failovers >= 1

    async def bounded() -> bool:
        async with asyncio.timeout(240):
            return await scene()

    for _ in range(NUM_TRIES):
        engines.fill(2)
        if asyncio.run(bounded()):
            return
    raise AssertionError("nothing was moved")


REAL = ("--dtype", "float32", "--device", "cpu", "--num-threads", "1", "--batch-invariant", "--port", "0")


async def read_stream(
    session: aiohttp.ClientSession, url: str, case: Case, on_event: Callable[[int], None]
) -> StreamBooks:
    """A stream to its end; ``on_event`` gets the number of every event."""
    books = StreamBooks(len(case.expected.choices))
    body = {**case.body, "stream": True, "stream_options": {"include_usage": True}}
    num_events = 0
    async with session.post(f"{url}/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data: [DONE]"):
                books.is_done = True
            elif line.startswith(b"data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                books.take(event)
                on_event(num_events := num_events + 1)
    return books


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_choices_logprobs_stops_and_penalties_at_once_go_on_when_an_engine_is_killed() -> None:
    def engine_pid(cluster: LocalCluster) -> int | None:
        found = cluster.instances().get("engine-0")
        return found["pid"] if found is not None and found["state"] == "ready" else None

    async def one_try(
        session: aiohttp.ClientSession, cluster: LocalCluster, pool: list[Case]
    ) -> list[StreamBooks]:
        victim = await asyncio.to_thread(engine_pid, cluster)

        def strike(num_events: int) -> None:
            nonlocal victim
            if num_events >= 4 and victim is not None:
                os.kill(victim, signal.SIGKILL)
                victim = None

        return await asyncio.gather(*(read_stream(session, cluster.url, case, strike) for case in pool))

    async def scene(cluster: LocalCluster) -> list[tuple[Case, StreamBooks]]:
        found: list[tuple[Case, StreamBooks]] = []
        async with asyncio.timeout(800), aiohttp.ClientSession() as session:
            pool = await build_pool(
                session, cluster.url, 7, count=8, max_tokens=240, tolerance=REAL_TOLERANCE, kinds=("mixed",)
            )  # fmt: skip
            for _ in range(NUM_TRIES):
                found += zip(pool, await one_try(session, cluster, pool), strict=True)
                if await asyncio.to_thread(metric, cluster, "attempts_retried_total") >= 1:
                    return found
                while await asyncio.to_thread(engine_pid, cluster) is None:
                    await asyncio.sleep(0.1)
        raise AssertionError("nothing was moved")

    with Command("serve", "demo", "--instances", "2", *REAL, "--registry", "tcp://127.0.0.1:0") as command:
        found = asyncio.run(scene(LocalCluster(command)))
        assert command.end() == 0
    for case, books in found:
        assert books.is_done and not books.after_the_end
        assert difference(case, books.answer) is None
        assert all(len(choice.logprobs) == len(choice.token_ids) for choice in books.answer.choices)
    choices = [choice for _, books in found for choice in books.answer.choices]
    assert {choice.finish_reason for choice in choices} == {"stop", "length"}
    assert all(len(position.top) >= 2 for choice in choices for position in choice.logprobs)
