"""Batch: one step as the brain orders it. BatchResult: what the body answers.

The brain allocates row numbers, blocks and slots; the body carries out. A row is introduced once with full data
(:class:`NewRow`) and afterwards only by differences (:class:`BatchRow`). Orders inside one Batch apply in this
sequence: frees, new rows, copies, then the forward. Rows write their KV of a layer before any row attends in it, so a
row may use blocks that another row of the same Batch fills.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from xllm.types.ids import BlockId, RequestId, RowId, SeqId, StepId
from xllm.types.output import OutputError, PositionLogprobs
from xllm.types.request import Request


class NewRow(Struct, frozen=True, kw_only=True):
    """A sequence the body does not hold yet: its whole history and its block tables."""

    row: RowId
    seq: SeqId
    request: Request
    choice: int
    token_ids: tuple[int, ...]
    """Prompt and every known output token."""
    block_tables: tuple[tuple[BlockId, ...], ...]
    """Per KV group."""
    range_id: int = -1
    """xTensor: the virtual range in which the pages of ``block_tables`` lie one after another."""
    pos_delta: int = 0
    """Reserved for M-RoPE: what later positions differ from the token index by."""
    position_segments: tuple[tuple[int, ...], ...] = ()
    """Reserved for M-RoPE."""


class BatchRow(Struct, frozen=True):
    """One scheduled row of this step."""

    row: RowId
    start: int
    """Tokens whose KV exists (or is being written by an earlier step) before this step."""
    num_new_tokens: int
    """Tokens ``start .. start + num_new_tokens`` are computed now."""
    new_block_ids: tuple[tuple[BlockId, ...], ...]
    """Per KV group, blocks appended to the row's table since it was last mentioned."""
    num_logits: int = 0
    """Logits are wanted for the last k of the new tokens; a sample is drawn from each. 0 = an unfinished prefill."""
    want_prompt_logprobs: bool = False
    after: StepId | None = None
    """The last new token is the one that step ``after`` samples; the body fills it in (asynchronous scheduling)."""
    draft_ids: tuple[int, ...] = ()
    """Reserved for speculation: draft tokens known to the brain, the last ones of the new tokens."""
    num_body_drafts: int = 0
    """Reserved for speculation: drafts that only the body holds."""


class BlockCopy(Struct, frozen=True, array_like=True):
    """Copy the first ``num_slots`` slots of a block (fork of a partly filled tail)."""

    group: int
    source: BlockId
    target: BlockId
    num_slots: int


class PageOrder(Struct, frozen=True, array_like=True):
    """xTensor: have a physical page mapped at a place of a virtual range, instead of whatever is there, or nothing."""

    kind: Literal["map", "unmap"]
    range_id: int
    offset: int
    """In pages."""
    page: int
    is_ahead: bool = False
    """Not needed by this step: may be carried out while it runs, must be done before the next one begins."""


class TransferOrder(Struct, frozen=True, kw_only=True):
    """Reserved for tiers and PD: move blocks to or from a tier or a peer, with a deadline."""

    id: str
    kind: Literal["load", "save", "send", "receive"]
    blocks: tuple[BlockId, ...]
    peer: str = ""
    deadline_in_s: float = 0.0


class EncodeOrder(Struct, frozen=True, kw_only=True):
    """Reserved for vision: run the encoder on one media item."""

    request_id: RequestId
    item: int
    entry: int


class PlacementOrder(Struct, frozen=True, kw_only=True):
    """Reserved for expert balance: prepare or activate a planned expert placement."""

    kind: Literal["prepare", "activate"]
    layer: int
    token: int
    slots: tuple[int, ...] = ()


class Batch(Struct, frozen=True, kw_only=True):
    """One step."""

    step: StepId
    rows: tuple[BatchRow, ...]
    new_rows: tuple[NewRow, ...] = ()
    freed_rows: tuple[RowId, ...] = ()
    copies: tuple[BlockCopy, ...] = ()
    num_tokens: int = 0
    """Sum of ``num_new_tokens``."""
    has_mask: bool = False
    """A :class:`StepMask` for this step follows through ``Executor.supply_mask`` before sampling."""
    interruptible: bool = False
    """Iff every row is offline work."""
    epoch: int = 0
    """Group epoch, raised when a step did not succeed: the body answers ``interrupted`` to every step of the epoch in
    which one failed or was interrupted, since it was planned on top of that."""
    page_orders: tuple[PageOrder, ...] = ()
    transfers: tuple[TransferOrder, ...] = ()
    encodes: tuple[EncodeOrder, ...] = ()
    placements: tuple[PlacementOrder, ...] = ()


class StepMask(Struct, frozen=True, kw_only=True):
    """Which ids each logit row may sample: little-endian packed bits, a late input of a step.

    ``bits`` holds ``len(logit_rows)`` rows of ``(vocab_size + 31) // 32 * 4`` bytes; bit set = allowed. Logit rows not
    listed are unmasked. Logit rows are numbered in batch order (row by row, position by position).
    """

    step: StepId
    vocab_size: int
    logit_rows: tuple[int, ...]
    bits: bytes


class RowError(Struct, frozen=True, array_like=True):
    """A failure of one row; the others of the step are fine. ``index`` counts in ``Batch.rows``."""

    index: int
    error: OutputError


class StepFacts(Struct, frozen=True, kw_only=True):
    """What was measured while the step ran, in seconds."""

    forward_s: float = 0.0
    sample_s: float = 0.0
    prepare_s: float = 0.0
    total_s: float = 0.0
    expert_counts: tuple[tuple[int, ...], ...] = ()
    """Reserved for expert balance."""


class BatchResult(Struct, frozen=True, kw_only=True):
    """Outcome of one step; all tuples are aligned with ``Batch.rows``."""

    step: StepId
    status: Literal["ok", "interrupted", "failed"]
    tokens: tuple[tuple[int, ...], ...] = ()
    """Sampled per row: 0..k."""
    logprobs: tuple[tuple[PositionLogprobs, ...] | None, ...] = ()
    """Empty when no row asked."""
    prompt_logprobs: tuple[tuple[PositionLogprobs, ...] | None, ...] = ()
    """Per row, for prompt tokens ``start + 1 ..`` of the chunk; empty when no row asked."""
    row_errors: tuple[RowError, ...] = ()
    error: OutputError | None = None
    """Why a failed step failed."""
    next_drafts: tuple[tuple[int, ...], ...] = ()
    """Reserved for speculation."""
    item_errors: tuple[tuple[RequestId, int, str], ...] = ()
    """Reserved for vision: (request, item, message)."""
    facts: StepFacts = StepFacts()
    epoch: int = 0


class IoResult(Struct, frozen=True, kw_only=True):
    """Reserved for tiers, PD and encode: something that ended outside a step."""

    id: str
    ok: bool
    blocks: tuple[BlockId, ...] = ()
    item: int | None = None
    error: OutputError | None = None
