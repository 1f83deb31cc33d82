"""One holder at a time: deaths, outages, lost answers, many candidates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.fakes.scenes import run_leaving_no_task as run
from xllm.base.clock import ManualClock, MonotonicClock
from xllm.errors import RegistryError
from xllm.registry.local import LocalStore
from xllm.service.election import MARGIN, Election, Tenure

KEY = "/t/leaders/duty"
TTL_S = 1.0
LONG_S = 6.0
"""Where nobody waits for a lease to end: longer than a machine stands still."""


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.002)


class FlakyStore(LocalStore):
    """Cut off on demand; ``loses_answer``: the next compare-and-set happens, but nobody hears of it."""

    is_cut = False
    loses_answer = False

    async def get_prefix(self, prefix: str):  # type: ignore[no-untyped-def]
        self._check()
        return await super().get_prefix(prefix)

    async def keep_alive(self, lease: int):  # type: ignore[no-untyped-def]
        self._check()
        return await super().keep_alive(lease)

    async def try_set(self, key: str, value: bytes | None, *, expected_revision: int, lease: int = 0):  # type: ignore[no-untyped-def]
        self._check()
        revision = await super().try_set(key, value, expected_revision=expected_revision, lease=lease)
        if self.loses_answer:
            self.loses_answer = False
            raise RegistryError("the answer was lost")
        return revision

    def _check(self) -> None:
        if self.is_cut:
            raise RegistryError("cut off")


def candidate(
    store: LocalStore, name: str, told: list[bool] | None = None, *, ttl_s: float = LONG_S
) -> Election:
    election = Election(
        store,
        KEY,
        name,
        ttl_s=ttl_s,
        clock=MonotonicClock(),
        on_change=(told if told is not None else []).append,
    )
    election.start()
    return election


def test_a_tenure_ends_by_the_clock_before_the_lease_does() -> None:
    clock = ManualClock()
    tenure = Tenure(clock)
    assert not tenure.is_held
    tenure.on_won(7, asked_s=clock.now(), ttl_s=10.0)
    clock.advance(10.0 * (1 - MARGIN) - 0.01)
    assert tenure.is_held and tenure.term == 7
    clock.advance(0.02)
    assert not tenure.is_held
    tenure.on_renewed(asked_s=clock.now() - 1.0, ttl_s=10.0)
    clock.advance(10.0 * (1 - MARGIN) - 1.01)
    assert tenure.is_held
    clock.advance(0.02)
    assert not tenure.is_held


def test_of_many_one_leads_and_when_it_leaves_another_follows_with_a_later_term() -> None:
    async def scene() -> None:
        store = LocalStore()
        candidates = [candidate(store, f"c{n}") for n in range(5)]
        terms = []
        while candidates:
            await until(lambda: any(c.is_leader for c in candidates))
            for _ in range(20):
                assert sum(c.is_leader for c in candidates) <= 1
                await asyncio.sleep(0.002)
            (leader,) = [c for c in candidates if c.is_leader]
            terms.append(leader.term)
            (item,) = (await store.get_prefix(KEY)).items
            assert item.revision == leader.term
            candidates.remove(leader)
            await leader.close()
            assert not leader.is_leader and leader.term is None
        assert all(term is not None for term in terms) and terms == sorted(set(terms))  # type: ignore[type-var]
        await store.close()

    run(scene)


def test_a_leader_that_just_dies_is_followed_within_its_lease() -> None:
    async def scene() -> None:
        store = LocalStore()
        dead = candidate(store, "dead", ttl_s=TTL_S)
        await until(lambda: dead.is_leader)
        heir = candidate(store, "heir", ttl_s=TTL_S)
        assert dead._task is not None
        dead._task.cancel()
        while not heir.is_leader:
            assert not (dead.is_leader and heir.is_leader)
            await asyncio.sleep(0.002)
        assert not dead.is_leader, "it stepped down by its own clock"
        await dead.close()
        await heir.close()
        await store.close()

    run(scene)


def test_cut_off_it_steps_down_in_time_and_leads_again_later() -> None:
    async def scene() -> None:
        store = FlakyStore()
        told: list[bool] = []
        election = candidate(store, "c", told, ttl_s=TTL_S)
        await until(lambda: election.is_leader)
        store.is_cut = True
        await until(lambda: not election.is_leader)
        await until(lambda: not store.state.get_prefix(KEY).items)
        store.is_cut = False
        await until(lambda: election.is_leader)
        # Gains and losses in turn; a machine that stood still may have made it lose and gain once more.
        assert len(told) >= 3 and told == [number % 2 == 0 for number in range(len(told))]
        await election.close()
        assert not told[-1] and told == [number % 2 == 0 for number in range(len(told))]
        await store.close()

    run(scene)


def test_a_win_whose_answer_was_lost_is_found_out() -> None:
    async def scene() -> None:
        store = FlakyStore()
        store.loses_answer = True
        election = candidate(store, "c")
        await until(lambda: election.is_leader)
        assert not store.loses_answer
        assert election.term == store.state.get_prefix(KEY).items[0].revision
        await election.close()
        await store.close()

    run(scene)


def test_who_finds_its_key_taken_away_steps_down() -> None:
    async def scene() -> None:
        store = LocalStore()
        told: list[bool] = []
        election = candidate(store, "c", told)
        await until(lambda: election.is_leader)
        await store.put(KEY, b"usurper")
        await until(lambda: told == [True, False])
        assert not election.is_leader
        await election.close()
        assert store.state.get_prefix(KEY).items[0].value == b"usurper"
        await store.close()

    run(scene)
