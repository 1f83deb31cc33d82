"""What every EngineApi owes its connections, for each implementation in the table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from tests.fakes.engine_api import RecordingEngineApi
from tests.fakes.served_engine import Inbox, make_request, served_engine, until
from xllm.errors import XllmError
from xllm.rpc.client import EngineClient
from xllm.rpc.server import EngineListener
from xllm.types.instance import HealthReport, InstanceInfo
from xllm.types.wire import LoadReply

Connect = Callable[[str], Awaitable[tuple[EngineClient, Inbox]]]


@asynccontextmanager
async def recording() -> AsyncIterator[Connect]:
    listener = await EngineListener.start("127.0.0.1:0", RecordingEngineApi(), engine_id="engine-0")

    async def connect(peer: str) -> tuple[EngineClient, Inbox]:
        inbox = Inbox()
        client = await EngineClient.connect(
            str(listener.address), peer=peer, on_kv_events=inbox.kv_events.append, on_lost=inbox.lost.append
        )
        return client, inbox

    try:
        yield connect
    finally:
        await listener.close("test over")


@asynccontextmanager
async def engine_server() -> AsyncIterator[Connect]:
    async with served_engine() as engine:
        yield engine.connect


IMPLEMENTATIONS: dict[str, Callable[[], AbstractAsyncContextManager[Connect]]] = {
    "recording fake": recording,
    "engine server": engine_server,
}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_an_engine_api_answers_every_call_and_survives_every_peer(name: str) -> None:
    async def scene() -> None:
        async with asyncio.timeout(240), IMPLEMENTATIONS[name]() as connect:
            client, inbox = await connect("edge-1")
            other, _ = await connect("edge-2")
            assert isinstance(await client.load(), LoadReply)
            assert isinstance(await client.health(), HealthReport)
            assert isinstance(await client.info(), InstanceInfo)
            await client.submit(make_request("a"))
            await client.abort("a")
            await client.abort("never seen", attempt=3, choice=1)
            await client.subscribe_kv_events()
            assert [event.is_snapshot for event in inbox.kv_events][:1] == [True]
            for call in (client.start_profile(), client.stop_profile(), client.reset_prefix_cache()):
                try:
                    await call
                except XllmError as refused:
                    assert refused.message
            for rows in (await client.debug_request("a"), await client.debug_waits()):
                assert all(isinstance(row, dict) for row in rows)
            await client.close()  # a peer that leaves in the middle of things disturbs nobody
            assert len(inbox.lost) == 1
            assert (await other.health()).state == "ready"
            await other.drain(5.0)
            await other.health()
            await other.shutdown()
            await other.close()

    asyncio.run(scene())


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_an_engine_api_outlives_peers_that_vanish_while_it_sends(name: str) -> None:
    async def scene() -> None:
        async with asyncio.timeout(240), IMPLEMENTATIONS[name]() as connect:
            for round_ in range(10):
                client, inbox = await connect(f"edge-{round_}")
                await client.submit(make_request(f"r{round_}", max_tokens=50))
                await client.close()
                await until(lambda inbox=inbox: bool(inbox.lost))  # type: ignore[misc]
            last, _ = await connect("last")
            assert (await last.health()).state == "ready"
            await last.close()

    asyncio.run(scene())
