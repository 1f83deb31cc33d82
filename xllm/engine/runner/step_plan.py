"""StepPlan: a Batch turned into arrays by vectorised reads of the persistent rows.

Shapes: S scheduled rows, T tokens of the step, N logit rows (samples), P scored prompt tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xllm.engine.runner.rows import IntArray, PersistentRows, TokenArray
from xllm.errors import InternalError, Unsupported
from xllm.types.batch import Batch


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Where every token of a step comes from and goes to; host arrays."""

    rows: IntArray
    """``[S]`` row numbers."""
    start: IntArray
    """``[S]`` tokens whose KV is there."""
    num_new: IntArray
    """``[S]``"""
    query_start: IntArray
    """``[S + 1]`` tokens ``query_start[i] .. query_start[i + 1]`` belong to scheduled row i."""
    token_ids: IntArray
    """``[T]``"""
    positions: IntArray
    """``[T]``"""
    slots: IntArray
    """``[T]`` block * block_size + offset."""
    block_tables: TokenArray
    """``[S, M]``"""
    sample_tokens: IntArray
    """``[N]`` which of the T tokens a sample follows, in batch order."""
    sample_owner: IntArray
    """``[N]`` which of the S rows owns it."""
    scored_tokens: IntArray
    """``[P]`` which of the T tokens score the prompt token after them."""
    scored_owner: IntArray
    """``[P]``"""

    @property
    def seq_lens(self) -> IntArray:
        """``[S]`` tokens per row including the new ones."""
        return self.start + self.num_new

    @property
    def sample_positions(self) -> IntArray:
        """``[N]`` position in its sequence of the token that is sampled."""
        return self.positions[self.sample_tokens] + 1

    @property
    def is_last_sample(self) -> NDArray[np.bool_]:
        """``[N]`` whether the sample follows the row's last new token: it extends the history."""
        return self.sample_tokens == self.query_start[self.sample_owner + 1] - 1


def plan_step(rows: PersistentRows, batch: Batch) -> StepPlan:
    """Gather the inputs of a step; the batch's row orders must have been applied.

    Raises:
        Unsupported: a reserved part of the batch is used (drafts, pages, transfers, encodes, placements).
        InternalError: the batch names tokens or blocks the rows do not have.
    """
    _refuse_reserved(batch)
    scheduled = batch.rows
    row_ids = np.array([r.row for r in scheduled], dtype=np.int64)
    start = np.array([r.start for r in scheduled], dtype=np.int64)
    num_new = np.array([r.num_new_tokens for r in scheduled], dtype=np.int64)
    num_logits = np.array([r.num_logits for r in scheduled], dtype=np.int64)
    _check(rows, row_ids, start, num_new, num_logits)
    query_start = np.zeros(len(scheduled) + 1, dtype=np.int64)
    np.cumsum(num_new, out=query_start[1:])
    owner, positions = _expand(start, num_new, query_start)
    token_rows = row_ids[owner]
    size = rows.block_size
    table = rows.tables[0]
    longest = int(-(-(start + num_new).max() // size))
    return StepPlan(
        rows=row_ids,
        start=start,
        num_new=num_new,
        query_start=query_start,
        token_ids=rows.token_ids[token_rows, positions].astype(np.int64),
        positions=positions,
        slots=table[token_rows, positions // size] * np.int64(size) + positions % size,
        block_tables=table[row_ids, :longest],
        **_plan_logits(query_start, num_new, num_logits),
        **_plan_scores(rows, batch, row_ids, owner, positions),
    )


def _expand(start: IntArray, num_new: IntArray, query_start: IntArray) -> tuple[IntArray, IntArray]:
    """Owner and position of every token."""
    num_rows, num_tokens = len(start), int(query_start[-1])
    if num_tokens == num_rows:  # decodes only: one token each
        return np.arange(num_rows), start
    owner = np.repeat(np.arange(num_rows), num_new)
    return owner, np.arange(num_tokens) + (start - query_start[:-1])[owner]


def _plan_logits(query_start: IntArray, num_new: IntArray, num_logits: IntArray) -> dict[str, IntArray]:
    """The last ``num_logits`` tokens of each row."""
    if num_logits.max() <= 1:
        owner = np.flatnonzero(num_logits)
        return {"sample_tokens": query_start[owner + 1] - 1, "sample_owner": owner}
    owner = np.repeat(np.arange(len(num_logits)), num_logits)
    ends = np.cumsum(num_logits)
    back = ends[owner] - np.arange(ends[-1])
    return {"sample_tokens": query_start[owner + 1] - back, "sample_owner": owner}


def _plan_scores(
    rows: PersistentRows, batch: Batch, row_ids: IntArray, owner: IntArray, positions: IntArray
) -> dict[str, IntArray]:
    """Tokens whose successor is a prompt token that somebody wants scored."""
    if not any(r.want_prompt_logprobs for r in batch.rows):
        none = np.zeros(0, dtype=np.int64)
        return {"scored_tokens": none, "scored_owner": none}
    wanted = np.array([r.want_prompt_logprobs for r in batch.rows], dtype=np.bool_)
    scored = np.flatnonzero(wanted[owner] & (positions + 1 < rows.num_prompt_tokens[row_ids][owner]))
    return {"scored_tokens": scored, "scored_owner": owner[scored]}


def _check(
    rows: PersistentRows, row_ids: IntArray, start: IntArray, num_new: IntArray, num_logits: IntArray
) -> None:
    end = start + num_new
    known = rows.num_tokens.take(row_ids)  # a row that nobody introduced has none
    slots = rows.num_blocks[0].take(row_ids) * rows.block_size
    bad = (np.minimum(known, slots) < end) | (num_new < np.maximum(num_logits, 1))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        row = int(row_ids[i])
        raise InternalError(
            f"row {row} is scheduled for tokens {start[i]}..{end[i]} with {num_logits[i]} logits, but the body has "
            f"{rows.num_tokens[row]} tokens and {rows.num_blocks[0, row]} blocks of {rows.block_size} of it "
            f"(known: {bool(rows.is_known[row])})"
        )


def _refuse_reserved(batch: Batch) -> None:
    for name in ("page_orders", "transfers", "encodes", "placements"):
        if getattr(batch, name):
            raise Unsupported(f"the batch has {name}: not built")
    for row in batch.rows:
        if row.draft_ids or row.num_body_drafts:
            raise Unsupported(f"row {row.row} has drafts: not built")
