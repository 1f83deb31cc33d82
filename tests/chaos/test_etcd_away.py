"""etcd is away: SIGTERM still drains an engine and a replica, which end with status 0; the command that drains says why not."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from tests.chaos.load import FORBIDDEN, Load
from tests.chaos.processes import ROOT
from tests.chaos.requests import build_pool
from tests.chaos.world import World, WorldOptions, until


async def drain_by_command(world: World, name: str) -> tuple[int, str]:
    where = ("--registry", f"etcd://{world.etcd.endpoint}", "--migrate-after", "0")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "xllm.cli.main", "cluster", "drain", name, *where, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(200):
        said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_drains_without_a_registry(tmp_path: Path) -> None:
    options = WorldOptions(num_engines=3, lease_ttl_s=2.0, step_s=0.02)

    async def scene() -> None:
        async with World(tmp_path, options) as world:
            pool = await build_pool(world.session, world.urls["service-0"], 8, count=18, max_tokens=120)
            load = Load(world, pool, 8, num_clients=8)
            load.start()
            await asyncio.to_thread(world.etcd.kill)

            status, said = await drain_by_command(world, "engine-0")
            assert status != 0 and "Traceback" not in said and "etcd cannot be reached" in said, said

            async def is_busy() -> bool:
                return (await world.engine_loads())["engine-0"].load.num_running >= 1

            await until(is_busy, "the engine has work")
            for name in ("engine-0", "service-0"):
                process = world.processes[name]
                process.send(signal.SIGTERM)
                assert await process.wait() == 0, process.text[-2000:]
            right = load.books.outcomes["right"]

            async def goes_on() -> bool:
                return load.books.outcomes["right"] >= right + 10

            await until(goes_on, "the others serve without etcd")
            await load.stop()
            assert not any(load.books.outcomes[name] for name in FORBIDDEN), load.books.failures
            assert await world.metric("service-1", "attempts_lost_total") == 0

            await world.start_etcd()
            for name in ("engine-0", "service-0"):
                await world.restart(name)
            await until(world.is_whole, "everybody is back")
            for process in world.processes.values():
                assert "Traceback" not in process.text, process.text

    asyncio.run(scene())
