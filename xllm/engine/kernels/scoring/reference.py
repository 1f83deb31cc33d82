"""``score`` with torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Scores:
    """Of K tokens. Ranks count from 1; equal logits share the better rank."""

    logprobs: list[float]
    ranks: list[int]
    top_ids: list[list[int]]
    """Best first; at least as many as asked for, unless the vocabulary is smaller."""
    top_logprobs: list[list[float]]


def score(
    logits: torch.Tensor, rows: torch.Tensor | None, token_ids: torch.Tensor, num_top: Sequence[int]
) -> Scores:
    """Score one token of some rows.

    Args:
        logits: float32 ``[N, V]``.
        rows: int64 ``[K]``, which rows; None = all of them, K = N.
        token_ids: int64 ``[K]``.
        num_top: ``[K]`` how many of the best tokens are wanted.
    """
    if rows is not None:
        logits = logits[rows]
    normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
    chosen = logits.gather(1, token_ids[:, None])
    ranks = (logits > chosen).sum(dim=-1) + 1
    max_top = min(max(num_top, default=0), logits.shape[1])
    best = logits.topk(max_top, dim=-1)
    top_logprobs = (best.values - normaliser).tolist()
    return Scores((chosen - normaliser)[:, 0].tolist(), ranks.tolist(), best.indices.tolist(), top_logprobs)
