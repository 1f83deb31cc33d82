"""PersistentRows: what the body remembers of every sequence between steps, as columns indexed by row number.

A sequence is introduced once with full data and afterwards only named. Each step gathers its inputs from these
columns with a handful of vectorised reads; nothing here is read by the device while it is written.

Columns, R rows, L = max_model_len, B blocks:

    token_ids  [R, L] int32   prompt and output; position p holds the token whose KV is computed at position p
    num_tokens [R]            how many of them are known, sampled ones included
    tables[g]  [R, B] int32   block table per KV group, B grows when a row needs more
    num_blocks [G, R]         valid entries per table
    generation [R]            counts introductions, so that what is derived from a row can tell that it is another one

INVARIANTS
- ``token_ids[r, :num_tokens[r]]`` is the row's whole history: a sampled token is written by the body in the step that
  samples it, so a later step needs no token ids from the brain (and may be planned before the sample exists).
- Only orders of a Batch and the samples of a step change a row. Steps of a dead epoch are answered without being
  seen here, so what a row holds may be older than the brain thinks: introducing a row replaces whatever it held, and
  freeing an unknown one is harmless.
- A freed row keeps stale values; adding a row overwrites all of its columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xllm.engine.runner.sampling_columns import SamplingColumns
from xllm.errors import InternalError
from xllm.types.batch import Batch, BatchRow, NewRow

IntArray = NDArray[np.int64]
TokenArray = NDArray[np.int32]

_FIRST_TABLE_WIDTH = 16


class PersistentRows:
    """Rows of one engine; see the module's map and invariants."""

    def __init__(self, *, max_rows: int, max_model_len: int, block_size: int, num_groups: int = 1) -> None:
        self.max_rows = max_rows
        self.max_model_len = max_model_len
        self.block_size = block_size
        self.token_ids: TokenArray = np.zeros((max_rows, max_model_len), dtype=np.int32)
        self.num_tokens: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.num_prompt_tokens: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.num_blocks: IntArray = np.zeros((num_groups, max_rows), dtype=np.int64)
        self.tables: list[TokenArray] = [
            np.zeros((max_rows, _FIRST_TABLE_WIDTH), dtype=np.int32) for _ in range(num_groups)
        ]
        self.is_known: NDArray[np.bool_] = np.zeros(max_rows, dtype=np.bool_)
        self.generation: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.sampling = SamplingColumns(max_rows)

    @property
    def num_known(self) -> int:
        """Rows in use."""
        return int(self.is_known.sum())

    def apply(self, batch: Batch) -> None:
        """Carry out the row orders of a step: frees, then new rows, then grown block tables.

        Raises:
            InternalError: a row number out of range, a scheduled row nobody introduced, or more tokens than
                ``max_model_len``.
        """
        for row in batch.freed_rows:
            self.free(row)
        for new in batch.new_rows:
            self.add(new)
        for scheduled in batch.rows:
            if scheduled.new_block_ids:
                self._grow_tables(scheduled)

    def add(self, new: NewRow) -> None:
        """Introduce a sequence with its history and block tables, in place of whatever the row held."""
        row, num_tokens = new.row, len(new.token_ids)
        if not 0 <= row < self.max_rows:
            raise InternalError(f"row {row} of {self.max_rows} cannot be introduced")
        if not new.request.num_prompt_tokens <= num_tokens <= self.max_model_len:
            raise InternalError(
                f"row {row} has {num_tokens} tokens: a prompt of {new.request.num_prompt_tokens}, "
                f"max_model_len {self.max_model_len}"
            )
        self.is_known[row] = True
        self.generation[row] += 1
        self.token_ids[row, :num_tokens] = new.token_ids
        self.num_tokens[row] = num_tokens
        self.num_prompt_tokens[row] = new.request.num_prompt_tokens
        for group, blocks in enumerate(new.block_tables):
            self.num_blocks[group, row] = 0
            self._append_blocks(group, row, blocks)
        self.sampling.add(row, new.request, new.choice)

    def free(self, row: int) -> None:
        """Forget a sequence."""
        if self.is_known[row]:
            self.is_known[row] = False
            self.num_tokens[row] = 0
            self.sampling.free(row)

    def append_samples(self, rows: IntArray, positions: IntArray, token_ids: IntArray) -> None:
        """Write one sampled token per row at the position it will be computed at; ``[S]`` each.

        A sample past ``max_model_len`` is the row's last one and needs no place.
        """
        fits = positions < self.max_model_len
        if not fits.all():
            rows, positions, token_ids = rows[fits], positions[fits], token_ids[fits]
        self.token_ids[rows, positions] = token_ids
        self.num_tokens[rows] = positions + 1

    def history(self, row: int) -> TokenArray:
        """The known tokens of a row, a view."""
        return self.token_ids[row, : self.num_tokens[row]]

    def _grow_tables(self, scheduled: BatchRow) -> None:
        if not self.is_known[scheduled.row]:
            raise InternalError(f"row {scheduled.row} is scheduled but was never introduced")
        for group, blocks in enumerate(scheduled.new_block_ids):
            if blocks:
                self._append_blocks(group, scheduled.row, blocks)

    def _append_blocks(self, group: int, row: int, blocks: Sequence[int]) -> None:
        first = int(self.num_blocks[group, row])
        end = first + len(blocks)
        table = self.tables[group]
        if end > table.shape[1]:
            width = max(end, min(2 * table.shape[1], -(-self.max_model_len // self.block_size)))
            wider = np.zeros((self.max_rows, width), dtype=np.int32)
            wider[:, : table.shape[1]] = table
            self.tables[group] = table = wider
        table[row, first:end] = blocks
        self.num_blocks[group, row] = end
