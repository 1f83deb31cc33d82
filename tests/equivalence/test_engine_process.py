"""Token-exact through the whole engine process: socket, server, brain, executor thread, model."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.equivalence.conftest import SmallModel
from tests.equivalence.engines import Comparison, request
from tests.equivalence.families import VOCAB
from tests.fakes.compiler import HAS_COMPILER
from tests.fakes.served_engine import Inbox, until
from tests.fakes.sync_engine import Completion
from xllm.config.load import load_arguments
from xllm.config.threads import parse_cpu_list
from xllm.errors import InvalidRequest
from xllm.launch.engine_process import EngineProcess
from xllm.rpc.client import EngineClient


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_an_engine_process_streams_what_transformers_says(
    async_scheduling: bool, small_model: Callable[[str], SmallModel], tmp_path: Path
) -> None:
    model = small_model("qwen3")
    said = {
        "model": str(model.path),
        "executor": "local",
        "dtype": "float32",
        "device": "cpu",
        "num_threads": 1,
        "max_model_len": 512,
        "num_gpu_blocks_override": 200,
        "max_num_batched_tokens": 96,
        "async_scheduling": async_scheduling,
        "server.profile_dir": str(tmp_path / "profiles"),
    }
    loaded: list[tuple[int, int]] = []
    lines: list[str] = []
    process = EngineProcess.start(
        load_arguments(said).engine(),
        sink=lines.append,
        on_weights=lambda done, total: loaded.append((done, total)),
    )
    try:
        assert "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
        assert loaded[-1][0] == loaded[-1][1] > 0
        assert [span.phase for span in process.spans] == [
            "interpreter and own imports",
            "config",
            "imports",
            "kernels",
            "weights map",
            "weights read and packed",
            "KV and runner",
            "brain",
            "listening",
        ]
        asyncio.run(_compare(process, model))
        asyncio.run(_stop(process, model, num_wasted=int(async_scheduling)))
        asyncio.run(_profile(process, tmp_path / "profiles", lines))
    finally:
        process.close()
    assert process.returncode == 0


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not Linux")
def test_a_steps_threads_stay_on_the_cpus_they_were_given(small_model: Callable[[str], SmallModel]) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("one CPU")
    model = small_model("qwen3")
    said = {
        "model": str(model.path),
        "dtype": "float32",
        "device": "cpu",
        "num_threads": 2,
        "cpu_set": ",".join(map(str, cpus)),
        "max_model_len": 512,
        "num_gpu_blocks_override": 200,
    }
    placed = {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"} & set(os.environ)
    assert not placed, "this test is about places that nobody has chosen"
    process = EngineProcess.start(load_arguments(said).engine())
    try:
        asyncio.run(_compare(process, model))
        found = {name: _affinity(process.pid, int(name)) for name in os.listdir(f"/proc/{process.pid}/task")}
        pinned = [tuple(cpus) for cpus in found.values() if len(cpus) == 1]
        assert {(cpu,) for cpu in cpus} <= set(pinned), f"a thread on each: {found}"
        assert found[str(process.pid)] == set(cpus), "the event loop may go where it likes"
    finally:
        process.close()


@pytest.mark.skipif(not HAS_COMPILER, reason="no compiler: nothing is packed")
def test_from_a_packed_cache_and_after_damage_it_says_the_same(
    small_model: Callable[[str], SmallModel], tmp_path: Path
) -> None:
    model, cache = small_model("qwen3"), tmp_path / "cache"
    said = {
        "model": str(model.path),
        "dtype": "float32",
        "device": "cpu",
        "num_threads": 1,
        "max_model_len": 512,
        "num_gpu_blocks_override": 200,
        "packed_weights_cache": str(cache),
    }

    def start() -> list[str]:
        lines: list[str] = []
        process = EngineProcess.start(load_arguments(said).engine(), sink=lines.append)
        try:
            asyncio.run(_compare(process, model))
        finally:
            process.close()
        return [line for line in lines if "packed weights" in line]

    (built,) = start()
    assert "are kept in" in built
    (found,) = start()
    assert "checked in" in found
    (path,) = cache.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    noticed, rebuilt = start()
    assert "checksum is wrong" in noticed and "are kept in" in rebuilt


def test_without_a_compiler_it_serves_the_same_and_says_once_what_that_costs(
    small_model: Callable[[str], SmallModel], tmp_path: Path
) -> None:
    model = small_model("qwen3")
    said = {
        "model": str(model.path),
        "dtype": "float32",
        "device": "cpu",
        "num_threads": 1,
        "max_model_len": 512,
        "num_gpu_blocks_override": 200,
    }
    lines: list[str] = []
    env = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = EngineProcess.start(load_arguments(said).engine(), sink=lines.append, env=env)
    try:
        asyncio.run(_compare(process, model))
    finally:
        process.close()
    told = [line for line in lines if " W engine" in line and "CPU kernels" in line]
    assert len(told) == 1, told
    assert all(word in told[0] for word in ("no C++ compiler", "torch's own operations", "slower", "g++"))


def _affinity(pid: int, thread: int) -> set[int]:
    lines = Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines()
    text = next(line for line in lines if line.startswith("Cpus_allowed_list:"))
    return parse_cpu_list(text.partition(":")[2].strip())


async def _compare(process: EngineProcess, model: SmallModel) -> None:
    rng = random.Random(5)
    prompts = {f"r{i}": [rng.randrange(VOCAB) for _ in range(rng.choice([1, 7, 40, 150]))] for i in range(12)}
    inbox = Inbox()
    client = await EngineClient.connect(
        process.address, peer="edge", token=process.token, on_outputs=inbox.frames.append
    )
    await asyncio.gather(*(client.submit(request(name, prompt, 16)) for name, prompt in prompts.items()))
    await until(lambda: len(inbox.terminal()) == len(prompts))
    comparison = Comparison()
    for name, prompt in prompts.items():
        completion = Completion()
        for output in inbox.outputs:
            if output.request_id == name:
                completion.add(output, 0)
        comparison.compare(name, completion, model.reference.greedy(prompt, 16))
    comparison.finish("engine process")
    assert max(len(frame.outputs) for frame in inbox.frames) > 1  # they did share steps
    load = (await client.load()).load
    assert load.blocks_used == load.blocks_leased == load.blocks_pinned == 0
    assert load.blocks_free + load.blocks_cached == load.blocks_total
    await client.close()


async def _stop(process: EngineProcess, model: SmallModel, *, num_wasted: int) -> None:
    """A stop token nobody could foresee: with two steps in flight one token is computed for nothing and never seen."""
    inbox = Inbox()
    client = await EngineClient.connect(
        process.address, peer="edge", token=process.token, on_outputs=inbox.frames.append
    )
    wanted = model.reference.greedy([3, 1, 4, 1, 5], 12).tokens
    stop_id = next(t for i, t in enumerate(wanted) if i >= 4 and t not in wanted[:i])
    await client.submit(request("stops", [3, 1, 4, 1, 5], 12, stop_token_ids=(stop_id,)))
    await until(lambda: bool(inbox.terminal()))
    assert tuple(inbox.tokens("stops")) == wanted[: wanted.index(stop_id) + 1]
    finished = (await client.debug_request("stops"))[-1]
    assert (finished["reason"], finished["wasted_tokens"]) == ("stop", num_wasted)
    load = (await client.load()).load
    assert (load.blocks_used, load.num_wasted_tokens) == (0, num_wasted)
    await client.close()


async def _profile(process: EngineProcess, directory: Path, lines: list[str]) -> None:
    """The profiler sees the executor's thread, and the engine goes on answering."""
    inbox = Inbox()
    client = await EngineClient.connect(
        process.address, peer="edge", token=process.token, on_outputs=inbox.frames.append
    )
    with pytest.raises(InvalidRequest, match="not running"):
        await client.stop_profile()
    await client.start_profile()
    with pytest.raises(InvalidRequest, match="already"):
        await client.start_profile()
    await until(lambda: any(line.endswith("profiler: profiling") for line in lines))
    await client.submit(request("p", [1, 2, 3], 8))
    await until(lambda: bool(inbox.terminal()))
    await client.stop_profile()
    await until(lambda: bool(list(directory.glob("*.trace.json"))))
    (trace,) = directory.glob("*.trace.json")
    assert "aten::" in trace.read_text()
    await client.close()
