"""Which range a sequence gets, which pages come into it, and what that costs in orders."""

from __future__ import annotations

import pytest

from xllm.engine.cache.block_table import BlockTables
from xllm.engine.cache.kv_cache import KVCache
from xllm.engine.cache.pages.page_pool import PagePool, PageState
from xllm.engine.cache.pages.placement import RangePlacement
from xllm.types.batch import PageOrder
from xllm.types.block_hash import block_hashes, root_hash
from xllm.types.kv_layout import build_attention_layout
from xllm.types.pages import PageGeometry

BLOCK = 4
ROOT = root_hash(block_size=BLOCK)


class Ranges:
    """A cache of virtual ranges with its parts in reach."""

    def __init__(
        self, *, pages: int = 12, ranges: int = 3, per_range: int = 8, mappings: int = 100, ahead: int = 0,
        caching: bool = True,
    ) -> None:  # fmt: skip
        geometry = PageGeometry(
            page_bytes=65536,
            tokens_per_page=BLOCK,
            pages_per_range=per_range,
            num_ranges=ranges,
            max_mappings=mappings,
        )
        layout = build_attention_layout(
            block_size=BLOCK, num_layers=1, num_kv_heads=1, head_dim=2, dtype="float32"
        )
        self.cache = KVCache(
            layout, [pages], enable_prefix_caching=caching, pages=geometry, num_ahead_tokens=ahead
        )
        assert isinstance(self.cache.placement, RangePlacement)
        self.placement = self.cache.placement
        pool = self.cache.pools[0]
        assert isinstance(pool, PagePool)
        self.pool = pool
        self.alive: list[BlockTables] = []

    def admit(self, tokens: list[int], *, commit: bool = False) -> BlockTables:
        tables = self.cache.new_tables(block_hashes(tokens, block_size=BLOCK, root=ROOT))
        copies = self.cache.try_admit(0, tables, self.cache.match(tables, len(tokens)), len(tokens))
        assert copies is not None
        if commit:
            self.cache.commit(self.cache.promise(0, tables, len(tokens)))
        self.alive.append(tables)
        self.cache.check(self.alive)
        return tables

    def free(self, tables: BlockTables) -> None:
        self.alive.remove(tables)
        self.cache.free(tables)
        self.cache.check(self.alive)

    def orders(self) -> list[PageOrder]:
        return list(self.cache.take_page_orders())


def test_growth_maps_the_next_place() -> None:
    ranges = Ranges()
    a = ranges.admit(list(range(6)))
    pages = list(a.groups[0])
    assert ranges.orders() == [PageOrder("map", a.range_id, i, p) for i, p in enumerate(pages)]
    assert ranges.cache.try_grow(a, 8) and ranges.orders() == []
    assert ranges.cache.try_grow(a, 9)
    assert ranges.orders() == [PageOrder("map", a.range_id, 2, a.groups[0][2])]
    assert [ranges.pool.owner_of(p) for p in a.groups[0]] == [a.range_id] * 3


def test_a_finished_range_is_taken_over_without_an_order() -> None:
    ranges = Ranges(caching=False)
    a = ranges.admit(list(range(12)))
    pages, range_id = list(a.groups[0]), a.range_id
    ranges.free(a)
    assert [ranges.pool.state_of(p) for p in pages] == [PageState.REUSABLE] * 3
    ranges.orders()
    b = ranges.admit(list(range(50, 58)))
    assert (b.range_id, b.groups[0]) == (range_id, pages[:2])
    assert ranges.cache.try_grow(b, 12) and b.groups[0] == pages  # what is left over waits for it
    assert ranges.orders() == [] and ranges.placement.num_rebound == 3
    assert ranges.cache.explain(b) == {
        "range": range_id,
        "pages_shared": 0,
        "pages_rebound": 3,
        "pages_mapped": 0,
    }


def test_best_fit_then_extend() -> None:
    ranges = Ranges(caching=False)
    small, large = ranges.admit(list(range(8))), ranges.admit(list(range(20)))
    of_small, of_large = small.range_id, large.range_id
    ranges.free(small)
    ranges.free(large)
    ranges.orders()
    fits = ranges.admit(list(range(7)))
    assert fits.range_id == of_small and ranges.orders() == []  # the smallest that is large enough
    ranges.free(fits)
    longer = ranges.admit(list(range(28)))
    assert longer.range_id == of_large  # none is large enough: the largest, extended
    assert [o.offset for o in ranges.orders()] == [5, 6]


