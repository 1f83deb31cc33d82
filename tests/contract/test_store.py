"""One suite over every registry store: in the process, over our RPC, and a real etcd."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager

import pytest

from tests.fakes.etcd import Etcd
from xllm.errors import Compacted, LeaseExpired, RegistryError
from xllm.registry.etcd import EtcdStore
from xllm.registry.local import LocalStore
from xllm.registry.rpc_server import RegistryListener
from xllm.registry.rpc_store import RpcStore
from xllm.registry.store import MAX_KEY_BYTES, MAX_VALUE_BYTES, Store
from xllm.types.store import StoreEvent

Scene = Callable[[Store, str], Awaitable[None]]
_NUMBERS = itertools.count()
WAIT_S = 100.0


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@asynccontextmanager
async def opened(kind: str, endpoint: str) -> AsyncIterator[Store]:
    if kind == "etcd":
        etcd = EtcdStore([endpoint], timeout_s=60.0)
        try:
            yield etcd
        finally:
            await etcd.close()
        return
    local = LocalStore(max_events=64)
    if kind == "local":
        try:
            yield local
        finally:
            await local.close()
        return
    listener = await RegistryListener.start("127.0.0.1:0", local, token="t")
    store = RpcStore(str(listener.address), token="t", timeout_s=60.0)
    try:
        yield store
    finally:
        await store.close()
        await listener.close()
        await local.close()


@pytest.fixture(params=["local", "rpc", "etcd"])
def play(request: pytest.FixtureRequest) -> Callable[[Scene], None]:
    endpoint = request.getfixturevalue("etcd").endpoint if request.param == "etcd" else ""

    async def bounded(scene: Scene) -> None:
        before = len(asyncio.all_tasks())
        async with asyncio.timeout(240):
            async with opened(request.param, endpoint) as store:
                await scene(store, f"test/{next(_NUMBERS)}/")
            while len(asyncio.all_tasks()) > before:
                await asyncio.sleep(0.01)

    return lambda scene: asyncio.run(bounded(scene))


async def collect(store: Store, prefix: str, after: int, num: int) -> list[StoreEvent]:
    found: list[StoreEvent] = []
    async with asyncio.timeout(WAIT_S), aclosing(store.watch(prefix, after)) as batches:
        async for batch in batches:
            found += batch
            if len(found) >= num:
                break
    return found


def test_put_get_and_order(play: Callable[[Scene], None]) -> None:
    async def scene(store: Store, prefix: str) -> None:
        assert (await store.get_prefix(prefix)).items == ()
        first = await store.put(prefix + "b", b"1")
        second = await store.put(prefix + "a", b"\x00\xff")
        third = await store.put(prefix + "b", b"2")
        assert first < second < third
        await store.put(prefix[:-1] + "x", b"outside")
        found = await store.get_prefix(prefix)
        assert [(i.key, i.value, i.revision) for i in found.items] == [
            (prefix + "a", b"\x00\xff", second),
            (prefix + "b", b"2", third),
        ]
        assert found.revision >= third

    play(scene)


def test_compare_and_set(play: Callable[[Scene], None]) -> None:
    async def scene(store: Store, prefix: str) -> None:
        key = prefix + "leader"
        mine = await store.try_set(key, b"me", expected_revision=0)
        assert mine is not None
        assert await store.try_set(key, b"other", expected_revision=0) is None
        assert await store.try_set(key, b"other", expected_revision=mine - 1) is None
        newer = await store.try_set(key, b"me2", expected_revision=mine)
        assert newer is not None and newer > mine
        assert await store.try_set(key, None, expected_revision=mine) is None
        assert (await store.get_prefix(key)).items[0].value == b"me2"
        assert await store.try_set(key, None, expected_revision=newer) is not None
        assert (await store.get_prefix(key)).items == ()
        winners = await asyncio.gather(
            *(store.try_set(key, str(n).encode(), expected_revision=0) for n in range(8))
        )
        assert len([won for won in winners if won is not None]) == 1

    play(scene)


def test_a_watch_from_a_revision_misses_nothing(play: Callable[[Scene], None]) -> None:
    async def scene(store: Store, prefix: str) -> None:
        start = (await store.get_prefix(prefix)).revision
        revision = await store.put(prefix + "a", b"1")
        await store.put(prefix + "b", b"2")
        await store.try_set(prefix + "a", None, expected_revision=revision)
        watching = asyncio.ensure_future(collect(store, prefix, start, 5))
        await asyncio.sleep(0.05)
        await store.put(prefix[:-1] + "x", b"outside")
        await store.put(prefix + "c", b"3")
        await store.put(prefix + "c", b"4")
        events = await watching
        assert [(e.kind, e.item.key[len(prefix) :], e.item.value) for e in events] == [
            ("put", "a", b"1"),
            ("put", "b", b"2"),
            ("delete", "a", b""),
            ("put", "c", b"3"),
            ("put", "c", b"4"),
        ]
        revisions = [event.item.revision for event in events]
        assert revisions == sorted(revisions) and revisions[0] == revision
        later = await collect(store, prefix, events[3].item.revision, 1)
        assert later == [events[4]]

    play(scene)


def test_two_watches_at_once(play: Callable[[Scene], None]) -> None:
    async def scene(store: Store, prefix: str) -> None:
        start = (await store.get_prefix(prefix)).revision
        both = asyncio.gather(collect(store, prefix + "a", start, 1), collect(store, prefix + "b", start, 1))
        await asyncio.sleep(0.05)
        await store.put(prefix + "b1", b"b")
        await store.put(prefix + "a1", b"a")
        (one,), (two,) = await both
        assert (one.item.value, two.item.value) == (b"a", b"b")

    play(scene)


def test_a_lease_that_nobody_renews_takes_its_keys_along(play: Callable[[Scene], None]) -> None:
    async def scene(store: Store, prefix: str) -> None:
        lease = await store.grant_lease(4.0)  # longer than a machine stands still
        assert lease.ttl_s >= 4.0
        await store.put(prefix + "mine", b"1", lease=lease.id)
        await store.put(prefix + "stays", b"2")
        revision = await store.try_set(prefix + "also", b"3", expected_revision=0, lease=lease.id)
        assert revision is not None
        assert {i.lease for i in (await store.get_prefix(prefix)).items} == {0, lease.id}
        events = await collect(store, prefix, revision, 2)
        assert {(e.kind, e.item.key) for e in events} == {
            ("delete", prefix + "mine"),
            ("delete", prefix + "also"),
        }
        assert [i.key for i in (await store.get_prefix(prefix)).items] == [prefix + "stays"]
        with pytest.raises(LeaseExpired):
            await store.keep_alive(lease.id)
        with pytest.raises(LeaseExpired):
            await store.put(prefix + "mine", b"1", lease=lease.id)
        with pytest.raises(LeaseExpired):
            await store.try_set(prefix + "mine", b"1", expected_revision=0, lease=lease.id)
        await store.revoke_lease(lease.id)

    play(scene)


def test_renewal_keeps_and_revocation_ends(play: Callable[[Scene], None]) -> None:
    async def scene(store: Store, prefix: str) -> None:
        lease = await store.grant_lease(4.0)
        revision = await store.put(prefix + "k", b"1", lease=lease.id)
        loop = asyncio.get_running_loop()
        end = loop.time() + 1.25 * lease.ttl_s
        while loop.time() < end:
            assert (await store.keep_alive(lease.id)).ttl_s == lease.ttl_s
            await asyncio.sleep(0.1)
        assert (await store.get_prefix(prefix)).items[0].revision == revision
        await store.revoke_lease(lease.id)
        assert (await store.get_prefix(prefix)).items == ()
        await store.revoke_lease(lease.id)

    play(scene)


def test_writing_without_the_lease_lets_the_key_stay(play: Callable[[Scene], None]) -> None:
    async def scene(store: Store, prefix: str) -> None:
        lease = await store.grant_lease(60.0)
        await store.put(prefix + "k", b"1", lease=lease.id)
        await store.put(prefix + "k", b"2")
        await store.revoke_lease(lease.id)
        assert [i.value for i in (await store.get_prefix(prefix)).items] == [b"2"]

    play(scene)


def test_impossible_keys_values_and_times_are_refused(play: Callable[[Scene], None]) -> None:
    async def scene(store: Store, prefix: str) -> None:
        for key, value in (
            ("", b""),
            ("k" * (MAX_KEY_BYTES + 1), b""),
            (prefix, b"x" * (MAX_VALUE_BYTES + 1)),
        ):
            with pytest.raises(RegistryError):
                await store.put(key, value)
            with pytest.raises(RegistryError):
                await store.try_set(key, value, expected_revision=0)
        for ttl_s in (0.0, -1.0, float("nan"), 1e9):
            with pytest.raises(RegistryError):
                await store.grant_lease(ttl_s)
        await store.put(prefix + "still", b"works")

    play(scene)


def test_after_close_everything_is_refused(play: Callable[[Scene], None]) -> None:
    async def scene(store: Store, prefix: str) -> None:
        start = (await store.get_prefix(prefix)).revision
        watching = asyncio.ensure_future(collect(store, prefix, start, 1))
        await asyncio.sleep(0.05)
        await store.close()
        with pytest.raises(RegistryError):
            await watching
        with pytest.raises(RegistryError):
            await store.get_prefix(prefix)

    play(scene)


@pytest.mark.parametrize("kind", ["local", "rpc"])
def test_events_that_are_no_longer_kept_are_said_to_be(kind: str) -> None:
    async def scene() -> None:
        async with opened(kind, "") as store:
            for number in range(100):
                await store.put("k", str(number).encode())
            with pytest.raises(Compacted):
                await collect(store, "k", 10, 1)
            with pytest.raises(Compacted):
                await collect(store, "k", 10_000, 1)
            assert [e.item.value for e in await collect(store, "k", 98, 2)] == [b"98", b"99"]

    asyncio.run(scene())
