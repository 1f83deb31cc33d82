"""min-p, top-k and top-p, each a threshold on the logit, so together one threshold per row.

A token survives if its logit is at least the threshold. Equal logits therefore share their fate: the set
does not depend on how a sort orders ties, nor on what else is in the batch.

    min-p   log-probability at least that of the best token + log(min_p)
    top-k   at least the k-th largest logit
    top-p   the probability of all strictly better survivors of min-p and top-k is below top_p of theirs

Only the best tokens of a row are sorted; their number grows until the last of them does not survive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

FIRST_CANDIDATES = 256
GROWTH = 16


@dataclass(frozen=True, slots=True)
class Survivors:
    """Candidates of some rows; -inf marks those that do not survive."""

    rows: torch.Tensor
    """int64 ``[R]``: which rows of the input."""
    values: torch.Tensor
    """float32 ``[R, K]``."""
    token_ids: torch.Tensor
    """int64 ``[R, K]``."""


def find_survivors(
    logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> Iterator[Survivors]:
    """Apply all three filters.

    Args:
        logits: float32 ``[R, V]`` after temperature, the largest of each row 0.
        top_k: int64 ``[R]``, 0 = all.
        top_p: float64 ``[R]``, 1 = all.
        min_p: float64 ``[R]``, 0 = all.

    Yields:
        Every row once, in parts with equally many candidates.
    """
    num_rows, vocab_size = logits.shape
    rows = torch.arange(num_rows, device=logits.device)
    count = min(vocab_size, max(FIRST_CANDIDATES, int(top_k.clamp(max=vocab_size).max()) + 1))
    while len(rows):
        part = logits if len(rows) == num_rows else logits.index_select(0, rows)
        if count == vocab_size:
            yield _full_rows(part, rows, top_k[rows], top_p[rows], min_p[rows])
            return
        values, token_ids = part.topk(count, dim=-1)
        threshold, settled = _threshold(part, values, top_k[rows], top_p[rows], min_p[rows])
        kept = values.masked_fill(values < threshold[:, None], float("-inf"))
        if bool(settled.all()):
            yield Survivors(rows, kept, token_ids)
            return
        yield Survivors(rows[settled], kept[settled], token_ids[settled])
        rows = rows[~settled]
        # Sorting all values costs little more than selecting a large part with its ids.
        count = count * GROWTH if count * GROWTH * 8 < vocab_size else vocab_size


def _full_rows(
    logits: torch.Tensor, rows: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> Survivors:
    """Rows that need every value sorted; every id is a candidate."""
    threshold, _ = _threshold(logits, _sorted(logits), top_k, top_p, min_p)
    ids = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape)
    return Survivors(rows, logits.masked_fill(logits < threshold[:, None], float("-inf")), ids)


def _sorted(logits: torch.Tensor) -> torch.Tensor:
    """Values of each row, largest first. On the host numpy's sort of values alone is many times faster."""
    if logits.is_cuda:
        return logits.sort(dim=-1, descending=True).values
    return torch.from_numpy(-np.sort(-logits.numpy(), axis=-1))


def _threshold(
    logits: torch.Tensor, values: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Threshold ``[R]`` of each row and whether the candidates ``values [R, K]`` settle it."""
    vocab_size, count = logits.shape[1], values.shape[1]
    kth = torch.where((top_k > 0) & (top_k < vocab_size), top_k, vocab_size)
    by_k = values.gather(1, (kth - 1).clamp(max=count - 1)[:, None])[:, 0]
    by_k = by_k.masked_fill(kth > count, float("-inf"))
    threshold = torch.maximum(by_k, min_p.log().to(values.dtype))
    covered = values[:, -1] < threshold
    weights = values.double().exp()
    cumulative = weights.cumsum(dim=-1)
    num_kept = (values >= threshold[:, None]).sum(dim=-1).clamp(min=1)
    total = cumulative.gather(1, (num_kept - 1)[:, None])[:, 0]
    is_open = (threshold == float("-inf")) & (top_p < 1)
    if bool(is_open.any()):
        total = torch.where(is_open, _row_sums(logits), total)
    # A run of equal logits starts with the mass before its first member.
    before = cumulative - weights
    is_new = torch.ones_like(values, dtype=torch.bool)
    is_new[:, 1:] = values[:, 1:] != values[:, :-1]
    before = before.masked_fill(~is_new, 0.0).cummax(dim=-1).values
    in_nucleus = (before < (top_p * total)[:, None]) & (values >= threshold[:, None])
    last = (in_nucleus.sum(dim=-1) - 1).clamp(min=0)
    nucleus = values.gather(1, last[:, None])[:, 0]
    threshold = torch.where(top_p < 1, torch.maximum(threshold, nucleus), threshold)
    settled = covered | (is_open & (values[:, -1] < threshold))
    return threshold, settled


def _row_sums(logits: torch.Tensor) -> torch.Tensor:
    return logits.exp().sum(dim=-1, dtype=torch.float64)
