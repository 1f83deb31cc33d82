"""A real etcd behind a proxy that is slow or lies: the last view stays, nobody is removed, the truth comes back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import pytest

from tests.fakes.etcd import Etcd
from tests.fakes.fault_proxy import FaultProxy
from xllm.errors import RegistryError
from xllm.registry.directory import Directory
from xllm.registry.etcd import EtcdStore
from xllm.registry.publisher import Publisher
from xllm.registry.records import (
    PublishedInstance,
    decode_instance,
    encode_record,
    instance_key,
    instances_prefix,
)
from xllm.registry.registry import RegistryEvent
from xllm.types.instance import InstanceInfo

NAMES = ("a", "b", "c")
LONG_S = 60.0
"""Longer than a machine stands still: what a lie does must not be confused with leases that really end."""


def smaller_revisions(data: bytes) -> bytes:
    return re.sub(rb'"(revision|mod_revision)":"\d+"', rb'"\1":"1"', data)


def larger_revisions(data: bytes) -> bytes:
    return re.sub(rb'"(revision|mod_revision)":"(\d)', rb'"\1":"9\2', data)


def truncated(data: bytes) -> bytes:
    return data[: max(1, len(data) // 2)]


def nobody(data: bytes) -> bytes:
    """As an etcd would that lost all its data: the same length, another name."""
    return data.replace(b'"kvs"', b'"kvz"')


def odd_keys(data: bytes) -> bytes:
    return data.replace(b'"key":"', b'"key":"!')


def zeros(data: bytes) -> bytes:
    return b"\0" * len(data)


LIES = (smaller_revisions, larger_revisions, truncated, nobody, odd_keys, zeros)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as found:
        yield found


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(240):
            await scene()

    asyncio.run(bounded())


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


def record(name: str, incarnation: str) -> PublishedInstance:
    return PublishedInstance(info=InstanceInfo(id=name, incarnation=incarnation, address="x:1", model="m"))


class Cluster:
    """Three publishers over an honest link, a directory over the bad one."""

    def __init__(self, etcd: Etcd, namespace: str, proxy: FaultProxy) -> None:
        self.namespace = namespace
        self.honest = EtcdStore([etcd.endpoint])
        self.deceived = EtcdStore([proxy.address], timeout_s=0.7)
        self.directory = Directory(self.deceived, instances_prefix(namespace), reconcile_s=0.3)
        self.events: list[RegistryEvent] = []
        self.directory.watch(self.events.append)
        self.publishers = [self.publisher(self.honest, name) for name in NAMES]

    def publisher(self, store: EtcdStore, name: str, ttl_s: float = LONG_S) -> Publisher:
        key = instance_key(self.namespace, name)
        return Publisher(
            store, key, encode_record(record(name, "1")), ttl_s=ttl_s,
            is_mine=lambda value: decode_instance(key, value).info.incarnation == "1",
            on_clash=lambda message: None,
        )  # fmt: skip

    @property
    def known(self) -> set[str]:
        return set(self.directory._records)

    async def close(self) -> None:
        for publisher in self.publishers:
            await publisher.close()
        await self.directory.close()
        await self.honest.close()
        await self.deceived.close()


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_lies_remove_nobody_and_the_truth_comes_back(lie: Callable[[bytes], bytes], etcd: Etcd) -> None:
    async def scene() -> None:
        async with FaultProxy(etcd.endpoint) as proxy:
            cluster = Cluster(etcd, f"lie-{lie.__name__}", proxy)
            for publisher in cluster.publishers:
                publisher.start()
            cluster.directory.start()
            await until(lambda: cluster.known == set(NAMES))
            proxy.lie(lie)
            before = proxy.num_bytes
            await until(lambda: proxy.num_bytes > before)  # the lie is heard
            await asyncio.sleep(2.0)
            assert cluster.known == set(NAMES)
            assert not [event for event in cluster.events if event.kind == "removed"]
            assert cluster.directory._task is not None and not cluster.directory._task.done()
            proxy.heal()
            late = cluster.publisher(cluster.honest, "d")
            late.start()
            cluster.publishers.append(late)
            await until(lambda: cluster.known == {*NAMES, "d"} and cluster.directory.is_connected)
            await until(lambda: not cluster.directory._lapsed)
            await cluster.close()

    run(scene)


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_whoever_publishes_through_lies_is_published_again_afterwards(
    lie: Callable[[bytes], bytes], etcd: Etcd
) -> None:
    async def scene() -> None:
        async with FaultProxy(etcd.endpoint) as proxy:
            cluster = Cluster(etcd, f"publish-{lie.__name__}", proxy)
            publisher = cluster.publisher(cluster.deceived, "a", ttl_s=2.0)
            cluster.publishers = [publisher]
            publisher.start()
            await until(lambda: publisher.is_published)
            proxy.lie(lie)
            await asyncio.sleep(3.0)  # longer than its lease
            assert publisher._task is not None and not publisher._task.done()
            proxy.heal()

            async def is_listed() -> bool:
                items = (await cluster.honest.get_prefix(instance_key(cluster.namespace, "a"))).items
                return bool(items)

            while not (publisher.is_published and await is_listed()):
                await asyncio.sleep(0.05)
            await cluster.close()

    run(scene)


def test_a_slow_etcd_is_waited_for_and_one_that_is_too_slow_is_an_error_in_time(etcd: Etcd) -> None:
    async def scene() -> None:
        async with FaultProxy(etcd.endpoint) as proxy:
            store = EtcdStore([proxy.address], timeout_s=60.0)
            proxy.slow(delay_s=0.3)
            revision = await store.put("/slow/k", b"1")
            assert (await store.get_prefix("/slow/")).revision >= revision
            await store.close()
            hasty = EtcdStore([proxy.address], timeout_s=0.2)
            for call in (
                lambda: hasty.put("/slow/k", b"2"),
                lambda: hasty.get_prefix("/slow/"),
                lambda: hasty.grant_lease(5.0),
                lambda: hasty.try_set("/slow/k", b"3", expected_revision=0),
            ):
                with pytest.raises(RegistryError):
                    await call()
            proxy.heal()
            items: tuple[object, ...] = ()
            while not items:
                with suppress(RegistryError):  # a busy machine may need more than its patience
                    items = (await hasty.get_prefix("/slow/")).items
            await hasty.close()

    run(scene)


def test_a_directory_over_a_half_open_link_goes_on_with_its_view_and_catches_up(etcd: Etcd) -> None:
    async def scene() -> None:
        async with FaultProxy(etcd.endpoint) as proxy:
            cluster = Cluster(etcd, "half-open", proxy)
            for publisher in cluster.publishers:
                publisher.start()
            cluster.directory.start()
            await until(lambda: cluster.known == set(NAMES))
            proxy.hold("down")
            await until(lambda: not cluster.directory.is_connected)
            assert cluster.known == set(NAMES)
            proxy.heal()
            await until(lambda: cluster.directory.is_connected)
            assert not [event for event in cluster.events if event.kind == "removed"]
            await cluster.close()

    run(scene)
