"""What the scheduler may rely on, whatever the memory layout: one suite over both of KVCache's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xllm.engine.cache.block_table import BlockTables
from xllm.engine.cache.kv_cache import KVCache
from xllm.types.block_hash import block_hashes, root_hash
from xllm.types.kv_layout import build_attention_layout
from xllm.types.pages import PageGeometry

BLOCK, BLOCKS, RANGES, PER_RANGE = 4, 12, 3, 8
ROOT = root_hash(block_size=BLOCK)
LAYOUT = build_attention_layout(block_size=BLOCK, num_layers=1, num_kv_heads=1, head_dim=2, dtype="float32")


class Driver:
    """A cache and the sequences that live in it; every step is checked."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.alive: list[BlockTables] = []
        self.next_seq = 0

    @property
    def pool(self) -> tuple[int, int, int, int]:
        pool = self.cache.pools[0]
        assert (
            pool.num_free + pool.num_used + pool.num_cached + pool.num_leased + pool.num_pinned == pool.total
        )
        return pool.num_free, pool.num_used, pool.num_cached, pool.num_available

    def admit(self, tokens: list[int], num_tokens: int | None = None) -> BlockTables | None:
        """A sequence with these tokens and room for all of them, promised but not committed."""
        tables = self.cache.new_tables(block_hashes(tokens, block_size=BLOCK, root=ROOT))
        hit = self.cache.match(tables, len(tokens))
        copies = self.cache.try_admit(self.next_seq, tables, hit, num_tokens or len(tokens))
        if copies is None:
            assert tables.num_blocks == 0 and tables.range_id == -1
            self.check()
            return None
        self.alive.append(tables)
        self.check()
        self.next_seq += 1
        return tables

    def commit(self, tables: BlockTables, num_tokens: int) -> None:
        self.cache.commit(self.cache.promise(0, tables, num_tokens))
        self.check()

    def free(self, tables: BlockTables) -> None:
        self.alive.remove(tables)
        self.cache.free(tables)
        self.check()

    def check(self) -> None:
        self.cache.check(self.alive)


