"""``score`` of the CPU library: two passes over a row and no sort (csrc/scoring.h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xllm.engine.kernels.scoring.reference import Scores
from xllm.engine.platform.native import required_library


def score(
    logits: torch.Tensor, rows: torch.Tensor | None, token_ids: torch.Tensor, num_top: Sequence[int]
) -> Scores:
    """See the reference. Equal logits are listed in the order of their ids."""
    library = required_library()
    assert logits.dtype == torch.float32 and logits.is_contiguous(), "float32 [N, V], dense"
    count, vocab_size = len(token_ids), logits.shape[1]
    if rows is None:
        rows = torch.arange(count)
    assert len(rows) == count == len(num_top), (len(rows), count, len(num_top))
    assert count == 0 or (int(token_ids.min()) >= 0 and int(token_ids.max()) < vocab_size), (
        "a token has an id"
    )
    max_top = min(max(num_top, default=0), vocab_size)
    wanted = torch.tensor(num_top, dtype=torch.int64).clamp_(max=max_top)
    logprobs, ranks = torch.empty(count), torch.empty(count, dtype=torch.int64)
    top_ids, top_logprobs = torch.zeros(count, max_top, dtype=torch.int64), torch.zeros(count, max_top)
    library.lib.xllm_score(
        logits.data_ptr(),
        vocab_size,
        rows.data_ptr(),
        token_ids.contiguous().data_ptr(),
        wanted.data_ptr(),
        count,
        max_top,
        logprobs.data_ptr(),
        ranks.data_ptr(),
        top_ids.data_ptr(),
        top_logprobs.data_ptr(),
        library.num_threads(count * vocab_size),
    )
    return Scores(logprobs.tolist(), ranks.tolist(), top_ids.tolist(), top_logprobs.tolist())
