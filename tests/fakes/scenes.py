"""A coroutine as a test: bounded in time, on a loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


def run(scene: Callable[[], Awaitable[None]], *, timeout_s: float = 240) -> None:
    """Play it; TimeoutError where it hangs."""

    async def bounded() -> None:
        async with asyncio.timeout(timeout_s):
            await scene()

    asyncio.run(bounded())


def run_leaving_no_task(scene: Callable[[], Awaitable[None]], *, timeout_s: float = 240) -> None:
    """Play it, then wait until every task it began has ended."""

    async def whole() -> None:
        before = len(asyncio.all_tasks())
        await scene()
        while len(asyncio.all_tasks()) > before:
            await asyncio.sleep(0.01)

    run(whole, timeout_s=timeout_s)
