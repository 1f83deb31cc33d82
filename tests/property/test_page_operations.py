"""Random operations on the page pool: admit, grow, fork, write, copy, free, promise, commit, retract, forget; orders
that are refused or never arrive.

Contents are kept per physical page and written and read through what the simulated system has really mapped, so a page
with two writers, a stale mapping or a missed copy shows as a wrong read. 10^5 operations in CI; 10^6 by

    PAGE_OPERATIONS=1000000 python -m pytest tests/property/test_page_operations.py
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from tests.fakes.batches import make_request
from tests.fakes.page_mapper import SimulatedMapper
from xllm.engine.cache.block_table import BlockTables
from xllm.engine.cache.kv_cache import KVCache, PrefixHit, Promise
from xllm.engine.cache.pages.page_pool import PagePool, PageState
from xllm.engine.cache.pages.placement import RangePlacement
from xllm.engine.memory.page_map import LateBackground, PageMap
from xllm.types.batch import Batch, BatchRow, BlockCopy, NewRow
from xllm.types.block_hash import block_hashes, root_hash
from xllm.types.kv_layout import build_attention_layout
from xllm.types.pages import PageGeometry

OPERATIONS = int(os.environ.get("PAGE_OPERATIONS", "100000"))
PER_LIFE, PAGE, PER_RANGE = 500, 3, 9
MAX_LEN = PAGE * PER_RANGE
ROOT = root_hash(block_size=PAGE)
LAYOUT = build_attention_layout(block_size=PAGE, num_layers=1, num_kv_heads=1, head_dim=2, dtype="float32")


class Seq:
    """A sequence: what it says, how much of it is written, and its row in the body (-1: a fork that waits)."""

    def __init__(self, number: int, tokens: list[int], tables: BlockTables, row: int) -> None:
        self.id = number
        self.tokens = tokens
        self.tables = tables
        self.row = row
        self.num_done = 0
        self.is_known = False
        self.open: list[Promise] = []


class Life:
    """One cache with its body, and what happens to them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        pages, ranges = rng.choice([9, 12, 20, 40]), rng.choice([1, 2, 4, 6])
        self.geometry = PageGeometry(
            page_bytes=65536,
            tokens_per_page=PAGE,
            pages_per_range=PER_RANGE,
            num_ranges=ranges,
            max_mappings=int(pages * rng.choice([1.0, 1.5, 4.0])),
        )
        self.cache = KVCache(
            LAYOUT,
            [pages],
            enable_prefix_caching=rng.random() < 0.7,
            pages=self.geometry,
            num_ahead_tokens=rng.choice([1, 2, 5]),
        )
        self.mapper = SimulatedMapper(
            self.geometry, refusal=rng.choice([0.0, 0.02, 0.4]), seed=rng.randrange(99)
        )
        self.body = PageMap(self.mapper, self.geometry, LateBackground())
        self.contents: list[list[tuple[int, int] | None]] = [[None] * PAGE for _ in range(pages)]
        self.blocks: dict[int, list[int]] = {}
        self.running: list[Seq] = []
        self.forks: list[Seq] = []
        self.copies: list[BlockCopy] = []
        self.seen: Counter[str] = Counter()
        self.num_seqs = 0
        self.step = 0

    @property
    def rows(self) -> set[int]:
        return {s.row for s in self.running}

    def free_row(self) -> int | None:
        return next((r for r in range(self.geometry.num_ranges) if r not in self.rows), None)

    # -- operations -------------------------------------------------------------------------------------------------

    def admit(self) -> None:
        row = self.free_row()
        if row is None:
            return
        rng = self.rng
        family = rng.randrange(4)
        tokens = [family * 100 + i for i in range(rng.randrange(1, MAX_LEN - 1))]
        if rng.random() < 0.5:
            tokens[-1] = rng.randrange(1000, 2000)
        self.num_seqs += 1
        tables = self.cache.new_tables(block_hashes(tokens, block_size=PAGE, root=ROOT))
        hit = self.cache.match(tables, len(tokens), ROOT, tokens)
        self._enter(Seq(self.num_seqs, tokens, tables, row), hit)

    def _enter(self, seq: Seq, hit: PrefixHit) -> None:
        end = self.rng.randint(hit.num_tokens + 1, len(seq.tokens))
        copies = self.cache.try_admit(seq.id, seq.tables, hit, end)
        if copies is None:
            self.seen["refused admission"] += 1
            return
        self.copies.extend(copies)
        seq.num_done = hit.num_tokens
        self.running.append(seq)
        self.seen["hits"] += hit.num_tokens > 0
        self.seen["partial hits"] += hit.num_copied > 0 and hit.num_tokens < len(seq.tokens) - 1

    def fork(self) -> None:
        parents = [s for s in self.running if s.num_done > 1]
        if parents and len(self.forks) < 3:
            parent = self.rng.choice(parents)
            length = self.rng.randint(1, parent.num_done - 1)
            made = self.cache.try_fork(parent.tables, length)
            if made is not None:
                self.num_seqs += 1
                tables, copies = made
                child = Seq(
                    self.num_seqs, [*parent.tokens[:length], self.rng.randrange(3000, 4000)], tables, -1
                )
                child.num_done = length
                self.copies.extend(copies)
                self.forks.append(child)
                self.seen["forks"] += 1

    def seat_fork(self) -> None:
        row = self.free_row()
        if row is not None and self.forks:
            child = self.rng.choice(self.forks)
            if self.cache.try_grow(child.tables, len(child.tokens)):
                child.row = row
                self.forks.remove(child)
                self.running.append(child)

    def run_step(self) -> None:
        """Some sequences write their next tokens and read all of theirs; or the step is lost on its way."""
        rng = self.rng
        rows, new_rows, writers = [], [], []
        for seq in self.running:
            if rng.random() < 0.3:
                continue
            if seq.num_done == len(seq.tokens):
                if len(seq.tokens) >= MAX_LEN:
                    continue
                seq.tokens.append(rng.randrange(5000, 6000))
            count = rng.randint(1, min(7, len(seq.tokens) - seq.num_done))
            if not self.cache.try_grow(seq.tables, seq.num_done + count):
                self.seen["sat out"] += 1
                continue
            self._promise(seq, seq.num_done + count)
            if not seq.is_known:
                new_rows.append(self._introduce(seq))
            appended = seq.tables.take_new() if seq.is_known else ((),)
            seq.is_known = True
            rows.append(BatchRow(seq.row, seq.num_done, count, appended if appended[0] else ()))
            writers.append((seq, count))
        copies, self.copies = tuple(self.copies), []
        self.step += 1
        batch = Batch(
            step=self.step, rows=tuple(rows), new_rows=tuple(new_rows), copies=copies,
            page_orders=self.cache.take_page_orders(),
        )  # fmt: skip
        if not copies and rng.random() < 0.1:  # lost: nothing of it reaches the body
            for seq in self.running:  # who relied on its promises is taken back with it, see EngineCore
                self._retract(seq)
            self.seen["lost"] += 1
            return
        self._carry_out(batch, writers)
        for seq, count in writers:
            seq.num_done += count
            self.cache.commit(seq.open)
            seq.open = []

    def _promise(self, seq: Seq, num_tokens: int) -> None:
        if num_tokens <= len(seq.tokens):
            self.cache.extend_hashes(seq.tables, ROOT, seq.tokens)
            seq.open += self.cache.promise(seq.id, seq.tables, num_tokens)

    def _introduce(self, seq: Seq) -> NewRow:
        request = make_request(str(seq.id), (1,))
        return NewRow(
            row=seq.row, seq=seq.id, request=request, choice=0, token_ids=(1,),
            block_tables=seq.tables.take_new(), range_id=seq.tables.range_id,
        )  # fmt: skip

    def _retract(self, seq: Seq) -> None:
        self.cache.retract(seq.open)
        seq.open = []
        self.cache.unpromise(seq.tables, seq.num_done)
        seq.is_known = False
        seq.tables.num_mentioned = [0]

    def _carry_out(self, batch: Batch, writers: list[tuple[Seq, int]]) -> None:
        batch = self.body.place(batch)
        for new in batch.new_rows:
            self.blocks[new.row] = []
        for row in batch.rows:
            for blocks in row.new_block_ids:
                self.blocks[row.row].extend(blocks)
        for copy in batch.copies:
            self.contents[copy.target][: copy.num_slots] = self.contents[copy.source][: copy.num_slots]
            self.seen["copies"] += 1
        written: dict[int, int] = {}
        for seq, count in writers:
            for position in range(seq.num_done, seq.num_done + count):
                page = self._page(seq, position)
                assert written.setdefault(page, seq.id) == seq.id, f"page {page} has two writers"
                self.contents[page][position % PAGE] = (seq.tokens[position], position)
        for seq, count in writers:
            for position in range(seq.num_done + count):
                got = self.contents[self._page(seq, position)][position % PAGE]
                assert got == (seq.tokens[position], position), f"sequence {seq.id} reads {got} at {position}"

    def _page(self, seq: Seq, position: int) -> int:
        return self.mapper.page_of(self.blocks[seq.row][position // PAGE])

    def end(self) -> None:
        """Finish or preempt someone; a promise that is open stays with the pages."""
        everybody = self.running + self.forks
        if everybody:
            seq = self.rng.choice(everybody)
            self._retract(seq)
            self.cache.free(seq.tables)
            (self.running if seq in self.running else self.forks).remove(seq)

    def forget_prefixes(self) -> None:
        if self.rng.random() < 0.05:
            self.cache.reset_prefixes()

    # -- what must hold ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        self.cache.check([s.tables for s in self.running + self.forks])
        pool = self.cache.pools[0]
        assert isinstance(pool, PagePool)
        states = Counter(pool.state_of(page) for page in range(pool.total))
        assert states[PageState.ALLOCATED] + states[PageState.MAPPED] == pool.num_used
        assert states[PageState.REUSABLE] == pool.num_spare + pool.num_cached
        assert states[PageState.FREE] == pool.num_unmapped

    def finish(self) -> None:
        """Everybody leaves; nothing may be left behind."""
        while self.running or self.forks:
            self.end()
        self.check()
        pool, placement = self.cache.pools[0], self.cache.placement
        assert isinstance(placement, RangePlacement)
        assert pool.num_available == pool.total and len(placement.book.idle) == self.geometry.num_ranges
        for name in ("rebound", "shared", "ahead"):
            self.seen[name] += getattr(placement, f"num_{name}")
        for name in ("mapped", "unmapped", "refused", "repaired"):
            self.seen[name] += getattr(self.body, f"num_{name}")
        if not self.body.num_refused and not self.seen["lost"]:
            assert self.body.num_repaired == 0, "an order was forgotten"


@pytest.mark.timeout(7200)
def test_random_operations_of_the_page_pool() -> None:
    seen: Counter[str] = Counter()
    for life_number in range(max(1, OPERATIONS // PER_LIFE)):
        life = Life(random.Random(life_number))
        operations = [life.admit, life.run_step, life.fork, life.seat_fork, life.end, life.forget_prefixes]
        for _ in range(PER_LIFE):
            life.rng.choices(operations, [3, 10, 0.7, 2, 1.5, 0.3])[0]()
            life.check()
        life.finish()
        seen.update(life.seen)
    print(dict(seen))
    never = [n for n in ("hits", "partial hits", "forks", "copies", "rebound", "shared", "ahead", "mapped", "unmapped", "refused",
                         "repaired", "lost", "sat out", "refused admission") if not seen[n]]  # fmt: skip
    assert not never, f"never happened: {never} in {seen}"
