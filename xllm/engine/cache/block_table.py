"""What one sequence holds in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xllm.types.ids import BlockHash, BlockId


@dataclass(slots=True)
class BlockTables:
    """Blocks of one sequence per KV group, and how far their contents are named.

    For ``full``, ``window`` and ``latent`` groups the i-th block holds tokens ``i*bs .. (i+1)*bs``. A ``state`` group
    has exactly two blocks: ``[read, write]``; they flip when a step commits.
    """

    groups: tuple[list[BlockId], ...]
    num_mentioned: list[int]
    """Per group, blocks the body has been told about."""
    hashes: list[BlockHash] = field(default_factory=list)
    """Names of the sequence's full blocks with known ids, in order; grows as tokens become known."""
    num_promised: int = 0
    """Leading blocks that were offered to the prefix index, or came from it."""
    known: tuple[BlockHash, Sequence[int]] | None = None
    """Root of the names and the tokens known so far, a live view; None until the first match."""
    range_id: int = -1
    """Virtual range of the blocks (layout ``xtensor``), -1: none."""
    num_shared: int = 0
    """Blocks that came from others when the range was entered."""
    num_rebound: int = 0
    """Blocks taken over where they were mapped."""
    num_mapped: int = 0
    """Blocks that had to be mapped."""

    @property
    def num_blocks(self) -> int:
        """Blocks held over all groups."""
        return sum(len(g) for g in self.groups)

    def take_new(self) -> tuple[tuple[BlockId, ...], ...]:
        """Blocks the body does not know yet, per group; they count as mentioned from now on."""
        out = []
        for index, blocks in enumerate(self.groups):
            out.append(tuple(blocks[self.num_mentioned[index] :]))
            self.num_mentioned[index] = len(blocks)
        return tuple(out)
