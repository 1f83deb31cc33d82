"""Pool: what cache, scheduler and admission ask about the blocks of one KV group, however they lie in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from xllm.types.ids import BlockHash, BlockId


class Pool(Protocol):
    """Reference-counted blocks; ``free + used + cached + leased + pinned == total``."""

    total: int

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing of value."""
        ...

    @property
    def num_used(self) -> int:
        """Blocks referenced by sequences."""
        ...

    @property
    def num_cached(self) -> int:
        """Blocks that nobody uses but a later prefix may hit."""
        ...

    @property
    def num_leased(self) -> int:
        """Blocks promised to a peer."""
        ...

    @property
    def num_pinned(self) -> int:
        """Blocks under I/O or in quarantine."""
        ...

    @property
    def num_available(self) -> int:
        """Blocks an allocation could get."""
        ...

    def ref_count(self, block: BlockId) -> int:
        """How many sequences hold the block."""
        ...

    def hash_of(self, block: BlockId) -> BlockHash | None:
        """Name of the block's content, if it has one."""
        ...

    def try_allocate(self, count: int) -> list[BlockId] | None:
        """``count`` blocks with one reference each, or None when there are not so many."""
        ...

    def acquire(self, block: BlockId) -> None:
        """One more reference to a used or cached block."""

    def release(self, blocks: Iterable[BlockId]) -> None:
        """Drop one reference of each; pass a sequence's blocks last to first."""

    def name(self, block: BlockId, block_hash: BlockHash) -> None:
        """Give a used block its content's name."""

    def forget(self, block: BlockId) -> None:
        """Take the block's name away; an unreferenced one becomes free."""

    def check(self, held: dict[BlockId, int]) -> None:
        """Raise InternalError unless the invariants hold; ``held`` counts references by all sequences."""
