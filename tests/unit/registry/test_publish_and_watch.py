"""Publisher and Directory over stores that go away, come back empty, and hold nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import structs

from tests.fakes.scenes import run_leaving_no_task as run
from xllm.errors import RegistryError
from xllm.registry.directory import Directory
from xllm.registry.local import LocalStore
from xllm.registry.publisher import Publisher
from xllm.registry.records import (
    PublishedInstance,
    decode_instance,
    encode_record,
    instance_key,
    instances_prefix,
)
from xllm.registry.registry import RegistryEvent
from xllm.registry.rpc_server import RegistryListener
from xllm.registry.rpc_store import RpcStore
from xllm.registry.store import Store
from xllm.types.instance import InstanceInfo

PREFIX = instances_prefix("t")
TTL_S = 2.0
LONG_S = 20.0
"""Where nobody waits for a lease to end: longer than a machine stands still."""


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def record(name: str = "a", incarnation: str = "1", **fields: Any) -> PublishedInstance:
    info = InstanceInfo(id=name, incarnation=incarnation, address="x:1", model="m")
    return PublishedInstance(info=info, **fields)


def publisher(
    store: Store, published: PublishedInstance, clashes: list[str] | None = None, *, ttl_s: float = TTL_S
) -> Publisher:
    key = instance_key("t", published.info.id)

    def is_mine(value: bytes) -> bool:
        return decode_instance(key, value).info.incarnation == published.info.incarnation

    return Publisher(
        store,
        key,
        encode_record(published),
        ttl_s=ttl_s,
        is_mine=is_mine,
        on_clash=(clashes if clashes is not None else []).append,
    )


class Seen(list[tuple[str, str, str]]):
    def __call__(self, event: RegistryEvent) -> None:
        self.append((event.kind, event.record.info.id, event.record.info.incarnation))


def test_a_record_is_seen_and_a_farewell_removes_it() -> None:
    async def scene() -> None:
        store = LocalStore()
        directory, seen = Directory(store, PREFIX), Seen()
        directory.watch(seen)
        directory.start()
        one = publisher(store, record(), ttl_s=LONG_S)
        one.start()
        await until(lambda: bool(seen))
        late = Seen()
        directory.watch(late)
        assert late == seen == [("added", "a", "1")]
        leaving = structs.replace(record(), is_leaving=True)
        await one.close(encode_record(leaving))
        await until(lambda: len(seen) > 1)
        assert seen[1:] == [("removed", "a", "1")]
        assert (await store.get_prefix("")).items == ()
        await directory.close()
        await store.close()

    run(scene)


def test_a_process_that_just_dies_lapses_and_its_successor_replaces_it() -> None:
    async def scene() -> None:
        store = LocalStore()
        directory, seen = Directory(store, PREFIX), Seen()
        directory.watch(seen)
        directory.start()
        dead, heir = publisher(store, record()), publisher(store, record(incarnation="2"), ttl_s=LONG_S)
        dead.start()
        await until(lambda: dead.is_published)
        assert dead._task is not None
        dead._task.cancel()  # its lease is left behind, as by kill -9
        heir.start()  # must wait until the lease of the dead has ended
        await until(lambda: heir.is_published)
        await until(lambda: len(seen) == 4)
        assert seen == [("added", "a", "1"), ("lapsed", "a", "1"), ("removed", "a", "1"), ("added", "a", "2")]
        await heir.close()
        await directory.close()
        await store.close()

    run(scene)


def test_a_name_that_another_keeps_is_not_taken() -> None:
    async def scene() -> None:
        store = LocalStore()
        clashes: list[str] = []
        first = publisher(store, record(), ttl_s=LONG_S)
        second = publisher(store, record(incarnation="2"), clashes)
        first.start()
        await until(lambda: first.is_published)
        second.start()
        await until(lambda: bool(clashes))
        assert "held by another" in clashes[0] and first.is_published and not second.is_published
        await second.close()
        await first.close()
        await store.close()

    run(scene)


def test_a_lease_that_was_lost_is_granted_again_and_a_deleted_key_written_again() -> None:
    async def scene() -> None:
        store = LocalStore()
        one = publisher(store, record())
        one.start()
        await until(lambda: one.is_published)
        for harm in ("lease", "key"):
            (item,) = (await store.get_prefix(PREFIX)).items
            if harm == "lease":
                await store.revoke_lease(item.lease)
            else:
                await store.try_set(item.key, None, expected_revision=item.revision)
            await until(lambda: bool(store.state.get_prefix(PREFIX).items))
            assert store.state.get_prefix(PREFIX).items[0].revision > item.revision
        await one.close()
        await store.close()

    run(scene)


@pytest.mark.parametrize("is_forgetful", [False, True])
def test_a_registry_that_goes_and_returns_removes_nobody(is_forgetful: bool, tmp_path: Any) -> None:
    async def scene() -> None:
        address = f"unix:{tmp_path}/r.sock"
        local = LocalStore()
        listener = await RegistryListener.start(address, local)
        mine, theirs = RpcStore(address, timeout_s=5.0), RpcStore(address, timeout_s=5.0)
        one, directory, seen = publisher(mine, record()), Directory(theirs, PREFIX), Seen()
        directory.watch(seen)
        one.start()
        directory.start()
        await until(lambda: bool(seen))
        await listener.close()
        await until(lambda: not directory.is_connected)
        with pytest.raises(RegistryError):
            await theirs.get_prefix("")
        if is_forgetful:
            await local.close()
            local = LocalStore()
        listener = await RegistryListener.start(address, local)
        await until(lambda: directory.is_connected and bool(local.state.get_prefix(PREFIX).items))
        await until(lambda: seen[-1] == ("added", "a", "1"))
        assert "removed" not in {kind for kind, _, _ in seen}
        for part in (directory, one, mine, theirs, listener, local):
            await part.close()

    run(scene)


@pytest.mark.parametrize(
    "value", [b"", b"{", b"\xff", b"null", b"[" * 5000, b'{"info": {}}', b'{"info": {"id": "b"}}', encode_record(record("b"))]
)  # fmt: skip
def test_nonsense_in_the_registry_is_said_once_and_passed_over(
    value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        store = LocalStore()
        directory, seen = Directory(store, PREFIX, reconcile_s=0.02), Seen()
        directory.watch(seen)
        await store.put(instance_key("t", "a"), value)
        await store.put(instance_key("t", "good"), encode_record(record("good")))
        directory.start()
        await until(lambda: bool(seen))
        await asyncio.sleep(0.2)
        assert seen == [("added", "good", "1")]
        await directory.close()
        await store.close()

    run(scene)
    assert len([entry for entry in caplog.records if entry.levelname == "ERROR"]) == 1


def test_a_record_survives_the_way_through_the_store() -> None:
    published = record(token="secret")
    assert decode_instance("/t/instances/a", encode_record(published)) == published
    assert msgspec.json.decode(encode_record(published))["info"]["id"] == "a"