def test_the_longest_common_prefix_stays_where_it_is() -> None:
    ranges = Ranges(pages=30, ranges=4)
    short = ranges.admit([*range(8), 90, 91, 92, 93], commit=True)
    ranges.admit(list(range(200, 212)))
    long = ranges.admit([*range(8), *range(300, 308)], commit=True)
    of_long, pages = long.range_id, list(long.groups[0])
    ranges.free(long)
    ranges.free(short)
    ranges.orders()
    again = ranges.admit([*range(8), *range(300, 304), 7, 7, 7, 7])
    assert again.range_id == of_long and again.groups[0][:3] == pages[:3]
    assert {(o.range_id, o.offset) for o in ranges.orders()} == {(of_long, 3)}  # the page of another content
    assert ranges.pool.num_evicted == 0  # which keeps its content


def test_cached_pages_leave_the_index_only_when_nothing_else_is_left() -> None:
    ranges = Ranges(pages=6, ranges=2, per_range=6)
    a = ranges.admit(list(range(12)), commit=True)
    ranges.free(a)
    b = ranges.admit(list(range(100, 112)), commit=True)
    assert ranges.pool.num_evicted == 0 and ranges.pool.num_unmapped == 0
    ranges.orders()
    c = ranges.admit(list(range(200, 212)))
    assert ranges.pool.num_evicted == 3
    assert ranges.orders() == []  # in the range where they lay
    assert c.range_id != b.range_id


def test_reclaim_is_least_recently_used_and_only_when_free_is_empty() -> None:
    ranges = Ranges(pages=5, ranges=3, caching=False)
    a = ranges.admit(list(range(4)))
    b = ranges.admit(list(range(4)))
    old, newer = a.groups[0][0], b.groups[0][0]
    ranges.free(a)
    c = ranges.admit(list(range(4)))
    assert c.groups[0] == [old]
    ranges.free(b)
    ranges.orders()
    assert ranges.cache.try_grow(c, 16)  # three free ones, b's stays
    assert {o.kind for o in ranges.orders()} == {"map"} and ranges.pool.num_reclaimed == 0
    assert ranges.cache.try_grow(c, 20)
    orders = ranges.orders()
    assert [(o.kind, o.page) for o in orders] == [("unmap", newer), ("map", newer)]
    assert ranges.pool.num_reclaimed == 1


def test_a_page_lies_in_several_ranges() -> None:
    ranges = Ranges()
    a = ranges.admit(list(range(10)), commit=True)
    b = ranges.admit([*range(8), 60, 61])
    shared = a.groups[0][:2]
    assert b.groups[0][:2] == shared
    assert [ranges.pool.num_mappings_of(p) for p in shared] == [2, 2]
    assert [ranges.pool.owner_of(p) for p in shared] == [a.range_id] * 2  # who wrote them
    ranges.free(a)
    assert [ranges.pool.state_of(p) for p in shared] == [PageState.MAPPED] * 2


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_what_the_next_steps_need_is_mapped_ahead(ahead: int) -> None:
    ranges = Ranges(ahead=ahead, caching=False)
    a = ranges.admit(list(range(4)))
    assert [o.is_ahead for o in ranges.orders()] == ([False, True] if ahead else [False])
    assert len(a.groups[0]) == (2 if ahead else 1)
    for num_tokens in range(5, 13):
        ranges.cache.try_grow(a, num_tokens)
        assert len(a.groups[0]) == -(-(num_tokens + ahead) // BLOCK)
        assert all(o.is_ahead == (ahead > 0) for o in ranges.orders())


def test_looking_ahead_takes_nothing_from_others() -> None:
    ranges = Ranges(pages=3, ahead=1)
    a = ranges.admit(list(range(4)), commit=True)
    ranges.free(a)
    b = ranges.admit(list(range(100, 108)))
    assert len(b.groups[0]) == 2 and ranges.pool.num_evicted == 0  # the third page is cached, not free
    assert ranges.pool.num_cached == 1


def test_looking_ahead_ends_with_the_range() -> None:
    ranges = Ranges(per_range=2, ahead=1)
    assert len(ranges.admit(list(range(8))).groups[0]) == 2


def test_the_mapping_limit_binds_and_idle_ranges_give_way() -> None:
    ranges = Ranges(pages=12, ranges=3, per_range=4, mappings=6, caching=False)
    a, b = ranges.admit(list(range(12))), ranges.admit(list(range(12)))
    assert ranges.placement.book.num_mappings == 6
    c = ranges.cache.new_tables()
    assert (
        ranges.cache.try_admit(0, c, ranges.cache.no_hit, 4) is None
    )  # pages there are, mappings there are not
    assert not ranges.cache.try_grow(b, 16)
    ranges.free(a)
    ranges.orders()
    assert ranges.cache.try_grow(b, 16)
    assert [o.kind for o in ranges.orders()] == ["unmap", "map"]
    assert ranges.placement.book.num_mappings == 6
    ranges.cache.check(ranges.alive)
