"""RangeBook: what is mapped where, who is in which range, and the orders that make it so.

It says what will be true when every order taken so far has been carried out. The body keeps its own record and repairs
what it missed (orders of steps that were never run), so this book may be ahead of it and never needs to be told.

INVARIANTS (verified by :meth:`RangeBook.check`)
- A place (range, offset) has at most one page; a page may be in several places. The pool counts the same mappings.
- A range is idle or has exactly one tenant, whose table is mapped from offset 0 on without a gap.
- Never more than ``max_mappings`` places.
- Only places that no tenant's table covers are ever unmapped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from xllm.engine.cache.block_table import BlockTables
from xllm.engine.cache.pages.page_pool import PagePool
from xllm.errors import InternalError
from xllm.types.batch import PageOrder
from xllm.types.ids import BlockId
from xllm.types.pages import PageGeometry


class RangeBook:
    """See the module; a place is numbered ``range * pages_per_range + offset``."""

    def __init__(self, pool: PagePool, geometry: PageGeometry) -> None:
        self.geometry = geometry
        self.idle: OrderedDict[int, None] = OrderedDict.fromkeys(range(geometry.num_ranges))
        """Ranges without a tenant, least recently used first."""
        self.num_mappings = 0
        self.num_map_orders = 0
        self.num_unmap_orders = 0
        self._pool = pool
        self._mapped: list[dict[int, BlockId]] = [{} for _ in range(geometry.num_ranges)]
        self._places: dict[BlockId, set[int]] = {}
        self._tenants: dict[int, BlockTables] = {}
        self._orders: dict[int, PageOrder] = {}

    def page_at(self, range_id: int, offset: int) -> BlockId | None:
        """The page mapped there."""
        return self._mapped[range_id].get(offset)

    def num_mapped(self, range_id: int) -> int:
        """Pages mapped in a range."""
        return len(self._mapped[range_id])

    def ranges_starting_with(self, page: BlockId) -> list[int]:
        """Idle ranges that have the page at offset 0."""
        per_range = self.geometry.pages_per_range
        found = (divmod(place, per_range) for place in self._places.get(page, ()))
        return [range_id for range_id, offset in found if offset == 0 and range_id in self.idle]

    @property
    def num_tenants(self) -> int:
        """Ranges in use."""
        return len(self._tenants)

    # -- tenants ----------------------------------------------------------------------------------------------------

    def move_in(self, range_id: int, tables: BlockTables) -> None:
        """The range is the sequence's; what is still mapped there stays recently used."""
        del self.idle[range_id]
        self._tenants[range_id] = tables
        tables.range_id = range_id
        for page in self._mapped[range_id].values():
            self._pool.touch(page)

    def move_out(self, tables: BlockTables) -> None:
        """The range is idle with everything that is mapped in it."""
        del self._tenants[tables.range_id]
        self.idle[tables.range_id] = None
        tables.range_id = -1

    # -- places -----------------------------------------------------------------------------------------------------

    def put(self, range_id: int, offset: int, page: BlockId, *, is_ahead: bool = False) -> None:
        """Have ``page`` mapped at a place, instead of what is there; nothing happens if it already is."""
        mapped = self._mapped[range_id]
        old = mapped.get(offset)
        if old == page:
            return
        place = range_id * self.geometry.pages_per_range + offset
        if old is not None:
            self._forget(old, place)
        mapped[offset] = page
        self._places.setdefault(page, set()).add(place)
        self._pool.add_mapping(page)
        self.num_mappings += 1
        self.num_map_orders += 1
        self._orders[place] = PageOrder("map", range_id, offset, page, is_ahead)

    def unmap_page(self, page: BlockId) -> None:
        """Take a page out of every range."""
        for place in list(self._places.get(page, ())):
            self._unmap(*divmod(place, self.geometry.pages_per_range))

    def make_room(self, num_new: int, *, but: int) -> bool:
        """Unmap what nobody uses, idle ranges first, until ``num_new`` places may be added; ``but`` one range stays."""
        limit = self.geometry.max_mappings - num_new
        if self.num_mappings <= limit:
            return True
        for range_id, offset in self._unused(but):
            self._unmap(range_id, offset)
            if self.num_mappings <= limit:
                return True
        return False

    def _unused(self, but: int) -> Iterator[tuple[int, int]]:
        for range_id in self.idle:
            if range_id != but:
                for offset in sorted(self._mapped[range_id], reverse=True):
                    yield range_id, offset
        for range_id, tables in self._tenants.items():
            if range_id != but:
                for offset in sorted(self._mapped[range_id], reverse=True):
                    if offset >= len(tables.groups[0]):
                        yield range_id, offset

    def _unmap(self, range_id: int, offset: int) -> None:
        page = self._mapped[range_id].pop(offset)
        place = range_id * self.geometry.pages_per_range + offset
        self._forget(page, place)
        self.num_unmap_orders += 1
        self._orders[place] = PageOrder("unmap", range_id, offset, page, True)

    def _forget(self, page: BlockId, place: int) -> None:
        places = self._places[page]
        places.remove(place)
        if not places:
            del self._places[page]
        self.num_mappings -= 1
        self._pool.drop_mapping(page)

    def take_orders(self) -> tuple[PageOrder, ...]:
        """Orders since the last call; of several for one place the last one counts."""
        if not self._orders:
            return ()
        orders, self._orders = tuple(self._orders.values()), {}
        return orders

    def check(self, all_tables: list[BlockTables]) -> None:
        """Raise InternalError when book, pool and tables disagree."""
        per_range = self.geometry.pages_per_range
        count: dict[BlockId, set[int]] = {}
        for range_id, mapped in enumerate(self._mapped):
            for offset, page in mapped.items():
                if not 0 <= offset < per_range:
                    raise InternalError(f"page {page} lies outside its range {range_id}, at offset {offset}")
                count.setdefault(page, set()).add(range_id * per_range + offset)
        if count != self._places or sum(map(len, count.values())) != self.num_mappings:
            raise InternalError("the places of pages do not match the ranges")
        for page in range(self._pool.total):
            if self._pool.num_mappings_of(page) != len(count.get(page, ())):
                raise InternalError(
                    f"the pool counts {self._pool.num_mappings_of(page)} mappings of page {page}"
                )
        if self.num_mappings > self.geometry.max_mappings:
            raise InternalError(f"{self.num_mappings} mappings, at most {self.geometry.max_mappings}")
        if self.idle.keys() | self._tenants.keys() != set(range(self.geometry.num_ranges)) or (
            self.idle.keys() & self._tenants.keys()
        ):
            raise InternalError("a range is idle and taken, or lost")
        placed = [t for t in all_tables if t.range_id >= 0]
        if {id(t) for t in placed} != {id(t) for t in self._tenants.values()}:
            raise InternalError("the tenants of ranges are not the sequences that are placed")
        for tables in placed:
            if self._tenants.get(tables.range_id) is not tables:
                raise InternalError(f"two sequences are in range {tables.range_id}")
            mapped = self._mapped[tables.range_id]
            if any(mapped.get(i) != page for i, page in enumerate(tables.groups[0])):
                raise InternalError(f"the table of range {tables.range_id} is not what is mapped there")
