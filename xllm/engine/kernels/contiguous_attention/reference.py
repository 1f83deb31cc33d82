"""Reference attention of one row over a base and a stride: nothing is gathered, nothing beyond the row is read.

Shapes: Q queries, N keys, H key/value heads, G query heads per key/value head, K head dimension.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from xllm.engine.kernels.paged_attention.reference import Tile


def contiguous_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tiles: tuple[Tile, ...], scale: float
) -> torch.Tensor:
    """Attention of one row.

    Args:
        q: ``[Q, H * G, K]``.
        k, v: ``[N, H, K]`` with any stride between tokens and heads.
        tiles: split Q in order and say what each part sees; empty for one query that sees all N keys.
        scale: factor of the scores.

    Returns:
        ``[Q, H * G, K]``.
    """
    num_queries, num_heads, head_dim = q.shape
    kv_heads = k.shape[1]
    groups = num_heads // kv_heads
    k, v = (x.transpose(0, 1).unsqueeze(1) for x in (k, v))
    if not tiles:  # heads that share keys are queries of one product
        assert num_queries == 1, "several queries need tiles"
        out = functional.scaled_dot_product_attention(
            q.view(kv_heads, 1, groups, head_dim), k, v, scale=scale
        )
        return out.view(q.shape)
    out = torch.empty(num_queries, kv_heads, groups, head_dim, dtype=q.dtype, device=q.device)
    folded = q.view(num_queries, kv_heads, groups, head_dim).permute(1, 2, 0, 3)
    k, v = (x.expand(-1, groups, -1, -1) for x in (k, v))
    start = 0
    for tile in tiles:
        end, last_key = start + tile.num_queries, tile.first_key + tile.mask.shape[-1]
        part = functional.scaled_dot_product_attention(
            folded[:, :, start:end],
            k[:, :, tile.first_key : last_key],
            v[:, :, tile.first_key : last_key],
            attn_mask=tile.mask,
            scale=scale,
        )
        out[start:end] = part.permute(2, 0, 1, 3)
        start = end
    return out.view(q.shape)
