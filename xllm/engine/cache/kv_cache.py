"""KVCache: the scheduler's one door to KV memory.

Match a prefix, admit, grow and fork sequences, promise / commit / retract what steps fill, free, roll back, check.

INVARIANTS (see :meth:`KVCache.check`)
- Per group the block invariant of :mod:`xllm.engine.cache.block_pool` holds, and references equal what sequences hold.
- Blocks are promised only when every token id in them is known; they are committed only after the step that filled
  them succeeded.
- Nobody writes into a block that another sequence may read: a whole-prompt hit copies the last block before its last
  token is recomputed, a fork copies its tail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xllm.engine.cache.block_pool import BlockPool
from xllm.engine.cache.block_table import BlockTables
from xllm.engine.cache.pages.page_pool import PagePool
from xllm.engine.cache.pages.partial_match import PartialMatches
from xllm.engine.cache.pages.placement import Placement, PlainPlacement, RangePlacement, try_allocate_all
from xllm.engine.cache.pool import Pool
from xllm.engine.cache.prefix_cache import EmptyPrefixIndex, HashPrefixIndex, PrefixIndex
from xllm.errors import InternalError
from xllm.types.batch import BlockCopy, PageOrder
from xllm.types.block_hash import next_hash
from xllm.types.ids import BlockHash, BlockId, SeqId
from xllm.types.kv_event import KvEvent
from xllm.types.kv_layout import KVLayout
from xllm.types.pages import PageGeometry

NUM_STATE_SLOTS = 2
MIN_COPIED_SHARE = 8
"""A prefix that ends inside a page is worth a copy from one eighth of a page on."""


class Promise(NamedTuple):
    """A block that a step in flight will fill, offered to the prefix index by ``seq``."""

    seq: SeqId
    group: int
    block: BlockId
    name: BlockHash


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """What is already there of a sequence: ``num_tokens`` in ``blocks`` (per group).

    ``num_copied``: above 0 the last block is not shared, its first tokens are copied: a whole prompt is there but its
    last token must be recomputed, or the prefix ends inside a page.
    """

    num_tokens: int
    blocks: tuple[tuple[BlockId, ...], ...]
    num_copied: int = 0

    @property
    def copy_last(self) -> bool:
        """Whether the last block is a source only."""
        return self.num_copied > 0


class KVCache:
    """Pools, prefix indexes and the operations over both; one instance per engine core."""

    def __init__(
        self,
        layout: KVLayout,
        num_blocks: Sequence[int],
        *,
        enable_prefix_caching: bool,
        pages: PageGeometry | None = None,
        num_ahead_tokens: int = 1,
    ) -> None:
        """``pages``: blocks are pages in virtual ranges, prepared ``num_ahead_tokens`` ahead; None: block tables."""
        assert len(num_blocks) == len(layout.groups), "one block count per KV group"
        self.layout = layout
        self.block_size = layout.block_size
        self._is_state = tuple(g.kind == "state" for g in layout.groups)
        self._group_ids = range(len(layout.groups))
        self._has_one_table = len(layout.groups) == 1 and not self._is_state[0]
        self.main_group = self._is_state.index(False)  # the one whose blocks stand for the load of the cache
        # A prefix is only useful when every group can restore it; a state group keeps no checkpoints yet.
        caching = enable_prefix_caching and not any(self._is_state)
        self.prefixes: list[PrefixIndex] = [
            HashPrefixIndex(i) if caching else EmptyPrefixIndex() for i in self._group_ids
        ]
        self.pools: list[Pool]
        self.placement: Placement
        self._partial: PartialMatches | None = None
        if pages is None:
            self.pools = [BlockPool(n, p.on_evict) for n, p in zip(num_blocks, self.prefixes, strict=True)]
            self.placement = PlainPlacement(self.pools)
        else:
            assert len(layout.groups) == 1 and not any(self._is_state), "pages hold one group of tokens"
            pool = PagePool(num_blocks[0], self._on_evict)
            self._partial = PartialMatches() if caching else None
            self.pools = [pool]
            self.placement = RangePlacement(pool, pages, num_ahead_tokens=num_ahead_tokens)
        self.no_hit = PrefixHit(0, tuple(() for _ in self._group_ids))
        self._caching = caching

    def _on_evict(self, block_hash: BlockHash, block: BlockId) -> None:
        """Pages: what is forgotten is forgotten in both indexes."""
        self.prefixes[0].on_evict(block_hash, block)
        if self._partial is not None:
            self._partial.drop(block_hash)

    # -- sizes ------------------------------------------------------------------------------------------------------

    @property
    def max_tokens_per_sequence(self) -> int:
        """Tokens a lone sequence could hold."""
        return min(
            p.total * self.block_size for p, s in zip(self.pools, self._is_state, strict=True) if not s
        )

    def num_blocks_for(self, group: int, num_tokens: int) -> int:
        """Blocks of a group that ``num_tokens`` tokens need."""
        return NUM_STATE_SLOTS if self._is_state[group] else -(-num_tokens // self.block_size)

    def room_after(self, hit: PrefixHit, num_tokens: int) -> float:
        """Smallest share of any pool left if a sequence took ``hit`` and grew to ``num_tokens``; < 0: none."""
        shares = []
        for g, pool in enumerate(self.pools):
            reused = len(hit.blocks[g]) - int(hit.copy_last)
            taken = self.num_blocks_for(g, num_tokens) - reused
            taken += sum(
                1 for b in hit.blocks[g] if pool.ref_count(b) == 0
            )  # cached hits stop being available
            shares.append((pool.num_available - taken) / pool.total)
        return min(shares)

    def num_tokens_covered(self, tables: BlockTables) -> int:
        """Tokens the sequence's blocks have room for."""
        return len(tables.groups[self.main_group]) * self.block_size

    # -- a sequence's life ------------------------------------------------------------------------------------------

    def new_tables(self, prompt_hashes: Iterable[BlockHash] = ()) -> BlockTables:
        """Empty tables; names of the prompt's full blocks may be known already."""
        groups: tuple[list[BlockId], ...] = tuple([] for _ in self._group_ids)
        return BlockTables(groups, [0] * len(groups), list(prompt_hashes))

    def extend_hashes(self, tables: BlockTables, root: BlockHash, token_ids: Sequence[int]) -> None:
        """Name every full block of the known ``token_ids`` (plain text blocks; media blocks come named)."""
        if not self._caching:
            return
        size, hashes = self.block_size, tables.hashes
        while (len(hashes) + 1) * size <= len(token_ids):
            start = len(hashes) * size
            hashes.append(next_hash(hashes[-1] if hashes else root, token_ids[start : start + size]))

    def match(
        self,
        tables: BlockTables,
        num_tokens: int,
        root: BlockHash | None = None,
        token_ids: Sequence[int] = (),
    ) -> PrefixHit:
        """The longest prefix of ``num_tokens`` known tokens that every group can restore, at most all but one.

        ``root`` and ``token_ids`` (a live view) let a hit end inside a page.
        """
        if root is not None:
            tables.known = root, token_ids
        if not self._caching or num_tokens < 2:
            return self.no_hit
        known = tables.hashes[: num_tokens // self.block_size]
        found = [index.match(known) for index in self.prefixes]
        length = min(len(blocks) for blocks in found)
        num_copied = 0
        if length and length * self.block_size >= num_tokens:
            # All tokens are there, but one must run to give logits. Its block is shared, so it is copied; a promised
            # block has no content to copy yet.
            if any(
                p.is_promised(f[length - 1], known[length - 1])
                for p, f in zip(self.prefixes, found, strict=True)
            ):
                length -= 1
            else:
                num_copied = self.block_size - 1
        elif self._partial is not None and tables.known is not None:
            return self._match_partly(tables, found[0][:length], num_tokens, *tables.known)
        tokens = min(length * self.block_size, num_tokens - 1)
        return PrefixHit(tokens, tuple(tuple(f[:length]) for f in found), num_copied)

    def _match_partly(
        self,
        tables: BlockTables,
        whole: list[BlockId],
        num_tokens: int,
        root: BlockHash,
        token_ids: Sequence[int],
    ) -> PrefixHit:
        """Whole pages, and the tokens after them as far as some other page begins with them."""
        assert self._partial is not None
        num_whole = len(whole) * self.block_size
        parent = tables.hashes[len(whole) - 1] if whole else root
        best = self._partial.find(
            parent, token_ids[num_whole : min(num_tokens - 1, num_whole + self.block_size)]
        )
        if best is None or best[1] < max(1, self.block_size // MIN_COPIED_SHARE):
            return PrefixHit(num_whole, (tuple(whole),))
        name, length = best
        return PrefixHit(num_whole + length, ((*whole, *self.prefixes[0].match((name,))),), length)

    def try_admit(
        self, seq: SeqId, tables: BlockTables, hit: PrefixHit, num_tokens: int
    ) -> tuple[BlockCopy, ...] | None:
        """Give empty ``tables`` the hit and room for ``num_tokens`` tokens; returns the copies to order, or None."""
        assert tables.num_blocks == 0, "admission of a sequence that already holds blocks"
        for group, blocks in enumerate(hit.blocks):
            for block in blocks:
                self.pools[group].acquire(block)
        needs = [
            self.num_blocks_for(g, num_tokens) - len(hit.blocks[g]) + int(hit.copy_last)
            for g in self._group_ids
        ]
        kept_blocks = tuple(b[:-1] if hit.copy_last else b for b in hit.blocks)
        fresh = self.placement.try_take(tables, kept_blocks, needs)
        if fresh is None:
            for group, blocks in enumerate(hit.blocks):
                self.pools[group].release(reversed(blocks))
            return None
        copies = []
        for group, blocks in enumerate(hit.blocks):
            kept = list(blocks)
            if hit.copy_last:
                source = kept.pop()
                # Copies run before the step's forward, so the source may be released (and reused) right away.
                copies.append(BlockCopy(group, source, fresh[group][0], hit.num_copied))
                self.pools[group].release((source,))
            for block in kept:
                self.prefixes[group].use(seq, block)
            tables.groups[group].extend(kept)
            tables.groups[group].extend(fresh[group])
        tables.num_promised = len(hit.blocks[self.main_group]) - int(hit.copy_last)
        self.placement.look_ahead(tables, num_tokens)
        return tuple(copies)

    def try_grow(self, tables: BlockTables, num_tokens: int) -> bool:
        """Make room for ``num_tokens`` tokens in all; False (and nothing changed) when the pools are exhausted."""
        if self._has_one_table and num_tokens <= len(tables.groups[0]) * self.block_size:
            needs = [0]  # the usual step of the usual model
        else:
            needs = [self.num_blocks_for(g, num_tokens) - len(tables.groups[g]) for g in self._group_ids]
        if max(needs) > 0 or not self.placement.is_placed(tables):
            fresh = self.placement.try_take(tables, tables.groups, needs)
            if fresh is None:
                return False
            for blocks, new in zip(tables.groups, fresh, strict=True):
                blocks.extend(new)
        self.placement.look_ahead(tables, num_tokens)
        return True

    def try_fork(
        self, parent: BlockTables, num_tokens: int
    ) -> tuple[BlockTables, tuple[BlockCopy, ...]] | None:
        """Tables sharing the parent's first ``num_tokens`` committed tokens: full blocks by reference, the tail copied.

        None when a tail block is wanted and none is available, or when a state group cannot be shared.
        """
        if any(self._is_state):
            return None
        num_full, tail = divmod(num_tokens, self.block_size)
        fresh = try_allocate_all(self.pools, [int(tail > 0) for _ in self._group_ids])
        if fresh is None:
            return None
        child = self.new_tables(parent.hashes[:num_full])
        copies = []
        for group, blocks in enumerate(parent.groups):
            for block in blocks[:num_full]:
                self.pools[group].acquire(block)
            child.groups[group].extend(blocks[:num_full])
            if tail:
                child.groups[group].extend(fresh[group])
                copies.append(BlockCopy(group, blocks[num_full], fresh[group][0], tail))
        child.num_promised = min(num_full, parent.num_promised)
        return child, tuple(copies)

    def free(self, tables: BlockTables) -> None:
        """Give everything back; named blocks stay cached."""
        self.placement.leave(tables)
        for group, blocks in enumerate(tables.groups):
            self.pools[group].release(reversed(blocks))
            blocks.clear()
            tables.num_mentioned[group] = 0
        tables.num_promised = 0

    # -- promised, committed, retracted -----------------------------------------------------------------------------

    def promise(self, seq: SeqId, tables: BlockTables, num_tokens: int) -> list[Promise]:
        """Offer the named blocks among the first ``num_tokens`` tokens to the index; returns what was promised."""
        start, end = tables.num_promised, min(num_tokens // self.block_size, len(tables.hashes))
        if not self._caching or end <= start:
            return []
        made = []
        for group, blocks in enumerate(tables.groups):
            index, pool = self.prefixes[group], self.pools[group]
            for i in range(start, end):
                block, name = blocks[i], tables.hashes[i]
                parent = tables.hashes[i - 1] if i else None
                if pool.hash_of(block) is None and index.promise(block, name, parent):
                    pool.name(block, name)
                    made.append(Promise(seq, group, block, name))
                    if self._partial is not None and tables.known is not None:
                        root, ids = tables.known
                        size = self.block_size
                        self._partial.promise(name, parent or root, ids[i * size : (i + 1) * size])
        tables.num_promised = end
        return made

    def commit(self, promises: Iterable[Promise]) -> None:
        """The step succeeded: what it promised is there."""
        for promise in promises:
            if self._partial is not None and self.is_promised(promise):
                self._partial.commit(promise.name)
            self.prefixes[promise.group].commit(promise.block, promise.name)

    def retract(self, promises: Iterable[Promise]) -> set[SeqId]:
        """The step failed: forget what it promised; returns who relied on it."""
        users: set[SeqId] = set()
        for _, group, block, name in promises:
            if self.prefixes[group].is_promised(block, name):  # else its block was freed and reused
                users |= self.prefixes[group].retract(block)
                self.pools[group].forget(block)
                if self._partial is not None:
                    self._partial.drop(name)
        return users

    def is_promised(self, promise: Promise) -> bool:
        """Whether the promise is still open."""
        return self.prefixes[promise.group].is_promised(promise.block, promise.name)

    def unpromise(self, tables: BlockTables, num_tokens: int) -> None:
        """After a retraction: blocks past the first ``num_tokens`` tokens will be offered anew."""
        tables.num_promised = min(tables.num_promised, num_tokens // self.block_size)

    def flip_state(self, tables: BlockTables) -> None:
        """State groups: what the committed step wrote becomes what the next one reads."""
        for group, is_state in enumerate(self._is_state):
            if is_state:
                tables.groups[group].reverse()

    def rollback(self, tables: BlockTables, num_tokens: int) -> int:
        """Nearest length <= ``num_tokens`` that every group can restore (a state group: only nothing)."""
        return 0 if any(self._is_state) else num_tokens

    def take_page_orders(self) -> tuple[PageOrder, ...]:
        """What the body has to map and unmap since the last call."""
        return self.placement.take_orders()

    def explain(self, tables: BlockTables) -> dict[str, int]:
        """How the sequence's blocks were placed, for the decision trace."""
        return self.placement.explain(tables)

    # -- the outside ------------------------------------------------------------------------------------------------

    def reset_prefixes(self) -> int:
        """Forget every committed prefix; returns how many blocks lost their name."""
        count = 0
        if self._partial is not None:
            self._partial.clear()
        for index, pool in zip(self.prefixes, self.pools, strict=True):
            for block in index.clear():
                pool.forget(block)
                count += 1
        return count

    def take_events(self) -> list[KvEvent]:
        """Committed and evicted blocks since the last call."""
        return [e for index in self.prefixes for e in index.take_events()]

    def snapshot(self) -> list[KvEvent]:
        """Everything committed, as stored events."""
        return [e for index in self.prefixes for e in index.snapshot()]

    def check(self, all_tables: Iterable[BlockTables]) -> None:
        """Raise InternalError when an invariant broke; costs O(blocks), for tests and idle times."""
        held: list[Counter[BlockId]] = [Counter() for _ in self._group_ids]
        everybody = list(all_tables)
        for tables in everybody:
            for group, blocks in enumerate(tables.groups):
                held[group].update(blocks)
        for pool, index, count in zip(self.pools, self.prefixes, held, strict=True):
            pool.check(count)
            index.check(pool)
        self.placement.check(everybody)
        for name in self._partial.names() if self._partial is not None else ():
            found = self.prefixes[0].match((name,))
            if not found or self.prefixes[0].is_promised(found[0], name):
                raise InternalError("a page that no prefix may hit could be copied from")
