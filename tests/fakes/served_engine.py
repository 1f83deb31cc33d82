"""ServedEngine: an EngineServer with the real brain and a fake step runner, and clients that collect outputs."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.step_runner import FakeStepRunner
from xllm.base.clock import ManualClock
from xllm.base.waits import WaitTable
from xllm.engine.brain import build_brain
from xllm.engine.core.engine_core import EngineCore
from xllm.engine.executor.thread import ThreadExecutor
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.engine.server.engine_server import EngineServer, ServerOptions
from xllm.errors import InstanceLost
from xllm.perf.time_model import TimeModel
from xllm.rpc.client import EngineClient
from xllm.types.instance import InstanceInfo
from xllm.types.kv_layout import build_attention_layout
from xllm.types.output import OutputFrame, RequestOutput
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams
from xllm.types.wire import KvEvents, LoadReply

WAIT_S = 100.0


async def until(true: Callable[[], bool]) -> None:
    """Wait for a fact; a test that waits for one that never comes fails after a generous time."""
    async with asyncio.timeout(WAIT_S):
        while not true():
            await asyncio.sleep(0.002)


def make_request(
    name: str, max_tokens: int = 4, prompt: tuple[int, ...] = (1, 2, 3), **fields: Any
) -> Request:
    n = fields.pop("n", 1)
    sampling = SamplingParams(max_tokens=max_tokens, n=n, temperature=0.0)
    return Request(id=name, prompt_token_ids=prompt, seed=1, sampling=sampling, **fields)


@dataclass
class Inbox:
    """Everything one client received."""

    frames: list[OutputFrame] = field(default_factory=list)
    beats: list[LoadReply] = field(default_factory=list)
    kv_events: list[KvEvents] = field(default_factory=list)
    lost: list[InstanceLost] = field(default_factory=list)

    @property
    def outputs(self) -> list[RequestOutput]:
        return [output for frame in self.frames for output in frame.outputs]

    @property
    def ids(self) -> set[str]:
        return {output.request_id for output in self.outputs}

    def terminal(self) -> dict[tuple[str, int], list[RequestOutput]]:
        """Terminal outputs by (request, choice)."""
        found: dict[tuple[str, int], list[RequestOutput]] = defaultdict(list)
        for output in self.outputs:
            if output.finish_reason is not None:
                found[output.request_id, output.choice].append(output)
        return found

    def tokens(self, name: str, choice: int = 0) -> list[int]:
        mine = [o for o in self.outputs if (o.request_id, o.choice) == (name, choice)]
        return [token for output in mine for token in output.token_ids]


@dataclass
class ServedEngine:
    server: EngineServer
    core: EngineCore
    runner: FakeStepRunner
    executor: ThreadExecutor
    clock: ManualClock
    waits: WaitTable
    address: str
    running: asyncio.Task[int]

    async def connect(self, peer: str, **options: Any) -> tuple[EngineClient, Inbox]:
        inbox = Inbox()
        client = await EngineClient.connect(
            self.address,
            peer=peer,
            on_outputs=inbox.frames.append,
            on_heartbeat=inbox.beats.append,
            on_kv_events=inbox.kv_events.append,
            on_lost=inbox.lost.append,
            **options,
        )
        return client, inbox


@asynccontextmanager
async def served_engine(
    *,
    options: ServerOptions | None = None,
    runner: FakeStepRunner | None = None,
    executor: Callable[[FakeStepRunner], ThreadExecutor] = ThreadExecutor,
    num_blocks: int = 200,
    depth: int = 1,
    revision: str = "",
    max_num_seqs: int = 0,
    started_unix_s: float = 0.0,
    times: TimeModel | None = None,
) -> AsyncIterator[ServedEngine]:
    """A running engine on a free loopback port; ended afterwards."""
    clock, waits = ManualClock(), WaitTable()
    runner = runner or FakeStepRunner()
    limits = SchedulerLimits(
        max_num_seqs=max_num_seqs or 16, max_num_batched_tokens=64, max_model_len=400, max_num_queued_reqs=50
    )
    layout = build_attention_layout(block_size=4, num_layers=1, num_kv_heads=1, head_dim=4, dtype="float32")
    core = build_brain(
        layout=layout,
        num_blocks=[num_blocks],
        limits=limits,
        vocab_size=1000,
        clock=clock,
        depth=depth,
        times=times,
    )
    built = executor(runner)
    info = InstanceInfo(
        id="engine-0",
        incarnation="x",
        address="",
        model="fake",
        revision=revision,
        vocab_size=1000,
        max_num_seqs=max_num_seqs,
        started_unix_s=started_unix_s,
    )
    server = EngineServer(core, built, info, options=options, waits=waits, clock=clock)
    address = await server.start("127.0.0.1:0")
    running = asyncio.ensure_future(server.run())
    try:
        yield ServedEngine(server, core, runner, built, clock, waits, address, running)
    finally:
        runner.gate.set()
        server.end("test over")
        async with asyncio.timeout(WAIT_S):
            await running
