"""Log-probabilities of chosen tokens and of the best ones, under the raw logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xllm.types.output import PositionLogprobs, TokenLogprob


def score_tokens(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: Sequence[int]
) -> list[PositionLogprobs]:
    """Score one token per row of logits.

    Args:
        logits: float32 ``[N, V]``.
        token_ids: int64 ``[N]``, the sampled or prompt token of each row.
        num_top: ``[N]`` how many of the best tokens to list beside it; 0 = none.

    Returns:
        One entry per row. Ranks count from 1; equal logits share the better rank.
    """
    normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
    chosen = logits.gather(1, token_ids[:, None])
    ranks = (logits > chosen).sum(dim=-1) + 1
    token_list, rank_list = token_ids.tolist(), ranks.tolist()
    chosen_list = (chosen - normaliser)[:, 0].tolist()
    max_top = min(max(num_top, default=0), logits.shape[1])
    if max_top == 0:
        rows = zip(token_list, chosen_list, rank_list, strict=True)
        return [PositionLogprobs(TokenLogprob(*row)) for row in rows]
    best = logits.topk(max_top, dim=-1)
    best_ids, best_values = best.indices.tolist(), (best.values - normaliser).tolist()
    scored = []
    for i, count in enumerate(num_top):
        top = zip(best_ids[i][:count], best_values[i][:count], range(1, count + 1), strict=False)
        token = TokenLogprob(token_list[i], chosen_list[i], rank_list[i])
        scored.append(PositionLogprobs(token, tuple(TokenLogprob(*t) for t in top)))
    return scored
