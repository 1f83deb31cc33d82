"""Placement: where the blocks of a sequence come from and lie. The hole of the cache for memory layouts.

PlainPlacement: any free block will do; block tables say where. RangePlacement: the sequence gets a virtual range, and
its pages are mapped there one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from xllm.engine.cache.block_table import BlockTables
from xllm.engine.cache.pages.page_pool import NOBODY, PagePool
from xllm.engine.cache.pages.range_book import RangeBook
from xllm.engine.cache.pool import Pool
from xllm.types.batch import PageOrder
from xllm.types.ids import BlockId
from xllm.types.pages import PageGeometry

MAX_CANDIDATES = 64
"""Idle ranges looked at when one is chosen, least recently used first."""


class Placement(Protocol):
    """What KVCache asks. ``kept`` and ``needs`` are per KV group."""

    def is_placed(self, tables: BlockTables) -> bool:
        """Whether the sequence has a place for its blocks."""
        ...

    def try_take(
        self, tables: BlockTables, kept: Sequence[Sequence[BlockId]], needs: Sequence[int]
    ) -> list[list[BlockId]] | None:
        """``needs`` fresh blocks that follow the ``kept`` ones, in a place of the sequence; the caller extends the
        table. None: there is not enough, and nothing changed."""
        ...

    def look_ahead(self, tables: BlockTables, num_tokens: int) -> None:
        """The sequence will have ``num_tokens`` tokens: prepare what the steps after that need."""

    def leave(self, tables: BlockTables) -> None:
        """The sequence gives up its place; its blocks are released separately."""

    def take_orders(self) -> tuple[PageOrder, ...]:
        """What the body has to map and unmap, since the last call."""
        ...

    def explain(self, tables: BlockTables) -> dict[str, int]:
        """How the sequence was placed, for the decision trace."""
        ...

    def check(self, all_tables: Iterable[BlockTables]) -> None:
        """Raise InternalError when an invariant broke."""


class PlainPlacement:
    """Blocks of block tables lie anywhere."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = pools

    def is_placed(self, tables: BlockTables) -> bool:
        """Nothing more is needed."""
        return True

    def try_take(
        self, tables: BlockTables, kept: Sequence[Sequence[BlockId]], needs: Sequence[int]
    ) -> list[list[BlockId]] | None:
        """All groups or none."""
        return try_allocate_all(self._pools, needs)

    def look_ahead(self, tables: BlockTables, num_tokens: int) -> None:
        """A block is there when it is allocated."""

    def leave(self, tables: BlockTables) -> None:
        """Nothing to leave."""

    def take_orders(self) -> tuple[PageOrder, ...]:
        """Nothing is mapped."""
        return ()

    def explain(self, tables: BlockTables) -> dict[str, int]:
        """Nothing to say."""
        return {}

    def check(self, all_tables: Iterable[BlockTables]) -> None:
        """Nothing to verify."""


def try_allocate_all(pools: Sequence[Pool], needs: Sequence[int]) -> list[list[BlockId]] | None:
    """``needs`` blocks of every group, or None when a group has not so many."""
    if any(n > p.num_available for n, p in zip(needs, pools, strict=True)):
        return None
    out = []
    for need, pool in zip(needs, pools, strict=True):
        blocks = pool.try_allocate(max(need, 0))
        assert blocks is not None
        out.append(blocks)
    return out


