"""Physical pages of one KV group: a pool of blocks (a page is a block) that knows which pages are mapped somewhere.

    FREE       holds nothing, mapped nowhere
    ALLOCATED  somebody's, not mapped into his range yet (the copied tail of a fork that waits)
    MAPPED     somebody's, mapped into his range
    REUSABLE   nobody's, but worth keeping: still mapped where its last owner was, or holding a prefix, or both

INVARIANTS (verified by :meth:`PagePool.check`)
- A page is exactly one of: used (referenced), cached (unreferenced, named), spare (unreferenced, nameless, mapped),
  free (unreferenced, nameless, mapped nowhere). Cached and spare are REUSABLE.
- ``free + spare + used + cached == total``; for the outside spare pages count as free.
- A page has at most one name and a name at most one page.
- References count sequences; the prefix index keeps a page by its name.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Iterable

from xllm.errors import InternalError
from xllm.types.ids import BlockHash, BlockId

NOBODY = -1


class PageState(enum.Enum):
    """See the module."""

    FREE = "free"
    ALLOCATED = "allocated"
    MAPPED = "mapped"
    REUSABLE = "reusable"


class PagePool:
    """Reference-counted pages with an LRU of spare and one of cached ones; every operation is O(1) per page."""

    __slots__ = ("_cached", "_free", "_hashes", "_mappings", "_on_evict", "_on_reclaim", "_owners", "_refs", "_spare",
                 "num_evicted", "num_reclaimed", "total")  # fmt: skip

    def __init__(self, total: int, on_evict: Callable[[BlockHash, BlockId], None]) -> None:
        assert total > 0, f"a pool of {total} pages"
        self.total = total
        self.num_evicted = 0
        self.num_reclaimed = 0
        self._refs = [0] * total
        self._mappings = [0] * total
        self._owners = [NOBODY] * total
        self._hashes: list[BlockHash | None] = [None] * total
        self._free = list(range(total - 1, -1, -1))
        self._spare: OrderedDict[BlockId, None] = OrderedDict()
        self._cached: OrderedDict[BlockId, None] = OrderedDict()
        self._on_evict = on_evict
        self._on_reclaim: Callable[[BlockId], None] = lambda page: None

    def on_reclaim(self, callback: Callable[[BlockId], None]) -> None:
        """Who takes a page out of the ranges it is mapped in before it goes elsewhere."""
        self._on_reclaim = callback

    # -- the pool's surface -----------------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Pages that hold nothing of value, mapped or not."""
        return len(self._free) + len(self._spare)

    @property
    def num_unmapped(self) -> int:
        """Pages in state FREE."""
        return len(self._free)

    @property
    def num_spare(self) -> int:
        """Nameless REUSABLE pages."""
        return len(self._spare)

    @property
    def num_cached(self) -> int:
        """REUSABLE pages that hold a prefix."""
        return len(self._cached)

    @property
    def num_leased(self) -> int:
        """Pages are not lent to peers."""
        return 0

    @property
    def num_pinned(self) -> int:
        """Pages are not under I/O."""
        return 0

    @property
    def num_used(self) -> int:
        """Pages referenced by sequences."""
        return self.total - len(self._free) - len(self._spare) - len(self._cached)

    @property
    def num_available(self) -> int:
        """Pages an allocation could get."""
        return len(self._free) + len(self._spare) + len(self._cached)

    def ref_count(self, block: BlockId) -> int:
        """How many sequences hold the page."""
        return self._refs[block]

    def hash_of(self, block: BlockId) -> BlockHash | None:
        """Name of the page's content, if it has one."""
        return self._hashes[block]

    def try_allocate(self, count: int) -> list[BlockId] | None:
        """``count`` unmapped pages with one reference each, or None when there are not so many.

        Free ones first; only then the least recently used spare ones, at last cached ones, both taken out of the ranges
        they are mapped in.
        """
        if count > self.num_available:
            return None
        return [self._next() for _ in range(count)]

    def _next(self) -> BlockId:
        if self._free:
            page = self._free.pop()
        else:
            page = next(iter(self._spare)) if self._spare else next(iter(self._cached))
            self.num_reclaimed += 1
            self._unname(page)
            self._on_reclaim(page)  # takes it out of its ranges, so that it becomes free
            assert self._free[-1] == page and not self._mappings[page], f"page {page} is still mapped"
            self._free.pop()
        self._refs[page] = 1
        self._owners[page] = NOBODY
        return page

    def _unname(self, page: BlockId) -> None:
        """A reusable page loses its name, if it has one: from cached to spare or free."""
        if page in self._cached:
            block_hash = self._hashes[page]
            assert block_hash is not None
            self.num_evicted += 1
            self._on_evict(block_hash, page)
            self.forget(page)

    def acquire(self, block: BlockId) -> None:
        """One more reference to a used or cached page (a prefix hit, a fork)."""
        if self._refs[block] == 0:
            assert block in self._cached, f"page {block} is acquired but neither used nor cached"
            del self._cached[block]
        self._refs[block] += 1

    def release(self, blocks: Iterable[BlockId]) -> None:
        """Drop one reference of each; without references a page is cached (if named), spare (if mapped) or free."""
        for page in blocks:
            self._refs[page] -= 1
            assert self._refs[page] >= 0, f"page {page} is released more often than acquired"
            if self._refs[page] == 0:
                if self._hashes[page] is not None:
                    self._cached[page] = None
                else:
                    self._retire(page)

    def _retire(self, page: BlockId) -> None:
        """Nothing of value is in it and nobody refers to it."""
        if self._mappings[page]:
            self._spare[page] = None
        else:
            self._owners[page] = NOBODY
            self._free.append(page)

    def name(self, block: BlockId, block_hash: BlockHash) -> None:
        """Give a used page its content's name."""
        assert self._hashes[block] is None, f"page {block} already has a name"
        self._hashes[block] = block_hash

    def forget(self, block: BlockId) -> None:
        """Take the page's name away."""
        self._hashes[block] = None
        if self._refs[block] == 0 and block in self._cached:
            del self._cached[block]
            self._retire(block)

    # -- where pages are mapped -------------------------------------------------------------------------------------

    def adopt(self, page: BlockId) -> None:
        """Take one certain reusable page where it is; a cached one leaves the index first."""
        self._unname(page)
        del self._spare[page]
        self._refs[page] = 1

    def is_spare(self, page: BlockId) -> bool:
        """Whether it is reusable and nameless."""
        return page in self._spare

    def is_cached(self, page: BlockId) -> bool:
        """Whether it is reusable and holds a prefix."""
        return page in self._cached

    def touch(self, page: BlockId) -> None:
        """A spare page becomes the most recently used one."""
        if page in self._spare:
            self._spare.move_to_end(page)

    def add_mapping(self, page: BlockId) -> None:
        """It is mapped in one more place."""
        self._mappings[page] += 1

    def drop_mapping(self, page: BlockId) -> None:
        """It is mapped in one place less."""
        self._mappings[page] -= 1
        assert self._mappings[page] >= 0, f"page {page} is unmapped more often than mapped"
        if self._mappings[page] == 0 and page in self._spare:
            del self._spare[page]
            self._retire(page)

    def num_mappings_of(self, page: BlockId) -> int:
        """Places the page is mapped in."""
        return self._mappings[page]

    def set_owner(self, page: BlockId, range_id: int) -> None:
        """The one range whose sequence writes the page."""
        self._owners[page] = range_id

    def owner_of(self, page: BlockId) -> int:
        """The range that wrote it last, or NOBODY."""
        return self._owners[page]

    def state_of(self, page: BlockId) -> PageState:
        """See the module."""
        if self._refs[page]:
            return PageState.MAPPED if self._mappings[page] else PageState.ALLOCATED
        return PageState.REUSABLE if page in self._cached or page in self._spare else PageState.FREE

    def check(self, held: dict[BlockId, int]) -> None:
        """Raise InternalError unless the invariants hold; ``held`` counts references by all sequences."""
        free = set(self._free)
        if len(free) != len(self._free) or free & self._spare.keys() or free & self._cached.keys():
            raise InternalError("a page is free and something else at once")
        if self._spare.keys() & self._cached.keys():
            raise InternalError("a page is spare and cached at once")
        for page in range(self.total):
            if self._refs[page] != held.get(page, 0):
                raise InternalError(
                    f"page {page} has {self._refs[page]} references, sequences hold {held.get(page, 0)}"
                )
            is_idle = page in free or page in self._spare or page in self._cached
            if is_idle == (self._refs[page] > 0):
                raise InternalError(f"page {page} is referenced {self._refs[page]} times and idle={is_idle}")
            if (page in self._cached) != (not self._refs[page] and self._hashes[page] is not None):
                raise InternalError(f"page {page} is cached or named, not both")
            if page in free and (self._mappings[page] or self._owners[page] != NOBODY):
                raise InternalError(f"free page {page} is mapped or owned")
            if page in self._spare and not self._mappings[page]:
                raise InternalError(f"spare page {page} is mapped nowhere")
        names = [h for h in self._hashes if h is not None]
        if len(names) != len(set(names)):
            raise InternalError("two pages have one name")
