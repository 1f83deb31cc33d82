"""New keys and values into blocks in pairs order (csrc/parts.h)."""

from __future__ import annotations

import torch

from xllm.engine.platform.native import TYPES, required_library


def store_pairs(
    pools: tuple[torch.Tensor, torch.Tensor],
    k: torch.Tensor,
    v: torch.Tensor,
    pool_rows: torch.Tensor,
    token_rows: torch.Tensor | None,
) -> None:
    """Put the heads of new tokens where dot products look for them.

    Args:
        pools: keys and values in pairs order, ``[N, H, P, K]`` each, see the KV pool.
        k: ``[T, H, K]``.
        v: the same.
        pool_rows: int64 ``[W * H]``; the row of ``[N * H * P, K]`` that each written head has in the plain order.
        token_rows: int64 ``[W]``, which tokens are written; None = all T.
    """
    if token_rows is not None:
        k, v = k.index_select(0, token_rows), v.index_select(0, token_rows)
    k, v = k.contiguous(), v.contiguous()
    required_library().lib.xllm_store_pairs(
        *(TYPES[k.dtype], k.data_ptr(), v.data_ptr(), pool_rows.data_ptr()),
        *(len(pool_rows), k.shape[-1], pools[0].data_ptr(), pools[1].data_ptr()),
        torch.get_num_threads(),
    )