class RangePlacement:
    """Virtual ranges over the pages of one KV group.

    Which range a newcomer gets: the idle one that shares the longest prefix with it (those pages stay where they are);
    else the one with most pages he can take where they lie, of these the smallest (best fit, then extend); else the
    least recently used. Which page comes to an offset: the spare one that lies there (no order at all), a free one, the
    least recently used spare one, a cached one - which leaves the prefix index - and of these the one that lies there.
    """

    def __init__(self, pool: PagePool, geometry: PageGeometry, *, num_ahead_tokens: int) -> None:
        self.book = RangeBook(pool, geometry)
        self.num_rebound = 0
        """Pages taken over where they lay: neither mapped nor unmapped."""
        self.num_shared = 0
        """Pages of prefix hits and forks that came into a range."""
        self.num_ahead = 0
        """Pages prepared before the step that needs them was planned."""
        self._pool = pool
        self._num_ahead_tokens = num_ahead_tokens
        self._tokens_per_page = geometry.tokens_per_page
        self._pages_per_range = geometry.pages_per_range
        pool.on_reclaim(self.book.unmap_page)

    def is_placed(self, tables: BlockTables) -> bool:
        """Whether it has a range; a fork that waits has none."""
        return tables.range_id >= 0

    def try_take(
        self, tables: BlockTables, kept: Sequence[Sequence[BlockId]], needs: Sequence[int]
    ) -> list[list[BlockId]] | None:
        """See :class:`Placement`."""
        pages, need = kept[0], max(needs[0], 0)
        book, pool = self.book, self._pool
        if need > pool.num_available:
            return None
        is_new = tables.range_id < 0
        range_id = self._choose(pages, need) if is_new else tables.range_id
        first = 0 if is_new else len(pages)
        added = sum(1 for o in range(first, len(pages) + need) if book.page_at(range_id, o) is None)
        if not book.make_room(added, but=range_id):
            return None
        if is_new:
            book.move_in(range_id, tables)
            tables.num_rebound = tables.num_mapped = 0
            tables.num_shared = len(pages)
            self.num_shared += len(pages)
            for offset, page in enumerate(pages):
                self._put(tables, offset, page)
        return [self._fill(tables, len(pages), need)]

    def look_ahead(self, tables: BlockTables, num_tokens: int) -> None:
        """Extend the table; the new pages may be mapped while the step runs.

        Cached pages are taken too, as the next step would take them, while one is left for every running sequence.
        """
        table = tables.groups[0]
        want = min(-(-(num_tokens + self._num_ahead_tokens) // self._tokens_per_page), self._pages_per_range)
        while len(table) < want and self._may_look_ahead(tables):
            table.extend(self._fill(tables, len(table), 1, is_ahead=True))
            self.num_ahead += 1

    def _may_look_ahead(self, tables: BlockTables) -> bool:
        page = self.book.page_at(tables.range_id, len(tables.groups[0]))
        if page is not None and self._pool.is_spare(page):
            return True
        is_there = self._pool.num_free > 0 or self._pool.num_available > self.book.num_tenants
        return is_there and self.book.make_room(int(page is None), but=tables.range_id)

    def leave(self, tables: BlockTables) -> None:
        """Everything stays mapped for the next one."""
        if tables.range_id >= 0:
            self.book.move_out(tables)

    def take_orders(self) -> tuple[PageOrder, ...]:
        """See :class:`Placement`."""
        return self.book.take_orders()

    def explain(self, tables: BlockTables) -> dict[str, int]:
        """Which range, and where its pages came from."""
        return {
            "range": tables.range_id,
            "pages_shared": tables.num_shared,
            "pages_rebound": tables.num_rebound,
            "pages_mapped": tables.num_mapped,
        }

    def check(self, all_tables: Iterable[BlockTables]) -> None:
        """See :class:`RangeBook`."""
        self.book.check(list(all_tables))

    def _fill(self, tables: BlockTables, first: int, need: int, *, is_ahead: bool = False) -> list[BlockId]:
        """``need`` pages for offsets from ``first`` on; they are known to be available."""
        book, pool = self.book, self._pool
        fresh: dict[int, BlockId] = {}
        for offset in range(first, first + need):  # before others are taken: none of these must go elsewhere
            page = book.page_at(tables.range_id, offset)
            if page is not None and pool.is_spare(page):
                fresh[offset] = self._adopt(tables, page)
        for offset in range(first, first + need):
            if offset in fresh:
                continue
            page = book.page_at(tables.range_id, offset)
            if page is not None and not pool.num_free and pool.is_cached(page):
                fresh[offset] = self._adopt(tables, page)
                continue
            allocated = pool.try_allocate(1)
            assert allocated is not None
            fresh[offset] = allocated[0]
            self._put(tables, offset, allocated[0], is_ahead=is_ahead)
        return [fresh[offset] for offset in range(first, first + need)]

    def _adopt(self, tables: BlockTables, page: BlockId) -> BlockId:
        self._pool.adopt(page)
        self._pool.set_owner(page, tables.range_id)
        self.num_rebound += 1
        tables.num_rebound += 1
        return page

    def _put(self, tables: BlockTables, offset: int, page: BlockId, *, is_ahead: bool = False) -> None:
        if self.book.page_at(tables.range_id, offset) != page:
            tables.num_mapped += 1
            self.book.put(tables.range_id, offset, page, is_ahead=is_ahead)
        if self._pool.owner_of(page) == NOBODY:
            self._pool.set_owner(page, tables.range_id)

    def _choose(self, kept: Sequence[BlockId], need: int) -> int:
        """An idle range; there is one, since no more sequences run than there are ranges."""
        book = self.book
        candidates = book.ranges_starting_with(kept[0]) if kept else []
        if not candidates:
            candidates = [r for r, _ in zip(book.idle, range(MAX_CANDIDATES), strict=False)]
        assert candidates, "a sequence is admitted but every virtual range is taken"
        may_evict = need > self._pool.num_free
        best, best_fitness = candidates[0], (-1, -1, 0)
        perfect = (len(kept), need, -len(kept) - need)
        for range_id in candidates:
            fitness = self._fitness(range_id, kept, need, may_evict)
            if fitness > best_fitness:
                best, best_fitness = range_id, fitness
                if fitness == perfect:
                    break
        return best

    def _fitness(
        self, range_id: int, kept: Sequence[BlockId], need: int, may_evict: bool
    ) -> tuple[int, int, int]:
        """(pages of the common prefix, pages that can be taken where they lie, fewest pages left over); ties go to
        the least recently used."""
        book, pool, first = self.book, self._pool, len(kept)
        common = 0
        while common < first and book.page_at(range_id, common) == kept[common]:
            common += 1
        in_place = 0
        for offset in range(first, first + need):
            page = book.page_at(range_id, offset)
            if page is not None and (pool.is_spare(page) or (may_evict and pool.is_cached(page))):
                in_place += 1
        return common, in_place, -book.num_mapped(range_id)