@pytest.fixture(params=["paged", "xtensor"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(layout: str) -> Callable[..., Driver]:
    def build(*, caching: bool = True, ahead: int = 0) -> Driver:
        pages = None
        if layout == "xtensor":
            pages = PageGeometry(
                page_bytes=65536,
                tokens_per_page=BLOCK,
                pages_per_range=PER_RANGE,
                num_ranges=RANGES,
                max_mappings=24,
            )
        cache = KVCache(LAYOUT, [BLOCKS], enable_prefix_caching=caching, pages=pages, num_ahead_tokens=ahead)
        return Driver(cache)

    return build


def test_blocks_come_and_go(make: Callable[..., Driver]) -> None:
    driver = make(caching=False)
    a = driver.admit(list(range(9)))
    assert a is not None and len(a.groups[0]) == 3 and driver.pool == (9, 3, 0, 9)
    assert driver.cache.try_grow(a, 17) and len(a.groups[0]) == 5
    assert driver.cache.num_tokens_covered(a) == 20
    driver.check()
    driver.free(a)
    assert driver.pool == (12, 0, 0, 12)


def test_nothing_changes_when_there_is_not_enough(make: Callable[..., Driver]) -> None:
    driver = make(caching=False)
    a, b = driver.admit(list(range(30))), driver.admit(list(range(12)))
    assert a is not None and b is not None
    before = list(a.groups[0]), driver.pool
    assert not driver.cache.try_grow(a, 32 + 8)  # one block is left, two are wanted
    assert (list(a.groups[0]), driver.pool) == before
    assert driver.admit(list(range(100, 108))) is None
    assert driver.pool == before[1]


def test_a_hit_shares_whole_blocks(make: Callable[..., Driver]) -> None:
    driver = make()
    a = driver.admit(list(range(10)))
    assert a is not None
    driver.commit(a, 10)
    b = driver.admit([*range(8), 50, 51])
    assert b is not None and b.groups[0][:2] == a.groups[0][:2] and b.groups[0][2] != a.groups[0][2]
    assert [driver.cache.pools[0].ref_count(p) for p in b.groups[0]] == [2, 2, 1]
    driver.free(a)
    driver.free(b)
    assert driver.pool == (10, 0, 2, 12)


def test_a_whole_hit_copies_its_last_block(make: Callable[..., Driver]) -> None:
    driver = make()
    a = driver.admit(list(range(8)))
    assert a is not None
    driver.commit(a, 8)
    tables = driver.cache.new_tables(block_hashes(list(range(8)), block_size=BLOCK, root=ROOT))
    hit = driver.cache.match(tables, 8)
    assert hit.copy_last and hit.num_tokens == 7
    copies = driver.cache.try_admit(9, tables, hit, 8)
    assert copies is not None and len(copies) == 1
    assert (copies[0].source, copies[0].target) == (a.groups[0][1], tables.groups[0][1])
    driver.alive.append(tables)
    driver.check()


def test_forks_share_and_are_placed_when_they_grow(make: Callable[..., Driver], layout: str) -> None:
    driver = make()
    parent = driver.admit(list(range(10)))
    assert parent is not None
    fork = driver.cache.try_fork(parent, 9)
    assert fork is not None
    child, copies = fork
    driver.alive.append(child)
    driver.check()
    assert child.groups[0][:2] == parent.groups[0][:2]
    assert [(c.source, c.target, c.num_slots) for c in copies] == [
        (parent.groups[0][2], child.groups[0][2], 1)
    ]
    assert child.range_id == -1
    assert driver.cache.try_grow(child, 10)
    driver.check()
    assert (child.range_id >= 0) == (layout == "xtensor")
    driver.free(parent)
    driver.free(child)


def test_retraction_takes_names_away(make: Callable[..., Driver]) -> None:
    driver = make()
    a = driver.admit(list(range(8)))
    assert a is not None
    promises = driver.cache.promise(0, a, 8)
    b = driver.admit([*range(8), 9])  # relies on what is only promised
    assert b is not None and b.groups[0][:2] == a.groups[0]
    assert driver.cache.retract(promises) == {1}
    driver.check()
    driver.free(a)
    driver.free(b)
    assert driver.pool == (12, 0, 0, 12)


def test_cached_blocks_are_evicted_least_recently_used_first(make: Callable[..., Driver]) -> None:
    driver = make()
    for start in (0, 100, 200):
        tables = driver.admit(list(range(start, start + 16)))
        assert tables is not None
        driver.commit(tables, 16)
        driver.free(tables)
    assert driver.pool == (0, 0, 12, 12)
    big = driver.admit(list(range(900, 920)))
    assert big is not None
    found = [
        driver.cache.match(
            driver.cache.new_tables(block_hashes(list(range(s, s + 16)), block_size=BLOCK, root=ROOT)), 16
        ).num_tokens
        for s in (0, 100, 200)
    ]
    assert sum(found) == 7 * BLOCK - 1 and found[2] == 15 and found[0] == 0


def test_room_is_what_admission_can_count_on(make: Callable[..., Driver]) -> None:
    driver = make()
    assert driver.cache.room_after(driver.cache.no_hit, 24) == 0.5
    a = driver.admit(list(range(8)))
    assert a is not None
    driver.commit(a, 8)
    tables = driver.cache.new_tables(block_hashes([*range(8), 1, 2, 3, 4], block_size=BLOCK, root=ROOT))
    hit = driver.cache.match(tables, 12)
    assert driver.cache.room_after(hit, 12) == 9 / 12  # two of the three blocks are there and in use
    driver.free(a)
    assert driver.cache.room_after(hit, 12) == 9 / 12  # and now they would stop being available


def test_forgetting_prefixes_frees_them(make: Callable[..., Driver]) -> None:
    driver = make()
    a = driver.admit(list(range(8)))
    assert a is not None
    driver.commit(a, 8)
    driver.free(a)
    assert driver.cache.reset_prefixes() == 2
    driver.check()
    assert driver.pool == (12, 0, 0, 12)


def test_a_lone_sequence_can_always_run(make: Callable[..., Driver]) -> None:
    """After any history, memory that nobody uses is available to one."""
    driver = make()
    for start in (0, 100, 200, 300, 400):
        tables = driver.admit(list(range(start, start + 20)))
        assert tables is not None
        driver.commit(tables, 20)
        driver.free(tables)
    lone = driver.admit(list(range(900, 932)))
    assert lone is not None and len(lone.groups[0]) == PER_RANGE
