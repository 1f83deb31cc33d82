"""Blocks of one KV group.

INVARIANTS (verified by :meth:`BlockPool.check`)
- Every block is in exactly one state: free (nothing of value), used (referenced by sequences), cached (referenced by
  nobody, content named by a hash, evictable, least recently used first), leased (promised to a peer), pinned (bytes are
  moving, or quarantined).
- ``free + used + cached + leased + pinned == total``.
- A block has at most one hash and a hash names at most one block.

Every operation is O(1) per block and allocates nothing that grows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from xllm.errors import InternalError
from xllm.types.ids import BlockHash, BlockId


class BlockPool:
    """Reference-counted blocks with an LRU of cached ones."""

    __slots__ = ("_cached", "_free", "_hashes", "_leased", "_on_evict", "_pinned", "_refs", "total")

    def __init__(self, total: int, on_evict: Callable[[BlockHash, BlockId], None] | None = None) -> None:
        assert total > 0, f"a pool of {total} blocks"
        self.total = total
        self._refs = [0] * total
        self._hashes: list[BlockHash | None] = [None] * total
        self._free = list(range(total - 1, -1, -1))  # a stack: the block freed last is warm in the caches
        self._cached: OrderedDict[BlockId, None] = OrderedDict()
        self._leased: set[BlockId] = set()
        self._pinned: set[BlockId] = set()
        self._on_evict = on_evict or (lambda _hash, _block: None)

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing of value."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody uses but a later prefix may hit."""
        return len(self._cached)

    @property
    def num_leased(self) -> int:
        """Blocks promised to a peer."""
        return len(self._leased)

    @property
    def num_pinned(self) -> int:
        """Blocks under I/O or in quarantine."""
        return len(self._pinned)

    @property
    def num_used(self) -> int:
        """Blocks referenced by sequences."""
        return self.total - len(self._free) - len(self._cached) - len(self._leased) - len(self._pinned)

    @property
    def num_available(self) -> int:
        """Blocks an allocation could get: free, or cached and evictable."""
        return len(self._free) + len(self._cached)

    def ref_count(self, block: BlockId) -> int:
        """How many sequences hold the block."""
        return self._refs[block]

    def hash_of(self, block: BlockId) -> BlockHash | None:
        """Name of the block's content, if it has one."""
        return self._hashes[block]

    def try_allocate(self, count: int) -> list[BlockId] | None:
        """``count`` blocks with one reference each, or None when there are not so many; evicts LRU cached blocks."""
        free = self._free
        if count > len(free) + len(self._cached):
            return None
        refs = self._refs
        blocks = []
        for _ in range(count):
            block = free.pop() if free else self._evict()
            refs[block] = 1
            blocks.append(block)
        return blocks

    def acquire(self, block: BlockId) -> None:
        """One more reference to a used or cached block (a prefix hit, a fork)."""
        if self._refs[block] == 0:
            assert block in self._cached, f"block {block} is acquired but neither used nor cached"
            del self._cached[block]
        self._refs[block] += 1

    def release(self, blocks: Iterable[BlockId]) -> None:
        """Drop one reference of each; a block without references becomes cached (if named) or free.

        Pass a sequence's blocks last to first: the LRU then evicts tails before the prefixes they extend.
        """
        refs, hashes = self._refs, self._hashes
        for block in blocks:
            refs[block] -= 1
            assert refs[block] >= 0, f"block {block} is released more often than acquired"
            if refs[block] == 0:
                if hashes[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def name(self, block: BlockId, block_hash: BlockHash) -> None:
        """Give a used block its content's name."""
        assert self._hashes[block] is None, f"block {block} already has a name"
        self._hashes[block] = block_hash

    def forget(self, block: BlockId) -> None:
        """Take the block's name away; an unreferenced one becomes free."""
        self._hashes[block] = None
        if self._refs[block] == 0 and block in self._cached:
            del self._cached[block]
            self._free.append(block)

    def lease(self, count: int) -> list[BlockId] | None:
        """Reserve blocks for a peer (PD): they count as leased until :meth:`end_lease`."""
        blocks = self.try_allocate(count)
        if blocks is not None:
            self._leased.update(blocks)
            for block in blocks:
                self._refs[block] = 0
        return blocks

    def end_lease(self, blocks: Iterable[BlockId], *, keep: bool) -> None:
        """The peer delivered (``keep``: used, one reference) or gave up (free)."""
        for block in blocks:
            self._leased.remove(block)
            if keep:
                self._refs[block] = 1
            else:
                self._free.append(block)

    def pin(self, block: BlockId) -> None:
        """Take a cached block out of eviction while its bytes move."""
        del self._cached[block]
        self._pinned.add(block)

    def unpin(self, block: BlockId) -> None:
        """The bytes arrived: evictable again, or free when the name was taken away meanwhile."""
        self._pinned.remove(block)
        if self._hashes[block] is None:
            self._free.append(block)
        else:
            self._cached[block] = None

    def _evict(self) -> BlockId:
        block, _ = self._cached.popitem(last=False)
        block_hash = self._hashes[block]
        assert block_hash is not None
        self._hashes[block] = None
        self._on_evict(block_hash, block)
        return block

    def check(self, held: dict[BlockId, int]) -> None:
        """Raise InternalError unless the invariants hold; ``held`` counts references by all sequences."""
        free, cached = set(self._free), set(self._cached)
        states = [free, cached, self._leased, self._pinned]
        idle = sum(len(s) for s in states)
        if len(free) != len(self._free) or len(set().union(*states)) != idle:
            raise InternalError("a block is in two states at once")
        for block in range(self.total):
            want = held.get(block, 0)
            if self._refs[block] != want:
                raise InternalError(
                    f"block {block} has {self._refs[block]} references, sequences hold {want}"
                )
            is_idle = any(block in s for s in states)
            if is_idle == (self._refs[block] > 0):
                raise InternalError(
                    f"block {block} is referenced {self._refs[block]} times and idle={is_idle}"
                )
            if block in free and self._hashes[block] is not None:
                raise InternalError(f"free block {block} still has a name")
        names = [h for h in self._hashes if h is not None]
        if len(names) != len(set(names)):
            raise InternalError("two blocks have one name")
        if idle + self.num_used != self.total:
            raise InternalError(
                f"free + used + cached + leased + pinned = {idle + self.num_used}, total {self.total}"
            )
