"""Which block holds which prefix.

Life of an entry: *promised* when a step that will fill the block is scheduled, *committed* when that step succeeds,
*retracted* when it fails or is interrupted. A promised block may already be shared: rows of the same step write before
they attend, and steps run in order. Whoever took a promised block is remembered until it is committed, so that a
failure can take back every sequence that relied on it. Events leave only for committed blocks.

INVARIANTS
- An entry's block carries the entry's hash in the pool, and the other way round.
- ``_users`` has keys for promised blocks only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from xllm.engine.cache.pool import Pool
from xllm.errors import InternalError
from xllm.types.ids import BlockHash, BlockId, SeqId
from xllm.types.kv_event import KvEvent


class PrefixIndex(Protocol):
    """What the cache asks about prefixes of one KV group."""

    def match(self, hashes: Sequence[BlockHash]) -> list[BlockId]:
        """Blocks of the longest known prefix; takes no references."""

    def use(self, seq: SeqId, block: BlockId) -> None:
        """``seq`` relies on the block (after a match)."""

    def promise(self, block: BlockId, block_hash: BlockHash, parent: BlockHash | None) -> bool:
        """The block will hold this content when the step succeeds; False when another block is known for it."""

    def commit(self, block: BlockId, block_hash: BlockHash) -> None:
        """The promise came true (or was overtaken: then nothing happens)."""

    def retract(self, block: BlockId) -> set[SeqId]:
        """The promise failed: forget it and say who relied on it. The caller takes the block's name away."""

    def is_promised(self, block: BlockId, block_hash: BlockHash) -> bool:
        """Whether the block is promised, not certain, to hold this content."""
        ...

    def on_evict(self, block_hash: BlockHash, block: BlockId) -> None:
        """The pool reuses a cached block."""

    def clear(self) -> list[BlockId]:
        """Forget all committed entries; returns their blocks."""

    def take_events(self) -> list[KvEvent]:
        """Changes since the last call."""
        ...

    def snapshot(self) -> list[KvEvent]:
        """Stored events for every committed entry."""
        ...

    def check(self, pool: Pool) -> None:
        """Raise InternalError when index and pool disagree."""
        ...


