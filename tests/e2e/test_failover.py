"""Failover with real processes and a real model: kill -9 and a freeze in the middle of streams, tokens compared."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from tests.fakes.backend import fake_text
from tests.fakes.served_engine import until
from xllm.api.backend import ServedModel
from xllm.base.clock import MonotonicClock
from xllm.base.trace import DecisionTrace
from xllm.base.waits import WaitTable
from xllm.config.load import load_arguments
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


@pytest.fixture(scope="module")
def engines(tiny_model_dir: Path) -> Iterator[list[EngineProcess]]:
    said = {
        "model": str(tiny_model_dir),
        "dtype": "float32",
        "device": "cpu",
        "num_threads": 1,
        "max_model_len": 256,
    }
    config = load_arguments(said).engine()
    started: list[EngineProcess] = []
    try:
        for _ in range(3):
            started.append(EngineProcess.start(config, sink=lambda line: None))
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
        await service.start(20.0)
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


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_streams_go_on_token_exact_when_an_engine_is(how: str, engines: list[EngineProcess]) -> None:
    async def scene() -> None:
        async with serving(engines) as (service, dispatch):
            calm = await streams(service, "calm")
            await until(lambda: len(dispatch) == 0)
            victims = [engine for engine in engines if engine.is_alive]

            def strike() -> None:  # with its first tokens; the others may be anywhere
                victim = int(dispatch._live["drawn-hit"].instance.removeprefix("engine-"))
                os.kill(victim, signal.SIGKILL if how == "killed" else signal.SIGSTOP)

            sinks = await streams(service, "hit", strike)
            await until(lambda: len(dispatch) == 0)
            assert dispatch.num_failovers >= 1, "nothing was moved"
            for got, expected in zip(all_streams(sinks), all_streams(calm), strict=True):
                assert got[0] == expected[0] and got[2] == expected[2] == ["length"]
                assert got[1] == pytest.approx(expected[1], abs=1e-4)
            assert len(victims) >= 2

    async def bounded() -> None:
        async with asyncio.timeout(90):
            await scene()

    asyncio.run(bounded())
