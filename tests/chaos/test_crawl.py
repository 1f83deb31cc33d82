"""An engine whose steps take a hundred times as long: it is not dead, so what it has ends there, and new work goes by."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.chaos.load import FORBIDDEN, Load
from tests.chaos.requests import build_pool
from tests.chaos.world import World, WorldOptions, until

CRAWLER = "engine-1"
LEASE_S = 20.0
"""Longer than a machine stands still: nobody is lost because of that."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_engine_that_crawls_ends_what_it_has_and_gets_little_more(tmp_path: Path) -> None:
    options = WorldOptions(
        num_engines=2, num_services=1, step_s=0.003, lease_ttl_s=LEASE_S, policy="least_loaded", crawling=(CRAWLER,)
    )  # fmt: skip

    async def scene() -> None:
        async with World(tmp_path, options) as world:
            pool = await build_pool(world.session, world.urls["service-0"], 5, count=18, max_tokens=12)
            before = {name: reply.load for name, reply in (await world.engine_loads()).items()}
            load = Load(world, pool, 5, num_clients=8)
            seen: set[str] = set()
            load.start()

            async def has_served_enough() -> bool:
                seen.add((await world.health("service-0") or {}).get(CRAWLER, "ready"))
                replies = await world.engine_loads()
                ended = replies[CRAWLER].load.num_output_tokens - before[CRAWLER].num_output_tokens
                return ended >= 30 and load.books.outcomes["right"] >= 100

            await until(has_served_enough, "both engines serve under load")
            await load.stop()
            assert not any(load.books.outcomes[name] for name in FORBIDDEN), load.books.failures
            # A busy machine may make it silent for a moment.
            assert seen <= {"ready", "suspect"}, "its work advances: nobody may doubt that"
            assert await world.metric("service-0", "attempts_lost_total") == 0
            after = {name: reply.load for name, reply in (await world.engine_loads()).items()}
            prompts = {
                name: after[name].num_prompt_tokens - before[name].num_prompt_tokens for name in world.engines
            }
            # Half would be its part if it did not crawl; on a slow machine the other engine is less far ahead.
            assert 0 < prompts[CRAWLER] < 0.4 * sum(prompts.values()), prompts

    asyncio.run(scene())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_engine_that_crawls_is_emptied_by_a_drain(tmp_path: Path) -> None:
    options = WorldOptions(
        num_engines=2, num_services=1, step_s=0.004, lease_ttl_s=LEASE_S, crawling=(CRAWLER,)
    )

    async def scene() -> None:
        async with World(tmp_path, options) as world:
            pool = await build_pool(world.session, world.urls["service-0"], 6, count=9, max_tokens=16)
            load = Load(world, pool, 6, num_clients=6)
            load.start()

            async def is_busy() -> bool:
                return (await world.engine_loads())[CRAWLER].load.num_running >= 2

            await until(is_busy, "the crawling engine has work")
            crawler = world.engines[CRAWLER]
            crawler.send(signal.SIGTERM)
            assert await crawler.wait() == 0, crawler.text[-2000:]
            await load.stop()
            assert not any(load.books.outcomes[name] for name in FORBIDDEN), load.books.failures
            assert await world.metric("service-0", "attempts_migrated_total") >= 1
            assert await world.metric("service-0", "attempts_lost_total") == 0

    asyncio.run(scene())