class HashPrefixIndex:
    """Chained block hashes to blocks."""

    __slots__ = ("_blocks", "_events", "_group", "_parents", "_promised", "_users")

    def __init__(self, group: int = 0) -> None:
        self._group = group
        self._blocks: dict[BlockHash, BlockId] = {}
        self._parents: dict[BlockHash, BlockHash | None] = {}
        self._promised: dict[BlockId, BlockHash] = {}
        self._users: dict[BlockId, set[SeqId]] = {}
        self._events: list[KvEvent] = []

    def match(self, hashes: Sequence[BlockHash]) -> list[BlockId]:
        """Walk the chain until the first unknown hash."""
        known = self._blocks
        out = []
        for block_hash in hashes:
            block = known.get(block_hash)
            if block is None:
                break
            out.append(block)
        return out

    def use(self, seq: SeqId, block: BlockId) -> None:
        """Remember users of promised blocks only: committed ones cannot be taken back."""
        if block in self._promised:
            self._users.setdefault(block, set()).add(seq)

    def promise(self, block: BlockId, block_hash: BlockHash, parent: BlockHash | None) -> bool:
        """First come, first named: a second copy of the same content stays nameless."""
        if block_hash in self._blocks:
            return False
        self._blocks[block_hash] = block
        self._parents[block_hash] = parent
        self._promised[block] = block_hash
        return True

    def commit(self, block: BlockId, block_hash: BlockHash) -> None:
        """Make it permanent and tell routers; a no-op when the block was freed and reused meanwhile."""
        if self._promised.get(block) == block_hash:
            del self._promised[block]
            self._users.pop(block, None)
            self._events.append(KvEvent("stored", (block_hash,), self._parents[block_hash], self._group))

    def retract(self, block: BlockId) -> set[SeqId]:
        """Forget a promise; returns the sequences that relied on it."""
        block_hash = self._promised.pop(block, None)
        if block_hash is None:
            return set()
        del self._blocks[block_hash]
        del self._parents[block_hash]
        return self._users.pop(block, set())

    def is_promised(self, block: BlockId, block_hash: BlockHash) -> bool:
        """Whether the block is promised, not certain, to hold this content."""
        return self._promised.get(block) == block_hash

    def on_evict(self, block_hash: BlockHash, block: BlockId) -> None:
        """Forget an entry whose block is reused; one still promised (its sequence was aborted) leaves silently."""
        del self._blocks[block_hash]
        del self._parents[block_hash]
        if self._promised.pop(block, None) is None:
            self._events.append(KvEvent("removed", (block_hash,), None, self._group))
        else:
            self._users.pop(block, None)

    def clear(self) -> list[BlockId]:
        """Forget all committed entries."""
        gone = {h: b for h, b in self._blocks.items() if b not in self._promised}
        for block_hash in gone:
            del self._blocks[block_hash]
            del self._parents[block_hash]
        self._events.append(KvEvent("cleared", (), None, self._group))
        return list(gone.values())

    def take_events(self) -> list[KvEvent]:
        """Changes since the last call."""
        events, self._events = self._events, []
        return events

    def snapshot(self) -> list[KvEvent]:
        """Stored events for every committed entry: one for each run of blocks that follow each other."""
        runs: list[tuple[BlockHash | None, list[BlockHash]]] = []
        last: BlockHash | None = None
        for block_hash, block in self._blocks.items():
            if block in self._promised:
                continue
            parent = self._parents[block_hash]
            if not runs or parent is None or parent != last:
                runs.append((parent, []))
            runs[-1][1].append(block_hash)
            last = block_hash
        return [KvEvent("stored", tuple(hashes), parent, self._group) for parent, hashes in runs]

    def check(self, pool: Pool) -> None:
        """Entries and the pool's names agree."""
        for block_hash, block in self._blocks.items():
            if pool.hash_of(block) != block_hash:
                raise InternalError(f"prefix index names block {block} differently from the pool")
        for block in range(pool.total):
            name = pool.hash_of(block)
            if name is not None and self._blocks.get(name) != block:
                raise InternalError(f"block {block} has a name that the prefix index does not know")
        if not self._users.keys() <= self._promised.keys():
            raise InternalError("users of a block that is not promised")


class EmptyPrefixIndex:
    """Prefix caching off: nothing is ever found or kept."""

    __slots__ = ()

    def match(self, hashes: Sequence[BlockHash]) -> list[BlockId]:
        """Nothing is known."""
        return []

    def use(self, seq: SeqId, block: BlockId) -> None:
        """Nothing to remember."""

    def promise(self, block: BlockId, block_hash: BlockHash, parent: BlockHash | None) -> bool:
        """Blocks stay nameless."""
        return False

    def commit(self, block: BlockId, block_hash: BlockHash) -> None:
        """Nothing was promised."""

    def retract(self, block: BlockId) -> set[SeqId]:
        """Nobody relied on anything."""
        return set()

    def is_promised(self, block: BlockId, block_hash: BlockHash) -> bool:
        """Never."""
        return False

    def on_evict(self, block_hash: BlockHash, block: BlockId) -> None:
        """Nameless blocks are never evicted."""
        raise InternalError("a block was evicted from an empty prefix index")

    def clear(self) -> list[BlockId]:
        """Nothing to forget."""
        return []

    def take_events(self) -> list[KvEvent]:
        """No events."""
        return []

    def snapshot(self) -> list[KvEvent]:
        """No entries."""
        return []

    def check(self, pool: Pool) -> None:
        """No block may have a name."""
        if any(pool.hash_of(b) is not None for b in range(pool.total)):
            raise InternalError("a block has a name although prefix caching is off")
