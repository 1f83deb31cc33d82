"""A request that kills instances: the real openai client asks once, and what is left of the cluster stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.fakes.scenes import run
from tests.fakes.served_engine import ServedEngine, make_request, served_engine, until
from tests.unit.service.test_service import Parts, Sink, serving
from xllm.api.app import build_app
from xllm.api.serve import HttpServer
from xllm.config.api import ApiConfig

NUM_ENGINES = 6


@contextlib.asynccontextmanager
async def edge_over(parts: Parts) -> AsyncIterator[str]:
    """A real uvicorn over a service, on this loop; its address."""
    config = ApiConfig(port=0, shutdown_timeout_s=5.0)
    server = HttpServer(build_app(parts.service, config), config, parts.service)
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    running = asyncio.ensure_future(server.run(url.set_result, handles_signals=False))
    try:
        yield await url
    finally:
        server.begin_shutdown()
        await running


async def kill_whoever_has_it(parts: Parts, engines: list[ServedEngine], killed: list[str]) -> None:
    """What an out-of-memory death at this very prompt looks like from outside."""
    while True:
        for live in list(parts.dispatch._live.values()):
            name = live.instance
            if name and engines[int(name.rpartition("-")[2])].core.num_unfinished:
                killed.append(name)
                parts.registry.withdraw(name)
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_a_call_that_kills_instances_is_made_once(streams: bool) -> None:
    sent: list[Any] = []
    killed: list[str] = []

    async def note(request: Any) -> None:
        sent.append(request)

    async def scene() -> None:
        async with contextlib.AsyncExitStack() as stack:
            engines = [await stack.enter_async_context(served_engine()) for _ in range(NUM_ENGINES)]
            parts = await stack.enter_async_context(serving(*engines, fails_over=True))
            url = await stack.enter_async_context(edge_over(parts))
            transport = openai.DefaultAsyncHttpxClient(event_hooks={"request": [note]})
            client = openai.AsyncOpenAI(
                base_url=f"{url}/v1", api_key="none", http_client=transport, timeout=200
            )
            await stack.enter_async_context(client)
            assert client.max_retries == 2, "the client repeats by itself, unless it is told not to"
            for engine in engines:
                engine.runner.gate.clear()
            killer = asyncio.ensure_future(kill_whoever_has_it(parts, engines, killed))
            try:
                with pytest.raises(openai.APIError) as caught:
                    answer = await client.completions.create(
                        model="m", prompt=[1, 2, 3], max_tokens=4, stream=streams
                    )
                    if streams:
                        async for _ in answer:
                            pass
            finally:
                killer.cancel()
            error = caught.value
            assert len(sent) == 1 and len(killed) == 2, (len(sent), killed)
            assert isinstance(error.body, dict) and error.body["type"] == "RequestGivenUpError"
            assert "when they died" in error.message and "hint: do not repeat it" in error.message
            if not streams:
                assert isinstance(error, openai.InternalServerError) and error.status_code == 503
                assert error.response.headers["x-should-retry"] == "false"
                assert "retry-after" not in error.response.headers
            for engine in engines:
                engine.runner.gate.set()
            sink = Sink()
            await parts.service.submit(make_request("after"), sink)
            await until(lambda: sink.reasons == ["length"])

    run(scene)
