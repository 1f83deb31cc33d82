"""``xllm cluster`` and names that nobody has, or that hide nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from xllm.config.cluster import RegistryConfig
from xllm.errors import InstanceLost, NotFound
from xllm.launch.cluster_admin import drain_instance, gather_status
from xllm.registry.local import LocalStore
from xllm.registry.records import PublishedInstance, encode_record, instance_key
from xllm.registry.rpc_server import RegistryListener
from xllm.types.instance import InstanceInfo


def run(scene: Callable[[LocalStore, RegistryConfig], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(240):
            store = LocalStore()
            listener = await RegistryListener.start("127.0.0.1:0", store)
            await scene(store, RegistryConfig(url=f"tcp://{listener.address}"))
            await listener.close()
            await store.close()

    asyncio.run(bounded())


def published(name: str) -> bytes:
    info = InstanceInfo(id=name, incarnation="1", address="127.0.0.1:1", model="m")
    return encode_record(PublishedInstance(info=info))


def test_draining_a_name_that_nobody_has_says_who_is_there() -> None:
    async def scene(store: LocalStore, registry: RegistryConfig) -> None:
        await store.put(instance_key("xllm", "a"), published("a"))
        for name in ("nobody", "", "../a", "a/", "A"):
            with pytest.raises(NotFound) as refused:
                await drain_instance(registry, name, token="", timeout_s=1.0)
            assert "a" in refused.value.hint
        with pytest.raises(InstanceLost, match=r"127\.0\.0\.1:1"):
            await drain_instance(registry, "a", token="", timeout_s=1.0)

    run(scene)


def test_the_status_shows_nonsense_as_such_and_the_rest_all_the_same() -> None:
    async def scene(store: LocalStore, registry: RegistryConfig) -> None:
        await store.put(instance_key("xllm", "a"), published("a"))
        await store.put(instance_key("xllm", "b"), b"{nonsense")
        await store.put(instance_key("xllm", "c"), published("another"))
        rows = {row["id"]: row for row in (await gather_status(registry, ""))["instances"]}
        assert {name: row["state"] for name, row in rows.items()} == {
            "a": "lost", "b": "unreadable", "c": "unreadable",
        }  # fmt: skip
        assert all(row["message"] for row in rows.values())

    run(scene)
