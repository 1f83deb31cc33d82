"""The embedded store under a manual clock and random operations."""

from __future__ import annotations

import random

import pytest

from xllm.base.clock import ManualClock
from xllm.errors import LeaseExpired
from xllm.registry.memory_store import MemoryStore
from xllm.types.store import StoreEvent


def test_leases_end_by_the_clock_alone() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    assert store.next_expiry_in_s() is None
    lease = store.grant_lease(5.0)
    store.put("k", b"1", lease=lease.id)
    clock.advance(4.9)
    assert store.next_expiry_in_s() == pytest.approx(0.1)
    store.keep_alive(lease.id)
    clock.advance(4.9)
    assert store.get_prefix("").items
    clock.advance(0.2)
    assert not store.get_prefix("").items
    with pytest.raises(LeaseExpired):
        store.keep_alive(lease.id)
    assert store.next_expiry_in_s() is None


@pytest.mark.parametrize("seed", range(5))
def test_random_operations_keep_the_invariants_and_a_follower_sees_the_same(seed: int) -> None:
    rng = random.Random(seed)
    clock = ManualClock()
    store = MemoryStore(clock, max_events=50)
    mirror: dict[str, bytes] = {}

    def follow(events: tuple[StoreEvent, ...]) -> None:
        for event in events:
            if event.kind == "put":
                mirror[event.item.key] = event.item.value
            else:
                del mirror[event.item.key]

    store.watch("k", 0, follow)
    leases = [store.grant_lease(3.0).id]
    for step in range(600):
        key = f"k{rng.randrange(8)}"
        lease = rng.choice([0, rng.choice(leases)])
        try:
            match rng.randrange(6):
                case 0:
                    store.put(key, str(step).encode(), lease=lease)
                case 1:
                    found = store.get_prefix(key).items
                    revision = found[0].revision if found else rng.choice([0, 1])
                    value = rng.choice([None, b"cas"])
                    store.try_set(key, value, expected_revision=revision, lease=lease)
                case 2:
                    leases.append(store.grant_lease(rng.uniform(0.5, 5.0)).id)
                case 3:
                    store.keep_alive(rng.choice(leases))
                case 4:
                    store.revoke_lease(rng.choice(leases))
                case 5:
                    clock.advance(rng.uniform(0.0, 0.5))
        except LeaseExpired:
            pass
        store.expire()
        store.check()
        assert mirror == {item.key: item.value for item in store.get_prefix("").items}
