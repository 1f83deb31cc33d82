"""States of physical pages: who may have which, and in which order they are given away."""

from __future__ import annotations

import pytest

from xllm.engine.cache.pages.page_pool import NOBODY, PagePool, PageState
from xllm.errors import InternalError
from xllm.types.ids import BlockHash

ONE, TWO = BlockHash(b"1" * 16), BlockHash(b"2" * 16)


def make(total: int = 4) -> tuple[PagePool, list[int]]:
    evicted: list[int] = []
    pool = PagePool(total, lambda name, page: evicted.append(page))
    pool.on_reclaim(
        lambda page: [pool.drop_mapping(page) for _ in range(pool.num_mappings_of(page))] and None
    )
    return pool, evicted


def take(pool: PagePool, count: int, *, is_mapped: bool = True) -> list[int]:
    pages = pool.try_allocate(count)
    assert pages is not None
    for page in pages:
        assert pool.state_of(page) is PageState.ALLOCATED
        if is_mapped:
            pool.add_mapping(page)
            pool.set_owner(page, 0)
            assert pool.state_of(page) is PageState.MAPPED
    return pages


def test_free_allocated_mapped_reusable_free() -> None:
    pool, _ = make()
    assert [pool.state_of(p) for p in range(4)] == [PageState.FREE] * 4
    (page,) = take(pool, 1)
    pool.release([page])
    assert pool.state_of(page) is PageState.REUSABLE and pool.owner_of(page) == 0
    assert (pool.num_free, pool.num_unmapped, pool.num_spare) == (4, 3, 1)
    pool.drop_mapping(page)
    assert pool.state_of(page) is PageState.FREE and pool.owner_of(page) == NOBODY
    pool.check({})


def test_a_page_that_was_never_mapped_is_free_at_once() -> None:
    pool, _ = make()
    (page,) = take(pool, 1, is_mapped=False)
    pool.release([page])
    assert pool.state_of(page) is PageState.FREE


def test_a_named_page_is_reusable_without_a_mapping() -> None:
    pool, evicted = make()
    (page,) = take(pool, 1)
    pool.name(page, ONE)
    pool.release([page])
    pool.drop_mapping(page)
    assert pool.state_of(page) is PageState.REUSABLE and pool.num_cached == 1
    pool.acquire(page)
    assert pool.state_of(page) is PageState.ALLOCATED
    pool.release([page])
    pool.forget(page)
    assert pool.state_of(page) is PageState.FREE and not evicted


def test_free_before_spare_before_cached_and_each_least_recently_used() -> None:
    pool, evicted = make(6)
    pages = take(pool, 5)
    pool.name(pages[0], ONE)
    pool.name(pages[1], TWO)
    pool.release(pages)  # cached: 0, 1; spare: 2, 3, 4; one is free
    pool.touch(pages[2])
    got = [take(pool, 1, is_mapped=False)[0] for _ in range(6)]
    assert got[1:] == [pages[3], pages[4], pages[2], pages[0], pages[1]]
    assert evicted == [pages[0], pages[1]] and pool.num_reclaimed == 5 and pool.num_evicted == 2
    assert pool.try_allocate(1) is None


def test_adoption_takes_a_page_where_it_is() -> None:
    pool, evicted = make()
    first, second = take(pool, 2)
    pool.name(second, ONE)
    pool.release([first, second])
    pool.adopt(first)
    pool.adopt(second)
    assert evicted == [second] and pool.hash_of(second) is None
    assert pool.state_of(first) is pool.state_of(second) is PageState.MAPPED
    pool.check({first: 1, second: 1})


@pytest.mark.parametrize("damage", ["reference", "mapping", "name", "free twice"])
def test_check_finds_damage(damage: str) -> None:
    pool, _ = make()
    (page,) = take(pool, 1)
    pool.check({page: 1})
    if damage == "reference":
        pool.acquire(page)
    elif damage == "mapping":
        pool.release([page])
        pool._mappings[page] = 0
    elif damage == "name":
        (other,) = take(pool, 1)
        pool.name(page, ONE)
        pool.name(other, ONE)
    else:
        pool._free.append(pool._free[0])
    with pytest.raises(InternalError):
        pool.check({page: 1} if damage != "mapping" else {})
