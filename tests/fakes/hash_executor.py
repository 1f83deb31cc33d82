"""A body without a model: keeps rows and KV contents, answers with hashed tokens, and checks what it reads.

It stores, per KV slot, the token and position that were written there. A row that attends to a slot holding anything
else than its own history fails the test: that is how wrong sharing, a missed copy or a stale block shows. In the layout
of virtual ranges it writes and reads through what is really mapped, with the production PageMap over a simulated system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tests.fakes.page_mapper import SimulatedMapper
from xllm.engine.memory.page_map import LateBackground, PageMap
from xllm.types.batch import Batch, BatchResult, NewRow, StepMask
from xllm.types.output import OutputError
from xllm.types.pages import PageGeometry


def next_token(history: Sequence[int], seed: int, choice: int, vocab_size: int) -> int:
    """The model of this fake: a hash of everything so far."""
    raw = repr((tuple(history), seed, choice)).encode()
    return int.from_bytes(hashlib.blake2b(raw, digest_size=4).digest(), "little") % vocab_size


class HashExecutor:
    """Runs a Batch at once; ``outcome`` chooses how the step ends."""

    def __init__(
        self,
        *,
        block_size: int,
        num_blocks: int,
        vocab_size: int,
        kv_group: int = 0,
        pages: PageGeometry | None = None,
        refusal: float = 0.0,
    ) -> None:
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.kv_group = kv_group
        self.slots: list[tuple[int, int] | None] = [None] * (num_blocks * block_size)
        self.rows: dict[int, NewRow] = {}
        self.tokens: dict[int, list[int]] = {}
        self.tables: dict[int, list[int]] = {}
        self.num_tokens_computed = 0
        self.num_copies = 0
        self.dead_epoch = -1
        self.masks: dict[int, StepMask] = {}
        self.mapper = SimulatedMapper(pages, refusal=refusal) if pages is not None else None
        self.pages: PageMap | None = None
        if pages is not None and self.mapper is not None:
            self.pages = PageMap(self.mapper, pages, LateBackground())

    def run(self, batch: Batch, outcome: str = "ok") -> BatchResult:
        """Carry out one step and answer."""
        if batch.epoch <= self.dead_epoch:  # planned on top of a step that did not succeed
            return BatchResult(step=batch.step, status="interrupted")
        if outcome != "ok":
            self.dead_epoch = batch.epoch
        if outcome == "failed":  # nothing of it happened, the worst case for the brain
            return BatchResult(
                step=batch.step, status="failed", error=OutputError("InternalError", 500, "injected")
            )
        if self.pages is not None:
            batch = self.pages.place(batch)
        for row in batch.freed_rows:
            for held in (self.rows, self.tokens, self.tables):
                held.pop(row, None)
        for new in batch.new_rows:
            self.rows[new.row] = new
            self.tokens[new.row] = list(new.token_ids)
            self.tables[new.row] = list(new.block_tables[self.kv_group])
        for copy in batch.copies:
            if copy.group == self.kv_group:
                self.num_copies += 1
                a, b = copy.source * self.block_size, copy.target * self.block_size
                self.slots[b : b + copy.num_slots] = self.slots[a : a + copy.num_slots]
        for row in batch.rows:
            if row.new_block_ids:
                self.tables[row.row].extend(row.new_block_ids[self.kv_group])
        if outcome == "interrupted":  # half of the KV was written
            self._write(batch, share=0.5)
            return BatchResult(step=batch.step, status="interrupted")
        self._write(batch)
        return BatchResult(step=batch.step, status="ok", tokens=tuple(self._sample(batch)))

    def _slot(self, row: int, position: int) -> int:
        block = self.tables[row][position // self.block_size]
        if self.mapper is not None:
            block = self.mapper.page_of(block)
        return block * self.block_size + position % self.block_size

    def _write(self, batch: Batch, share: float = 1.0) -> None:
        self._check_writers(batch)
        for row in batch.rows:
            count = int(row.num_new_tokens * share)
            for position in range(row.start, row.start + count):
                self.slots[self._slot(row.row, position)] = (self.tokens[row.row][position], position)
                self.num_tokens_computed += 1

    def _check_writers(self, batch: Batch) -> None:
        """At most one row of a step writes a block."""
        writers: dict[int, int] = {}
        for row in batch.rows:
            for position in range(row.start, row.start + row.num_new_tokens):
                block = self._slot(row.row, position) // self.block_size
                assert writers.setdefault(block, row.row) == row.row, f"two rows write block {block}"

    def _sample(self, batch: Batch) -> list[tuple[int, ...]]:
        out = []
        for row in batch.rows:
            history = self.tokens[row.row]
            for position in range(row.start + row.num_new_tokens):
                got = self.slots[self._slot(row.row, position)]
                assert got == (history[position], position), (
                    f"row {row.row} reads {got} at position {position}"
                )
            if not row.num_logits:
                out.append(())
                continue
            new = self.rows[row.row]
            token = next_token(history, new.request.seed, new.choice, self.vocab_size)
            assert len(history) == row.start + row.num_new_tokens
            history.append(token)
            out.append((token,))
        return out
