"""Odd members of a registry: strange names, addresses that are none, other blocks, other weights. Said once, used never."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import structs

from tests.fakes.served_engine import ServedEngine, make_request, served_engine, until
from tests.unit.service.test_service import Parts, Sink
from xllm.registry.directory import Directory
from xllm.registry.local import LocalStore
from xllm.registry.records import PublishedInstance, encode_record, instance_key, instances_prefix
from xllm.types.instance import HealthReport

NOBODY = HealthReport(state="joining", step=0, layers_done=0, num_unfinished=0, idle_s=0.0)


class Scene:
    """A service over a store with one honest engine."""

    def __init__(self, parts: Parts, store: LocalStore, directory: Directory, engine: ServedEngine) -> None:
        self.parts, self.store, self.directory, self.engine = parts, store, directory, engine

    async def put(self, key: str, **fields: Any) -> None:
        honest = self.engine.server.info()
        info = structs.replace(
            honest, **{"id": key, "incarnation": "odd", "address": self.engine.address} | fields
        )
        await self.store.put(instance_key("t", key), encode_record(PublishedInstance(info=info)))

    async def is_served(self) -> None:
        sink = Sink()
        await self.parts.service.submit(make_request("r", 4), sink)
        await until(lambda: bool(sink.reasons))
        assert sink.tokens == [3, 4, 5, 6] and sink.reasons == ["length"]

    @property
    def states(self) -> dict[str, str]:
        return {name: report.state for name, report in self.parts.service.health().instances.items()}


@asynccontextmanager
async def scene_with_one_engine() -> AsyncIterator[Scene]:
    async with served_engine() as engine:
        parts, store = Parts(), LocalStore()
        directory = Directory(store, instances_prefix("t"), reconcile_s=0.05)
        parts.service._registry = directory  # type: ignore[assignment]
        scene = Scene(parts, store, directory, engine)
        info = structs.replace(engine.server.info(), id="good", address=engine.address)
        await store.put(instance_key("t", "good"), encode_record(PublishedInstance(info=info)))
        directory.start()
        try:
            await parts.service.start(100.0)
            yield scene
        finally:
            await parts.service.close()
            await directory.close()
            await store.close()


def run(scene: Callable[[Scene], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(240), scene_with_one_engine() as found:
            await scene(found)

    asyncio.run(bounded())


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("block size", {"block_size": 64}),
        ("hash version", {"hash_version": 9}),
        ("vocabulary", {"vocab_size": 7}),
    ],
)
def test_an_instance_that_names_blocks_otherwise_is_refused_with_the_reason_once(
    name: str, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(found: Scene) -> None:
        await found.put("odd", **fields)
        await until(lambda: found.states.get("odd") == "refused")
        await asyncio.sleep(0.3)  # several lists later
        report = found.parts.service.health().instances["odd"]
        assert next(iter(fields)) in report.message
        await found.is_served()
        assert set(found.parts.service._connections.clients) == {"good"}

    run(scene)
    assert len([text for text in caplog.messages if "odd is refused" in text]) == 1


def test_another_revision_is_another_group_and_gets_nothing() -> None:
    async def scene(found: Scene) -> None:
        found.parts.cluster._may_serve = lambda info: not info.revision
        await found.put("odd", revision="other")
        await until(lambda: "odd" in found.states)
        for _ in range(6):
            await found.is_served()
        assert found.parts.cluster.get("odd").num_routed == 0  # type: ignore[union-attr]

    run(scene)


@pytest.mark.parametrize(
    "address", ["", "foo", "unix:relative", "host:99999999", "127.0.0.1:1", "[::1", "\x00:1", "a b:2"]
)
def test_an_address_that_is_none_is_said_once(address: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(found: Scene) -> None:
        await found.put("odd", address=address)
        await until(lambda: found.states.get("odd") == "lost")
        await asyncio.sleep(0.5)  # several vain tries later
        await found.is_served()

    run(scene)
    assert len([text for text in caplog.messages if text.startswith("instance odd:")]) == 1, caplog.messages


def test_another_incarnation_under_a_published_address_is_no_member(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(found: Scene) -> None:
        await found.put("odd", incarnation="somebody else")
        await until(
            lambda: "another incarnation" in found.parts.service.health().instances.get("odd", NOBODY).message
        )
        await asyncio.sleep(0.5)  # several vain tries later
        await found.is_served()

    run(scene)
    assert len([text for text in caplog.messages if text.startswith("instance odd:")]) == 1, caplog.messages
    assert not [
        text for text in caplog.messages if text.startswith("instance good:") and "closed by us" not in text
    ]


@pytest.mark.parametrize("key", ["x/good", "good/", "../good", "/good", "deep/er/good"])
def test_a_record_under_another_path_does_not_speak_for_a_name(key: str) -> None:
    async def scene(found: Scene) -> None:
        events: list[Any] = []
        found.directory.watch(events.append)
        before = len(events)
        await found.put(key, id="good", incarnation="forged")
        await asyncio.sleep(0.4)  # several lists later
        assert events[before:] == []
        await found.is_served()

    run(scene)


def test_who_answers_counts_and_not_what_was_published_of_it() -> None:
    async def scene(found: Scene) -> None:
        async with served_engine() as other:
            other.server._info = structs.replace(other.server._info, block_size=64, incarnation="liar")
            await found.put("odd", incarnation="liar", address=other.address)
            await until(
                lambda: "block_size 64" in found.parts.service.health().instances.get("odd", NOBODY).message
            )
            for _ in range(4):
                await found.is_served()
            assert set(found.parts.service._connections.clients) == {"good"}

    run(scene)
