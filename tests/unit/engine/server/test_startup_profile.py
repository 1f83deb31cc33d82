"""--profile-startup: steps are measured before the first request, and nothing of them stays."""

from __future__ import annotations

import asyncio

from tests.fakes.hash_executor import HashExecutor
from xllm.base.clock import ManualClock
from xllm.engine.brain import build_brain
from xllm.engine.core.engine_core import EngineCore
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.engine.server.startup_profile import profile_startup, rounds
from xllm.perf.learned import LearnedStepTime
from xllm.perf.step_time import PROFILES
from xllm.types.kv_layout import build_attention_layout


def make_core(clock: ManualClock) -> EngineCore:
    return build_brain(
        layout=build_attention_layout(
            block_size=4, num_layers=1, num_kv_heads=1, head_dim=2, dtype="float32"
        ),
        num_blocks=[400],
        limits=SchedulerLimits(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=100),
        vocab_size=50,
        clock=clock,
        times=LearnedStepTime(PROFILES["cpu-0.6b"]),
    )


def test_rounds_stay_within_the_limits() -> None:
    core = make_core(ManualClock())
    for requests in rounds(core):
        assert 1 <= len(requests) <= 4
        assert all(len(r.prompt_token_ids) + (r.sampling.max_tokens or 0) <= 100 for r in requests)
    ids = [r.id for requests in rounds(core) for r in requests]
    assert len(set(ids)) == len(ids)


def test_steps_are_learned_and_leave_nothing() -> None:
    clock = ManualClock()
    core = make_core(clock)
    body = HashExecutor(block_size=4, num_blocks=400, vocab_size=50)

    async def drive() -> None:
        while True:
            batch = core.next_batch()
            if batch is not None:
                clock.advance(0.01 + 1e-4 * batch.num_tokens)
                core.on_result(body.run(batch, "ok"))
            await asyncio.sleep(0)

    async def scene() -> None:
        driver = asyncio.create_task(drive())
        await asyncio.wait_for(profile_startup(core, core.add, core.abort, driver.done), 200)
        driver.cancel()

    asyncio.run(scene())
    times = core.times
    assert isinstance(times, LearnedStepTime)
    assert times.num_samples >= 50
    load = core.load()
    assert core.num_unfinished == 0
    assert load.blocks_used == load.blocks_cached == 0
    core.check()


def test_a_dead_engine_ends_the_profile() -> None:
    core = make_core(ManualClock())
    asyncio.run(asyncio.wait_for(profile_startup(core, core.add, core.abort, lambda: True), 200))
    assert core.num_unfinished == 0
