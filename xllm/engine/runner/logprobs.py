"""Log-probabilities of chosen tokens and of the best ones, under the raw logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xllm.engine.kernels import Kernel
from xllm.engine.kernels.scoring.reference import Scores
from xllm.engine.kernels.scoring.reference import score as score_with_torch
from xllm.types.output import PositionLogprobs, TokenLogprob


def score_tokens(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    num_top: Sequence[int],
    *,
    rows: torch.Tensor | None = None,
    score: Kernel = score_with_torch,
) -> list[PositionLogprobs]:
    """Score one token per row of logits.

    Args:
        logits: float32 ``[N, V]``.
        token_ids: int64 ``[K]``, the sampled or prompt token of each row.
        num_top: ``[K]`` how many of the best tokens to list beside it; 0 = none.
        rows: int64 ``[K]``, which rows of the logits; None = all, K = N.
        score: the kernel.

    Returns:
        One entry per token. Ranks count from 1; equal logits share the better rank.
    """
    found: Scores = score(logits, rows, token_ids, num_top)
    scored = []
    for i, (token, count) in enumerate(zip(token_ids.tolist(), num_top, strict=True)):
        top = zip(found.top_ids[i][:count], found.top_logprobs[i][:count], range(1, count + 1), strict=False)
        chosen = TokenLogprob(token, found.logprobs[i], found.ranks[i])
        scored.append(PositionLogprobs(chosen, tuple(TokenLogprob(*t) for t in top)))
    return scored
