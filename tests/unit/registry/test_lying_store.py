"""A registry that lies: it refuses, forgets or promises at will. It is not hammered, and nobody leads for too long."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.scenes import run
from xllm.base.clock import MonotonicClock
from xllm.errors import LeaseExpired, RegistryError
from xllm.registry.local import LocalStore
from xllm.registry.publisher import Publisher
from xllm.service.election import Election
from xllm.types.store import Lease, Snapshot

KEY = "/t/instances/a"
WATCHED_S = 1.0
MOST_CALLS = 200
"""In ``WATCHED_S``; whoever does not pause makes thousands."""


class LyingStore(LocalStore):
    """Every lie can be switched on; calls are counted."""

    refuses_writes = False
    forgets_leases = False
    hides_keys = False
    promised_s: float | None = None
    num_calls = 0

    async def try_set(
        self, key: str, value: bytes | None, *, expected_revision: int, lease: int = 0
    ) -> int | None:
        self.num_calls += 1
        if self.forgets_leases:
            raise LeaseExpired("lease not found")
        if self.refuses_writes:
            return None
        return await super().try_set(key, value, expected_revision=expected_revision, lease=lease)

    async def get_prefix(self, prefix: str) -> Snapshot:
        self.num_calls += 1
        found = await super().get_prefix(prefix)
        return Snapshot(revision=found.revision, items=()) if self.hides_keys else found

    async def grant_lease(self, ttl_s: float) -> Lease:
        self.num_calls += 1
        return self._promise(await super().grant_lease(ttl_s))

    async def keep_alive(self, lease: int) -> Lease:
        self.num_calls += 1
        if self.forgets_leases:
            raise LeaseExpired("lease not found")
        return self._promise(await super().keep_alive(lease))

    def _promise(self, lease: Lease) -> Lease:
        return lease if self.promised_s is None else Lease(id=lease.id, ttl_s=self.promised_s)


LIES = {
    "refuses writes": {"refuses_writes": True},
    "forgets leases": {"forgets_leases": True},
    "hides keys": {"hides_keys": True},
    "refuses and hides": {"refuses_writes": True, "hides_keys": True},
}


def publisher(store: LocalStore) -> Publisher:
    return Publisher(
        store, KEY, b"mine", ttl_s=2.0, is_mine=lambda value: value == b"mine", on_clash=lambda message: None
    )


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_registry_is_not_hammered_and_believed_again_when_it_is_honest(lie: str) -> None:
    async def scene() -> None:
        store = LyingStore()
        for name, value in LIES[lie].items():
            setattr(store, name, value)
        publishing = publisher(store)
        publishing.start()
        election = Election(store, "/t/leaders/x", "a", ttl_s=2.0, clock=MonotonicClock())
        election.start()
        await asyncio.sleep(WATCHED_S)
        assert store.num_calls <= MOST_CALLS
        for name in LIES[lie]:
            setattr(store, name, False)
        while not (publishing.is_published and election.is_leader):
            await asyncio.sleep(0.01)
        await election.close()
        await publishing.close()
        await store.close()

    run(scene)


def test_a_lease_that_is_promised_for_years_makes_no_leader_for_years() -> None:
    async def scene() -> None:
        store = LyingStore()
        store.promised_s = 1e9
        election = Election(store, "/t/leaders/x", "a", ttl_s=1.0, clock=MonotonicClock())
        election.start()
        while not election.is_leader:
            await asyncio.sleep(0.01)

        async def cut(*_: object, **__: object) -> Lease:
            raise RegistryError("cut off")

        store.keep_alive = cut  # type: ignore[method-assign]
        while election.is_leader:  # bounded by the test
            await asyncio.sleep(0.01)
        await election.close()
        await store.close()

    run(scene)
