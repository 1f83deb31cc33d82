"""Reference KV write: one indexed copy per tensor."""

from __future__ import annotations

import torch


def kv_write(
    pool: torch.Tensor, new: torch.Tensor, pool_rows: torch.Tensor, token_rows: torch.Tensor | None
) -> None:
    """Copy the heads of new tokens into the pool.

    Args:
        pool: ``[N, H, P, K]``, see the KV pool.
        new: ``[T, H, K]``.
        pool_rows: int64 ``[W * H]``; for each written token its H rows of ``[N * H * P, K]``.
        token_rows: int64 ``[W]``, which tokens are written; None = all T.
    """
    if token_rows is not None:
        new = new.index_select(0, token_rows)
    head_dim = pool.shape[-1]
    pool.view(-1, head_dim).index_copy_(0, pool_rows, new.reshape(-1, head_dim))
