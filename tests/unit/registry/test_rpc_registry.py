"""The embedded registry's port: garbage, oversized frames, wrong secrets, too many watches, a lost connection."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from tests.fakes.scenes import run_leaving_no_task as run
from xllm.errors import ConfigError, RegistryError
from xllm.registry.local import LocalStore
from xllm.registry.rpc_server import MAX_WATCHES, RegistryListener
from xllm.registry.rpc_store import RpcStore
from xllm.rpc.codec import Codec
from xllm.types.wire import FromRegistry, Hello, RegistryPut


@asynccontextmanager
async def listening(token: str = "t") -> AsyncIterator[RegistryListener]:
    local = LocalStore()
    listener = await RegistryListener.start("127.0.0.1:0", local, token=token)
    try:
        yield listener
    finally:
        await listener.close()
        await local.close()


@asynccontextmanager
async def client(listener: RegistryListener, token: str = "t") -> AsyncIterator[RpcStore]:
    store = RpcStore(str(listener.address), token=token, timeout_s=60.0)
    try:
        yield store
    finally:
        await store.close()


def frame(message: object, call_id: int = 0) -> bytes:
    buffer = bytearray()
    Codec[FromRegistry, object](FromRegistry).append_frame(buffer, call_id, message, 1 << 20)
    return bytes(buffer)


@pytest.mark.parametrize("seed", range(8))
def test_garbage_costs_the_sender_its_connection_and_nobody_else(seed: int) -> None:
    rng = random.Random(seed)
    hello = frame(Hello(peer="x", token="t")) if seed % 2 else b""
    garbage = [
        rng.randbytes(rng.randrange(1, 300)),
        b"\xff\xff\xff\xff\0\0\0\1",
        b"\0\0\0\4\0\0\0\1\x93\1\2\3",
        frame({"type": "registry_put", "key": 7}, 1),
        frame({"type": "registry_watch", "watch_id": "x", "prefix": None, "after_revision": -1}, 1),
    ]

    async def scene() -> None:
        async with listening() as listener, client(listener) as store:
            await store.put("k", b"1")
            for data in garbage:
                reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
                writer.write(hello + data)
                writer.write_eof()
                await reader.read()
                writer.close()
                await writer.wait_closed()
            assert (await store.get_prefix("")).items[0].value == b"1"

    run(scene)


def test_without_the_secret_nothing_is_said_or_done() -> None:
    async def scene() -> None:
        async with listening() as listener, client(listener, token="wrong") as store:
            with pytest.raises(RegistryError) as caught:
                await store.put("k", b"1")
            assert "wrong" in str(caught.value) or "token" in str(caught.value)
            reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
            writer.write(frame(RegistryPut(key="k", value=b"1"), 1))
            writer.write_eof()
            await reader.read()
            writer.close()
            await writer.wait_closed()
            async with client(listener) as friend:
                assert (await friend.get_prefix("")).items == ()

    run(scene)


def test_a_network_address_needs_a_secret() -> None:
    async def scene() -> None:
        local = LocalStore()
        with pytest.raises(ConfigError, match="for anybody"):
            await RegistryListener.start("0.0.0.0:0", local)
        await local.close()

    run(scene)


def test_watches_of_one_connection_are_bounded_and_given_back() -> None:
    async def scene() -> None:
        async with listening() as listener, client(listener) as store:
            start = await store.put("k", b"1")

            async def first(after: int) -> bytes:
                async with aclosing(store.watch("k", after)) as batches:
                    async for batch in batches:
                        return batch[0].item.value
                raise AssertionError

            many = [asyncio.ensure_future(first(start)) for _ in range(MAX_WATCHES + 1)]
            with pytest.raises(RegistryError):
                await asyncio.gather(*many)
            await store.put("k", b"2")
            answers = await asyncio.gather(*many, return_exceptions=True)
            assert answers.count(b"2") == MAX_WATCHES
            assert await first(start) == b"2"

    run(scene)


def test_a_client_connects_again_by_itself() -> None:
    async def scene() -> None:
        async with listening() as listener, client(listener) as store:
            lease = await store.grant_lease(60.0)
            await store.put("k", b"1", lease=lease.id)
            assert store._link is not None
            store._link.close("test")
            assert (await store.keep_alive(lease.id)).id == lease.id
            assert (await store.get_prefix("k")).items[0].lease == lease.id

    run(scene)
